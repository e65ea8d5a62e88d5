package demo

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// How long a process may take to start, and to stop after SIGTERM.
const (
	startLimit = 30 * time.Second
	stopLimit  = 20 * time.Second
)

// server is one running server.
type server struct {
	name string // for the output
	uri  string // of a KMS: kms://http@localhost:PORT/kms
	base string // URL, as http://localhost:PORT/kms
	log  string // its standard error
	took time.Duration
	cmd  *exec.Cmd
	done chan error
}

// startKMS runs `claviger kms` on a configuration folder.
func (r *run) startKMS(ctx context.Context, name, conf string) (*server, error) {
	s, err := r.start(ctx, name, conf, r.token.Env, "kms", "--conf", conf, "--http-port", "0")
	if err != nil {
		return nil, err
	}
	scheme, rest, _ := strings.Cut(s.base, "://")
	s.uri = "kms://" + scheme + "@" + rest
	return s, nil
}

// start runs a server and waits until it serves. Its log goes into dir; env is added to the environment.
func (r *run) start(ctx context.Context, name, dir string, env []string, args ...string) (*server, error) {
	s := &server{name: name, log: filepath.Join(dir, args[0]+".log"), done: make(chan error, 1)}
	ready := filepath.Join(dir, "ready")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	began := time.Now()
	s.cmd = r.command(ctx, env, append(args, "--ready-file", ready)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.done <- s.cmd.Wait() }()
	for {
		if text, err := os.ReadFile(ready); err == nil && bytes.HasSuffix(text, []byte("\n")) {
			s.base = strings.TrimSpace(string(text))
			break
		}
		select {
		case err := <-s.done:
			s.done <- err
			return nil, fmt.Errorf("the %s ended before it served (%w); its log:\n%s", name, err, tail(s.log))
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.stop())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(began) > startLimit {
			return nil, errors.Join(fmt.Errorf("the %s did not serve within %v; its log:\n%s", name, startLimit,
				tail(s.log)), s.stop())
		}
	}
	s.took = time.Since(began)
	return s, nil
}

// stop ends the process with SIGTERM, and waits. It may be called again, and on nil.
func (s *server) stop() error {
	if s == nil || s.cmd == nil {
		return nil
	}
	defer func() { s.cmd = nil }()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-s.done:
		if err != nil {
			return fmt.Errorf("the %s ended with %w; its log:\n%s", s.name, err, tail(s.log))
		}
		return nil
	case <-time.After(stopLimit):
		return errors.Join(fmt.Errorf("the %s did not stop within %v", s.name, stopLimit), s.cmd.Process.Kill())
	}
}

// command returns a process of the claviger binary that is not started yet.
func (r *run) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.Exe, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	return cmd
}

// cli runs a subcommand to its end. It shows the command line and the output, and checks the exit status.
func (r *run) cli(ctx context.Context, wantExit int, args ...string) (string, error) {
	return r.cliWith(ctx, r.token.Env, "", wantExit, args...)
}

// cliWith is cli with the environment of another token, and with typed as standard input.
func (r *run) cliWith(ctx context.Context, env []string, typed string, wantExit int, args ...string) (string, error) {
	r.printf("$ claviger %s", strings.Join(args, " "))
	var out bytes.Buffer
	cmd := r.command(ctx, env, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(typed), &out, &out
	err := cmd.Run()
	for _, line := range strings.Split(strings.TrimRight(out.String(), "\n"), "\n") {
		r.printf("  %s", line)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err
	}
	if got := cmd.ProcessState.ExitCode(); got != wantExit {
		return "", fmt.Errorf("claviger %s: exit status %d, want %d", args[0], got, wantExit)
	}
	return out.String(), nil
}

// tail returns the last lines of a log.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return strings.Join(lines, "\n")
}

// properties are the properties of a *-site.xml file, in order.
type properties []property

type property struct{ name, value string }

func (p properties) xml() []byte {
	var b bytes.Buffer
	b.WriteString("<?xml version=\"1.0\"?>\n<configuration>\n")
	for _, kv := range p {
		b.WriteString("  <property><name>")
		_ = xml.EscapeText(&b, []byte(kv.name)) // a bytes.Buffer returns no error
		b.WriteString("</name><value>")
		_ = xml.EscapeText(&b, []byte(kv.value))
		b.WriteString("</value></property>\n")
	}
	b.WriteString("</configuration>\n")
	return b.Bytes()
}

// with returns the properties with some changes. A value of "" removes a property.
func (p properties) with(changes ...property) properties {
	var out properties
	for _, kv := range p {
		for _, c := range changes {
			if c.name == kv.name {
				kv.value = ""
			}
		}
		if kv.value != "" {
			out = append(out, kv)
		}
	}
	for _, c := range changes {
		if c.value != "" {
			out = append(out, c)
		}
	}
	return out
}
