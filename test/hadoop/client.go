package hadoop

import (
	"encoding/base64"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Client is the Hadoop client of one user: the stock command-line classes in one JVM. The JVM runs one command
// after the other, because the start of a JVM takes longer than a command. What Hadoop caches in a process (key
// providers, connections to a NameNode) lives as long as the Client, so make a new Client after a restart of a
// server.
type Client struct {
	*Program
	user string
}

// Result is the result of a command.
type Result struct {
	Exit   int
	Stdout string
	Stderr string
}

// NewClient starts a client that acts as user (simple authentication) with the
// given configuration.
func NewClient(t testing.TB, user string, conf Conf) *Client {
	t.Helper()
	return StartClient(t, user, ProgramOptions{Conf: conf})
}

// StartClient starts a client with the name user in messages. Under Kerberos, it uses the tickets that o.Env names
// (KRB5CCNAME). StartClient sets Main and Sources of the options.
func StartClient(t testing.TB, user string, o ProgramOptions) *Client {
	t.Helper()
	o.Main, o.Sources, o.User = "Shell", filepath.Join(Root(), "test", "hadoop", "java"), user
	return &Client{Program: StartProgram(t, o), user: user}
}

// Run runs one command and returns its result. tool is "key", "crypto", "fs", "dfsadmin", "dtutil", "images" (see
// Images.java), or "tokens", whose arguments FILE RENEWER collect delegation tokens.
func (c *Client) Run(tool string, args ...string) Result {
	c.t.Helper()
	words := []string{}
	for _, a := range append([]string{tool}, args...) {
		words = append(words, base64.StdEncoding.EncodeToString([]byte(a)))
	}
	line, err := c.send(strings.Join(words, " "))
	if err != nil {
		c.t.Fatalf("%s: %v", c.describe(tool, args), err)
	}
	r, err := parseAnswer(line)
	if err != nil {
		c.t.Fatalf("%s: %v", c.describe(tool, args), err)
	}
	return r
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

// Must runs a command that must succeed, and returns its standard output.
func (c *Client) Must(tool string, args ...string) string {
	c.t.Helper()
	r := c.Run(tool, args...)
	if r.Exit != 0 {
		c.t.Fatalf("%s: exit %d\n%s%s", c.describe(tool, args), r.Exit, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// MustFail runs a command that must fail, and returns its whole output.
func (c *Client) MustFail(tool string, args ...string) string {
	c.t.Helper()
	r := c.Run(tool, args...)
	if r.Exit == 0 {
		c.t.Fatalf("%s: succeeded, and must not\n%s", c.describe(tool, args), r.Stdout)
	}
	return r.Stdout + r.Stderr
}

// KeyShell runs `hadoop key`, which must succeed.
func (c *Client) KeyShell(args ...string) string { c.t.Helper(); return c.Must("key", args...) }

// CryptoAdmin runs `hdfs crypto`, which must succeed.
func (c *Client) CryptoAdmin(args ...string) string { c.t.Helper(); return c.Must("crypto", args...) }

// FsShell runs `hdfs dfs`, which must succeed.
func (c *Client) FsShell(args ...string) string { c.t.Helper(); return c.Must("fs", args...) }

// DFSAdmin runs `hdfs dfsadmin`, which must succeed.
func (c *Client) DFSAdmin(args ...string) string { c.t.Helper(); return c.Must("dfsadmin", args...) }

var versionInInfo = regexp.MustCompile(`keyName: (\S+), ezKeyVersionName: (\S+)\}`)

// FileKey returns the key of an encrypted file, and the version of the key for the file's EDEK.
func (c *Client) FileKey(path string) (key, version string) {
	c.t.Helper()
	out := c.CryptoAdmin("-getFileEncryptionInfo", "-path", path)
	m := versionInInfo.FindStringSubmatch(out)
	if m == nil {
		c.t.Fatalf("%s: -getFileEncryptionInfo printed %q", path, out)
	}
	return m[1], m[2]
}

// ReencryptZone re-encrypts a zone and waits for the end.
func (c *Client) ReencryptZone(zone string) {
	c.t.Helper()
	begun := time.Now()
	c.CryptoAdmin("-reencryptZone", "-start", "-path", zone)
	for {
		status := c.CryptoAdmin("-listReencryptionStatus")
		for line := range strings.Lines(status) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == zone && f[1] == "Completed" {
				c.t.Logf("re-encrypted in %.1fs: %s", time.Since(begun).Seconds(), strings.TrimSpace(line))
				return
			}
		}
		if time.Since(begun) > commandTimeout {
			c.t.Fatalf("%s is not re-encrypted after %v:\n%s", zone, commandTimeout, status)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
