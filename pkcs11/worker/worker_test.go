package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"claviger/internal/faultmodule"
	"claviger/internal/processtest"
	"claviger/internal/softhsm/softhsmtest"
)

// envFake makes a worker of these tests a faulty one: "garbage", "silent" or "mute", see fake.
const envFake = "CLAVIGER_TEST_FAKE_WORKER"

// envServer makes the test program a server, which loads the library at this path in a worker.
const envServer = "CLAVIGER_TEST_SERVER"

func TestMain(m *testing.M) {
	if path := os.Getenv(envServer); path != "" && len(os.Args) == 1 {
		server(path)
	}
	if kind := os.Getenv(envFake); kind != "" && len(os.Args) == 2 && os.Args[1] == Command {
		fake(kind)
	}
	Main(os.Args)
	goleak.VerifyTestMain(m)
}

// fake is a worker that sends garbage, answers only the first ping ("silent"), or sends nothing ("mute"). It ends when
// it is killed.
func fake(kind string) {
	b, rights := make([]byte, 1), make([]byte, syscall.CmsgSpace(4))
	var pings atomic.Int32
	for {
		_, n, _, _, err := syscall.Recvmsg(socketFD, b, rights, 0)
		if err != nil {
			os.Exit(1)
		}
		fd, err := passed(rights[:n])
		if err != nil {
			os.Exit(1)
		}
		switch kind {
		case "garbage":
			_, _ = syscall.Write(fd, bytes.Repeat([]byte{0xff}, 1000))
		case "silent":
			go newConn(fd).serve(func(q *Request, r *Response) { //nolint:errcheck // it ends when it is killed
				r.Loaded = true
				if q.Function == ping {
					if pings.Add(1) > 1 {
						time.Sleep(time.Hour) // with select {} the runtime could end it
					}
				}
			})
		}
	}
}

// start starts a worker with the library of a fault module before a new SoftHSM token, and initialises it.
func start(t *testing.T, limit time.Duration) (*faultmodule.Module, *client) {
	t.Helper()
	m := faultmodule.New(t, softhsmtest.New(t).Module)
	t.Cleanup(m.Heal)
	c := load(t, m.Path, limit)
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	return m, c
}

// load is Load of a library that can be loaded.
func load(t *testing.T, path string, limit time.Duration) *client {
	t.Helper()
	l, loaded, err := Load(t.Context(), path, limit)
	if err != nil || !loaded {
		t.Fatalf("loaded %t, %v", loaded, err)
	}
	t.Cleanup(l.Destroy)
	c, _ := l.(*client)
	return c
}

// TestProcessName: top and ps show what the process of a worker is.
func TestProcessName(t *testing.T) {
	_, c := start(t, 0)
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pidOf(c)))
	if err != nil || string(comm) != processName+"\n" {
		t.Errorf("the process has the name %q, %v", comm, err)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pidOf(c)))
	if err != nil || string(line) != os.Args[0]+"\x00"+Command+"\x00" {
		t.Errorf("its command line is %q, %v", line, err)
	}
}

// ended reports whether no process of that number runs. A worker's process is waited for before its calls return.
func ended(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func pidOf(c *client) int { return c.process.Load().cmd.Process.Pid }

// within fails the test if f takes longer than a minute.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s takes longer than a minute", what)
	}
}

// wantGone checks that a call failed because its worker has ended.
func wantGone(t *testing.T, err error, why string) {
	t.Helper()
	var gone GoneError
	if !errors.As(err, &gone) || !strings.Contains(gone.Reason, why) {
		t.Errorf("%v, want %s", err, GoneError{Reason: why})
	}
}

// TestMainReturns: a program without the worker's argument goes on.
func TestMainReturns(t *testing.T) {
	for _, args := range [][]string{nil, {"claviger"}, {"claviger", "serve"}, {"claviger", Command, "more"}} {
		registered.Store(false)
		if Main(args); !registered.Load() {
			t.Errorf("%q: the program cannot start workers", args)
		}
	}
}

// TestMainNotCalled: a program that did not call Main starts no worker.
func TestMainNotCalled(t *testing.T) {
	registered.Store(false)
	defer registered.Store(true)
	l, loaded, err := Load(t.Context(), "/none", 0)
	if l != nil || loaded || err == nil || !strings.Contains(err.Error(), "cannot start itself") {
		t.Errorf("%v, loaded %t, %v", l, loaded, err)
	}
}

// TestPassed: a control message that cannot be read has no descriptor.
func TestPassed(t *testing.T) {
	if fd, err := passed(make([]byte, syscall.CmsgSpace(4))); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("descriptor %d, %v", fd, err)
	}
}

