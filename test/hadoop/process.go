package hadoop

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout is how long the start of a process may take. A JVM needs two to four seconds, and much more on a
// busy machine with two cores.
const startTimeout = 90 * time.Second

// Process is a server or client that a test has started. It runs until Stop, or until the test ends.
type Process struct {
	Name string
	Log  string // file with its standard output and error

	t      testing.TB
	cmd    *exec.Cmd
	exited chan struct{} // closed once cmd.Wait returned
}

// Start runs cmd in its own process group, and writes its standard error and its standard output (unless
// cmd.Stdout is set) into a log file. The end of the test kills the group.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Name: name, Log: filepath.Join(t.TempDir(), name+".log"), t: t, cmd: cmd, exited: make(chan struct{})}
	log, err := os.Create(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	// Pdeathsig: if the test binary itself is killed (by its timeout or an interrupt), no cleanup runs, and a JVM
	// would continue to run.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go func() {
		_ = cmd.Wait() // the status is in cmd.ProcessState
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", name, p.tail(12<<10))
		}
	})
	return p
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop sends SIGTERM, waits ten seconds, and returns the exit status, or -1 if the process was killed by a signal.
func (p *Process) Stop() int {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		p.t.Logf("%s did not end within 10 s of SIGTERM", p.Name)
		p.Kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// Kill kills the process and its children.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.exited
}

// Pause stops the process with SIGSTOP: connections stay open, but nothing answers. Resume continues the process.
func (p *Process) Pause() { p.t.Helper(); p.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { p.t.Helper(); p.signal(syscall.SIGCONT) }

func (p *Process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, sig); err != nil {
		p.t.Fatalf("%s: %v", p.Name, err)
	}
}

// Wait waits at most d for the process to end by itself, and reports whether it has ended.
func (p *Process) Wait(d time.Duration) bool {
	select {
	case <-p.exited:
		return true
	case <-time.After(d):
		return false
	}
}

// Alive reports whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// WaitFor calls ready every few milliseconds until it returns true. It fails the test if the process ends before
// that, or after a timeout.
func (p *Process) WaitFor(what string, ready func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(startTimeout)
	for !ready() {
		if !p.Alive() {
			p.t.Fatalf("%s ended (%v) before %s; its log:\n%s", p.Name, p.cmd.ProcessState, what, p.tail(12<<10))
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: %s did not happen within %v; its log:\n%s", p.Name, what, startTimeout, p.tail(12<<10))
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// WaitLog waits for a line in the process's log.
func (p *Process) WaitLog(pattern string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	p.WaitFor(fmt.Sprintf("log line %q", pattern), func() bool {
		b, err := os.ReadFile(p.Log)
		return err == nil && re.Match(b)
	})
}

func (p *Process) tail(n int) []byte {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return []byte(err.Error())
	}
	if len(b) > n {
		b = b[len(b)-n:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return b
}

// FreePorts returns n free loopback ports. No other call of a test gets them until all ports of this test binary were
// given. The ports are below the range of outgoing connections, because a restarted server must find its port free
// again.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.first == 0 {
		if err := takePorts(); err != nil {
			t.Fatal(err)
		}
	}
	var free []int
	for range portsEach {
		ports.last = ports.last%(portsEach-1) + 1
		if l, err := listen(ports.first + ports.last); err == nil {
			_ = l.Close() // it was only opened
			if free = append(free, ports.first+ports.last); len(free) == n {
				return free
			}
		}
	}
	t.Fatalf("no %d free ports from %d on", n, ports.first)
	return nil
}

// portsEach is how many ports each test binary has, because several run at once.
const portsEach = 500

// ports are the ports of this test binary.
var ports struct {
	sync.Mutex
	first int          // the first port of this test binary
	held  net.Listener // listens at first until the process ends, so that other test binaries take other ports
	last  int          // the last port after first that was given
}

// takePorts finds ports that no other test binary uses.
func takePorts() error {
	const low, high = 12000, 32000
	for _, i := range rand.Perm((high - low) / portsEach) {
		l, err := listen(low + i*portsEach)
		if err == nil {
			ports.first, ports.held = low+i*portsEach, l
			return nil
		}
	}
	return fmt.Errorf("no free ports between %d and %d", low, high)
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)) //nolint:noctx // returns at once
}
