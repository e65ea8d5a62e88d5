package hadoop

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// commandTimeout bounds one client command. Hadoop's clients retry for long;
// nothing in a test should need it.
const commandTimeout = 60 * time.Second

// Client is one user's Hadoop client: the stock command-line classes in one
// JVM, which runs one command after the other, since starting a JVM for each
// takes longer than the commands do. What Hadoop keeps in a process (key
// providers, connections to a NameNode) therefore lives as long as the Client:
// make a new one after a restart.
type Client struct {
	t       testing.TB
	user    string
	process *Process
	stdin   io.Writer
	answers chan string
}

// Result is how a command ended.
type Result struct {
	Exit   int
	Stdout string
	Stderr string
}

// NewClient starts a client that acts as user (simple authentication) with the
// given configuration.
func NewClient(t testing.TB, user string, conf Conf) *Client {
	t.Helper()
	Require(t)
	dir := t.TempDir()
	noGroups.With(conf).writeSites(t, dir)
	writeLog4j(t, dir, "WARN")
	cmd := java{
		name:      "client-" + user,
		conf:      dir,
		classPath: []string{Javac(t, RuntimeClassPath(t), filepath.Join(Root(), "test", "hadoop", "java"))},
		main:      "Shell",
		user:      user,
	}.command(context.Background(), t)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	cmd.Stdout = w
	c := &Client{t: t, user: user, stdin: stdin, answers: make(chan string, 1)}
	c.process = Start(t, "client-"+user, cmd)
	go func() {
		<-c.process.exited
		w.Close()
	}()
	go func() {
		defer close(c.answers)
		for s := bufio.NewReader(r); ; {
			line, err := s.ReadString('\n')
			if err != nil {
				return
			}
			c.answers <- strings.TrimSpace(line)
		}
	}()
	return c
}

// Run runs one command and returns how it ended. tool is "key", "crypto", "fs"
// or "dfsadmin".
func (c *Client) Run(tool string, args ...string) Result {
	c.t.Helper()
	words := []string{}
	for _, a := range append([]string{tool}, args...) {
		words = append(words, base64.StdEncoding.EncodeToString([]byte(a)))
	}
	if _, err := io.WriteString(c.stdin, strings.Join(words, " ")+"\n"); err != nil {
		c.t.Fatalf("%s: the client JVM takes no commands: %v", c.describe(tool, args), err)
	}
	select {
	case line, ok := <-c.answers:
		if !ok {
			c.t.Fatalf("%s: the client JVM ended; its log:\n%s", c.describe(tool, args), c.process.tail(8<<10))
		}
		r, err := parseAnswer(line)
		if err != nil {
			c.t.Fatalf("%s: %v", c.describe(tool, args), err)
		}
		return r
	case <-time.After(commandTimeout):
		c.t.Fatalf("%s: no end after %v; its log:\n%s", c.describe(tool, args), commandTimeout, c.process.tail(8<<10))
	}
	panic("unreachable")
}

// parseAnswer reads "EXIT STDOUT STDERR", the last two in base64 ("-" for nothing).
func parseAnswer(line string) (r Result, err error) {
	parts := strings.Fields(line)
	if len(parts) != 3 {
		return r, fmt.Errorf("the client JVM printed %q", line)
	}
	if r.Exit, err = strconv.Atoi(parts[0]); err != nil {
		return r, err
	}
	for i, dst := range []*string{&r.Stdout, &r.Stderr} {
		if parts[i+1] == "-" {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(parts[i+1])
		if err != nil {
			return r, err
		}
		*dst = string(b)
	}
	return r, nil
}

func (c *Client) describe(tool string, args []string) string {
	return fmt.Sprintf("%s as %s: %s", tool, c.user, strings.Join(args, " "))
}

// Must runs a command that has to succeed and returns its standard output.
func (c *Client) Must(tool string, args ...string) string {
	c.t.Helper()
	r := c.Run(tool, args...)
	if r.Exit != 0 {
		c.t.Fatalf("%s: exit %d\n%s%s", c.describe(tool, args), r.Exit, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// MustFail runs a command that has to fail and returns all that it printed.
func (c *Client) MustFail(tool string, args ...string) string {
	c.t.Helper()
	r := c.Run(tool, args...)
	if r.Exit == 0 {
		c.t.Fatalf("%s: succeeded, and must not\n%s", c.describe(tool, args), r.Stdout)
	}
	return r.Stdout + r.Stderr
}

// Close ends the client's JVM.
func (c *Client) Close() { c.process.Kill() }

// KeyShell runs `hadoop key`, which has to succeed.
func (c *Client) KeyShell(args ...string) string { c.t.Helper(); return c.Must("key", args...) }

// CryptoAdmin runs `hdfs crypto`, which has to succeed.
func (c *Client) CryptoAdmin(args ...string) string { c.t.Helper(); return c.Must("crypto", args...) }

// FsShell runs `hdfs dfs`, which has to succeed.
func (c *Client) FsShell(args ...string) string { c.t.Helper(); return c.Must("fs", args...) }

// DFSAdmin runs `hdfs dfsadmin`, which has to succeed.
func (c *Client) DFSAdmin(args ...string) string { c.t.Helper(); return c.Must("dfsadmin", args...) }
