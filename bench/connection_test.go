package bench

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// scripted is a server that answers the n-th request, from 0, by the n-th text, and closes the connection after a text
// that ends in "|".
type scripted struct {
	*target
	requests, connections atomic.Int64
}

func serveScript(t *testing.T, answers ...string) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s := &scripted{target: &target{address: l.Addr().String()}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.connections.Add(1)
			s.serve(conn, answers)
		}
	}()
	return s
}

func (s *scripted) serve(conn net.Conn, answers []string) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, request.Body)
		n := s.requests.Add(1) - 1
		text, closes := strings.CutSuffix(answers[n], "|")
		if _, err := io.WriteString(conn, text); err != nil || closes {
			return
		}
	}
}

const (
	okAnswer   = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	halfAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no|"
	last       = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok|"
)

// TestConnections: a connection serves several requests. One that the server has closed while it was idle is opened
// again, and one that it announces to close is not used again. An answer that is cut off is an error, and its request
// is not sent again.
func TestConnections(t *testing.T) {
	for what, c := range map[string]struct {
		answers     []string
		connections int64
		fails       string // the error of the last request
	}{
		"kept":                     {[]string{okAnswer, okAnswer, okAnswer}, 1, ""},
		"closed while idle":        {[]string{okAnswer, okAnswer + "|", okAnswer}, 2, ""},
		"announced to close":       {[]string{last, last, last}, 3, ""},
		"announced, and left open": {[]string{strings.TrimSuffix(last, "|"), okAnswer}, 2, ""},
		"the header is cut off":    {[]string{okAnswer, okAnswer, "HTTP/1.1 200 O|"}, 1, "it is cut off"},
		"the body is cut off":      {[]string{okAnswer, okAnswer, halfAnswer}, 1, "is cut off"},
		"no answer at the start":   {[]string{"|"}, 1, "EOF"},
		"no HTTP":                  {[]string{okAnswer, okAnswer, "SSH-2.0\r\n\r\n|"}, 1, "not HTTP"},
		"after a failure, a dial":  {[]string{okAnswer, "SSH-2.0\r\n\r\n|", okAnswer}, 2, ""},
	} {
		s := serveScript(t, c.answers...)
		conn := connection{t: s.target}
		for i := range c.answers {
			status, body, err := conn.do(t.Context(), []byte("GET / HTTP/1.1\r\nHost: kms\r\n\r\n"))
			if i < len(c.answers)-1 {
				continue
			}
			if c.fails == "" && (err != nil || status != http.StatusOK || string(body) != "ok") ||
				c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("%s: %d %q, %v", what, status, body, err)
			}
		}
		conn.close()
		if n := s.requests.Load(); n != int64(len(c.answers)) || s.connections.Load() != c.connections {
			t.Errorf("%s: %d requests on %d connections, want %d on %d", what, n, s.connections.Load(), len(c.answers),
				c.connections)
		}
	}
}

// TestNoConnection: if the server cannot be reached, the request fails with the reason, and counts as failed.
func TestNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	to := &target{address: l.Addr().String(), batch: request{bytes: []byte("GET / HTTP/1.1\r\n\r\n")}}
	w := &worker{conn: connection{t: to}, failed: map[string]int{}, latency: hdrhistogram.New(1, slowest, digits)}
	r := &run{shape: shape{load: loadBatch}, t: to}
	w.send(r, time.Now(), 0)
	if len(w.failed) != 1 || r.errs.Load() != 1 || w.done != 0 || !strings.Contains(firstFailure([]*worker{w}),
		"connection refused") {
		t.Errorf("failed %v, done %d", w.failed, w.done)
	}
}

// TestChildren: the processes of a server are its own and all that it has started, each once.
func TestChildren(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "sleep 60 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	line, _ := bufio.NewReader(out).ReadString('\n')
	sleeper, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	defer func() { _ = syscall.Kill(sleeper, syscall.SIGKILL) }()
	if got := ProcessesOf(cmd.Process.Pid); !slices.Equal(got, Processes{cmd.Process.Pid, sleeper}) {
		t.Errorf("%v, want %d and %d", got, cmd.Process.Pid, sleeper)
	}
	if got := withChildren(Processes{cmd.Process.Pid, sleeper}); len(got) != 2 {
		t.Errorf("%v, want each once", got)
	}
}

// TestServerProcesses: a server on another host has no processes here, although one listens here at the same port.
func TestServerProcesses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for host, want := range map[string]int{"127.0.0.1": 1, "192.0.2.7": 0} {
		if got := (&target{address: net.JoinHostPort(host, port)}).processes(); min(len(got), 1) != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}

// TestLocalProcesses: the process that listens at a port is found with its memory and processor time, and a port at
// which nobody listens has none.
func TestLocalProcesses(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("%s: %v", at, err)
			continue
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		p := localProcesses(port)
		if cpu, ok := p.CPU(); len(p) == 0 || p[0] != os.Getpid() || !ok || cpu <= 0 || p.memory() < 1 {
			t.Errorf("%s: processes %v, %v, %t, %v MiB; this is %d", at, p, cpu, ok, p.memory(), os.Getpid())
		}
		_ = l.Close()
		if p := localProcesses(port); len(p) != 0 {
			t.Errorf("%s: nobody listens, but processes %v were found", at, p)
		}
	}
	for _, none := range []Processes{nil, {os.Getpid(), 1 << 30}} {
		if cpu, ok := none.CPU(); ok {
			t.Errorf("processes %v, of which one does not exist: %v", none, cpu)
		}
	}
	if got := (Processes{1 << 30}).memory(); got != 0 {
		t.Errorf("a process that does not exist has %v MiB", got)
	}
	if p := localProcesses("kms"); p != nil {
		t.Errorf("a port without a number: %v", p)
	}
}

// TestLoopback: a host is this machine only if all its addresses are of the loopback.
func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{"127.0.0.1": true, "127.1.2.3": true, "::1": true, "localhost": true,
		"192.0.2.7": false, "2001:db8::7": false, "0.0.0.0": false, "no.such.host.invalid": false} {
		if got := isLoopback(host); got != want {
			t.Errorf("%s: %t, want %t", host, got, want)
		}
	}
}