// TestByHand: the command says that it is of no use by hand, and why its socket cannot be read. It ends with status 0
// when the server closes the socket.
func TestByHand(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close() //nolint:errcheck // nothing is written
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(pair[0]), "socket")
	defer socket.Close() //nolint:errcheck // nothing is written
	if err := syscall.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	unconnected, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	alone := os.NewFile(uintptr(unconnected), "alone")
	defer alone.Close() //nolint:errcheck // nothing is written
	read, write, err := socketPair()
	if err == nil {
		_, err = syscall.Write(write, []byte{0})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(write) //nolint:errcheck // the byte is in the socket
	bare := os.NewFile(uintptr(read), "bare")
	defer bare.Close() //nolint:errcheck // nothing is written
	for _, c := range []struct {
		what   string
		file   *os.File
		status int
		out    string
	}{
		{"a file", null, 1,
			"claviger hsm-worker: a server starts this command, with a socket; it is of no use by hand\n"},
		{"a closed socket", socket, 0, ""},
		{"a socket without a peer", alone, 1, "claviger hsm-worker: the socket to the server: invalid argument\n"},
		{"a byte without a descriptor", bare, 1,
			"claviger hsm-worker: the socket to the server: a message without a descriptor\n"},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Args = []string{"claviger", Command}
		cmd.ExtraFiles = []*os.File{c.file}
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != c.status || string(out) != c.out {
			t.Errorf("%s: %v\n%s", c.what, err, out)
		}
	}
}

// TestNotLoaded: a library that cannot be loaded is no error, and leaves no worker.
func TestNotLoaded(t *testing.T) {
	keepFiles(t)
	before := processtest.Descriptors(t)
	l, loaded, err := Load(t.Context(), filepath.Join(t.TempDir(), "none.so"), 0)
	if l != nil || loaded || err != nil {
		t.Errorf("%v, loaded %t, %v", l, loaded, err)
	}
	noneLeft(t, before)
}

// keepFiles stops the garbage collector for a test: it would close files that the code forgot.
func keepFiles(t *testing.T) {
	t.Helper()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

// noneLeft checks that this process has no more open files than before. It waits, because a goroutine that reads from a
// socket closes it a moment after the other end was closed.
func noneLeft(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); processtest.Descriptors(t) > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d open files before and %d after", before, processtest.Descriptors(t))
		}
	}
}

// TestNoDescriptors: a process that may open no more files gets an error which says that no worker can be started. No
// file is left open, whichever file could not be opened.
func TestNoDescriptors(t *testing.T) {
	m, c := start(t, 0) // now the Go runtime has opened the files that it needs itself
	if err := c.Finalize(); err != nil {
		t.Fatal(err)
	}
	keepFiles(t)
	before := processtest.Descriptors(t)
	failed := 0
	for more := 0; ; more++ {
		var loaded bool
		var err error
		limitFiles(t, more, func() {
			var l Library
			if l, loaded, err = Load(t.Context(), m.Path, 0); loaded {
				l.Destroy()
			}
		})
		noneLeft(t, before)
		if !errors.Is(err, syscall.EMFILE) {
			var gone GoneError
			if err != nil && (!errors.As(err, &gone) || !strings.HasPrefix(gone.Reason, "exit status")) {
				t.Error(err)
			}
			break // this process may open enough files; the worker may still lack some
		}
		if failed++; !strings.HasPrefix(err.Error(),
			fmt.Sprintf("a process for PKCS#11 module %s cannot be started: ", m.Path)) {
			t.Error(err)
		}
	}
	if failed < 3 {
		t.Errorf("only %d limits were too low", failed)
	}
}

// TestNotReached: a worker to which no connection can be made is ended; nothing else would end it.
func TestNotReached(t *testing.T) {
	p, err := spawn()
	if err != nil {
		t.Fatal(err)
	}
	limitFiles(t, 0, func() {
		loaded, err := p.load(t.Context(), "/none")
		if loaded || !errors.As(err, new(noSocketError)) {
			t.Errorf("loaded %t, %v", loaded, err)
		}
	})
	select {
	case <-p.ended:
	default:
		t.Error("the worker runs")
		p.end("for the test")
	}
}

// limitFiles calls f while this process may open that many more files.
func limitFiles(t *testing.T, more int, f func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	free, err := syscall.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(free); err != nil {
		t.Fatal(err)
	}
	few := syscall.Rlimit{Cur: uint64(free + more), Max: old.Max} //nolint:gosec // not negative
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// TestGarbage: a worker that does not speak the protocol is ended.
func TestGarbage(t *testing.T) {
	t.Setenv(envFake, "garbage")
	keepFiles(t)
	within(t, "Load", func() {
		before := processtest.Descriptors(t)
		l, loaded, err := Load(t.Context(), "/none", 0)
		if wantGone(t, err, "a message of an unknown kind, 0xff"); l != nil || loaded {
			t.Errorf("%v, loaded %t", l, loaded)
		}
		noneLeft(t, before)
	})
}

// TestGarbageBeforeLimit: garbage stays the reason for the end of a worker if the limit of the call passes before the
// end.
func TestGarbageBeforeLimit(t *testing.T) {
	t.Setenv(envFake, "garbage")
	p, err := spawn()
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the call", func() {
		_, err := p.call(&Request{Function: ping}, pingLimit-time.Second)
		wantGone(t, err, "a message of an unknown kind, 0xff")
	})
}

