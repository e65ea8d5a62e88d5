package hadoop

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// commandTimeout is the timeout of one answer. Hadoop's clients retry for long, but no test should need that.
const commandTimeout = 60 * time.Second

// ProgramOptions are the options of a Java program that uses Hadoop's jars.
type ProgramOptions struct {
	Sources string // folder with its .java files
	Main    string // class
	Args    []string
	User    string   // the user, with simple authentication
	Conf    Conf     // core-site.xml and hdfs-site.xml
	SSL     Conf     // ssl-client.xml
	Flags   []string // of the JVM
	Env     []string // added to the environment of the test
}

// Program is a Java program that reads a line from its standard input, writes one line to its standard output, and
// so on. Only one goroutine may use it at a time.
type Program struct {
	t       testing.TB
	process *Process
	stdin   io.Writer
	answers chan string
}

// StartProgram compiles a program if necessary, and starts it.
func StartProgram(t testing.TB, o ProgramOptions) *Program {
	t.Helper()
	Require(t)
	dir := t.TempDir()
	noGroups.With(o.Conf).writeSites(t, dir)
	if o.SSL != nil {
		o.SSL.Write(t, filepath.Join(dir, "ssl-client.xml"))
	}
	writeLog4j(t, dir, "WARN")
	name := strings.Trim(strings.ToLower(o.Main)+"-"+o.User, "-")
	cmd := java{
		name:      name,
		conf:      dir,
		classPath: []string{Javac(t, RuntimeClassPath(t), o.Sources)},
		flags:     o.Flags,
		main:      o.Main,
		args:      o.Args,
		user:      o.User,
		env:       o.Env,
	}.command(context.Background(), t)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	cmd.Stdout = w
	p := &Program{t: t, stdin: stdin, answers: make(chan string, 1)}
	p.process = Start(t, name, cmd)
	go func() {
		<-p.process.exited
		w.Close()
	}()
	go func() {
		defer close(p.answers)
		for s := bufio.NewReader(r); ; {
			line, err := s.ReadString('\n')
			if err != nil {
				return
			}
			p.answers <- strings.TrimSpace(line)
		}
	}()
	return p
}

// send sends a line and returns the answer.
func (p *Program) send(line string) (string, error) {
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		return "", fmt.Errorf("the JVM takes no commands: %w; its log:\n%s", err, p.process.tail(8<<10))
	}
	select {
	case answer, ok := <-p.answers:
		if !ok {
			return "", fmt.Errorf("the JVM ended; its log:\n%s", p.process.tail(8<<10))
		}
		return answer, nil
	case <-time.After(commandTimeout):
		return "", fmt.Errorf("no end after %v; its log:\n%s", commandTimeout, p.process.tail(8<<10))
	}
}

// Send sends a command, words separated by spaces, and returns the answer.
func (p *Program) Send(words ...string) string {
	p.t.Helper()
	answer, err := p.send(strings.Join(words, " "))
	if err != nil {
		p.t.Fatalf("%s: %v", strings.Join(words, " "), err)
	}
	return answer
}

// Close ends the JVM.
func (p *Program) Close() { p.process.Kill() }