// TestSilent: a worker that gives no sign of life is killed, though no call runs.
func TestSilent(t *testing.T) {
	t.Setenv(envFake, "silent")
	c := load(t, "/none", 0)
	within(t, "the end of the worker", func() { <-c.process.Load().ended })
	_, err := c.GetSlotList(true)
	wantGone(t, err, "ping did not return in 5s")
}

// TestLoadHangs: Load returns when its context ends, and the worker is ended.
func TestLoadHangs(t *testing.T) {
	t.Setenv(envFake, "mute")
	keepFiles(t)
	before := processtest.Descriptors(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	within(t, "Load", func() {
		l, loaded, err := Load(ctx, "/none", 0)
		if wantGone(t, err, "it did not load its library in time"); l != nil || loaded {
			t.Errorf("%v, loaded %t", l, loaded)
		}
	})
	noneLeft(t, before)
}

// TestStopped: a worker that was stopped by a signal does not read the request of a call. The call returns, because the
// server notices the stop.
func TestStopped(t *testing.T) {
	c := load(t, softhsmtest.New(t).Module, 0)
	if err := syscall.Kill(pidOf(c), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	within(t, "the call", func() {
		_, err := c.Encrypt(1, p11.NewMechanism(p11.CKM_AES_ECB, nil), 2, make([]byte, 8<<20))
		wantGone(t, err, "it was stopped by a signal")
	})
}

// server starts a worker, writes the numbers of both processes, and waits for its end by SIGTERM or SIGKILL.
func server(path string) {
	Main(os.Args)
	l, loaded, err := Load(context.Background(), path, 0)
	if err != nil || !loaded {
		fmt.Println(loaded, err)
		os.Exit(1)
	}
	c, _ := l.(*client)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	fmt.Println(os.Getpid(), pidOf(c))
	<-stop
	os.Exit(0)
}

// TestServerEnds: a worker ends with its server, however the server ends: by SIGKILL, or by a SIGTERM to both, as a
// service manager sends it.
func TestServerEnds(t *testing.T) {
	tok := softhsmtest.New(t)
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), envServer+"="+tok.Module)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var server, worker int
		if _, err := fmt.Fscan(out, &server, &worker); err != nil || server != cmd.Process.Pid || ended(worker) {
			t.Fatalf("%v: server %d of %d, worker %d", err, server, cmd.Process.Pid, worker)
		}
		if s == syscall.SIGTERM {
			if err := syscall.Kill(worker, s); err != nil {
				t.Error(err)
			}
		}
		if err := syscall.Kill(server, s); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // a signal ends it
		for end := time.Now().Add(20 * time.Second); !gone(t, worker); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%v left the worker", s)
			}
		}
	}
}

// gone reports whether a process that is not a child of this process has ended. Where nobody waits for orphans, a
// process that has ended stays as a zombie.
func gone(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(stat, []byte(") Z "))
}

// TestNoCore: a worker that crashes writes no core file, which could hold keystream or the PIN, though the limits of
// the server's process allow one.
func TestNoCore(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	most := syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &most); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
			t.Error(err)
		}
	}()
	m := faultmodule.New(t, softhsmtest.New(t).Module)
	t.Chdir(t.TempDir())
	c := load(t, m.Path, 0)
	m.Order(faultmodule.GetSlotList, faultmodule.Order{Action: faultmodule.Abort})
	_, err := c.GetSlotList(true)
	if wantGone(t, err, "signal: aborted"); strings.Contains(err.Error(), "core dumped") {
		t.Error(err)
	}
	if files, err := os.ReadDir("."); err != nil || len(files) > 0 {
		t.Errorf("files %v, %v", files, err)
	}
}

// TestThreadStays: no thread of the server ends with a worker, because the kernel would also kill each other process
// with a Pdeathsig that was started on it.
func TestThreadStays(t *testing.T) {
	_, c := start(t, 0)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	p := c.process.Load()
	if err := c.Finalize(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	for range 50 { // a thread ends a moment after its goroutine
		time.Sleep(time.Millisecond)
		for _, id := range threads {
			if _, err := os.Stat(filepath.Join("/proc/self/task", id.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
}
