package worker

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"claviger/internal/faultmodule"
	"claviger/internal/processtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/cryptoki"
)

// pair returns the two ends of a connection.
func pair(t *testing.T) (ours, theirs *conn) {
	t.Helper()
	a, b, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs = newConn(a), newConn(b)
	t.Cleanup(ours.close)
	return ours, theirs
}

// TestConn: calls in both forms follow each other on one connection, with data of any size. Neither end keeps what it
// received or sent: a PIN, or keystream.
func TestConn(t *testing.T) {
	ours, theirs := pair(t)
	served := make(chan error, 1)
	var results [][]byte // of the library
	go func() {
		served <- theirs.serve(func(q *Request, r *Response) {
			switch {
			case q.Function == "Login":
				r.Data = []byte(q.PIN)
			case len(q.Data) == 1:
				r.fail(p11.Error(p11.CKR_DATA_LEN_RANGE))
			default:
				r.Data = append(bytes.Clone(q.Mechanisms[0].Parameter), q.Data[len(q.Mechanisms[0].Parameter):]...)
				results = append(results, r.Data)
			}
		})
	}()
	const secret = "a secret of sixteen bytes or more"
	// Short messages follow long ones: neither end may keep bytes of the last message, or of a longer one before it.
	for _, size := range []int{0, 1, len(secret), connBuffer - 60, connBuffer, connBuffer + 1,
		40 * connBuffer, connBuffer + 1, 1, len(secret)} {
		if r, err := ours.call(&Request{Function: "Login", PIN: secret}); err != nil || string(r.Data) != secret {
			t.Fatalf("before %d bytes: %v", size, err)
		}
		data := bytes.Repeat([]byte{7}, size)
		copy(data, secret)
		r, err := ours.call(&Request{Function: "Encrypt", Data: data, Session: 1 << 40,
			Mechanisms: []*p11.Mechanism{{Mechanism: p11.CKM_VENDOR_DEFINED + 1, Parameter: data[:size/2]}}})
		if size == 1 {
			if err != nil || !errors.Is(r.err(), p11.Error(p11.CKR_DATA_LEN_RANGE)) {
				t.Errorf("an error: %v, %v", err, r)
			}
			continue
		}
		if err != nil || !bytes.Equal(r.Data, data) {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
	ours.shutdown()
	if err := <-served; err == nil {
		t.Error("the end of a connection is no error")
	}
	for _, b := range results {
		if len(bytes.Trim(b, "\x00")) > 0 {
			t.Errorf("a result of %d bytes is left", len(b))
		}
	}
	for name, l := range map[string]*conn{"ours": ours, "theirs": theirs} {
		for what, b := range map[string][]byte{"received": l.in, "read": l.data, "sent": l.out.Bytes()} {
			if b = b[:cap(b)]; bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte{7, 7}) {
				t.Errorf("%s keeps what was %s", name, what)
			}
		}
	}
}

// TestConnErrors: an answer that is no message, that is longer than the data, or that ends too early is an error.
func TestConnErrors(t *testing.T) {
	for answer, want := range map[string]string{
		"":                      "EOF",
		"x":                     "unknown kind, 0x78",
		"g\x01":                 "EOF",
		"d\x00\x00":             "EOF",
		"d\x00\x00\x00\x21":     "a message has 33 bytes, and may have at most 32",
		"d\xff\xff\xff\xff":     "a message has 4294967295 bytes, and may have at most 32",
		"d\x00\x00\x00\x20half": "EOF",
	} {
		ours, theirs := pair(t)
		if _, err := syscall.Write(theirs.fd, []byte(answer)); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Shutdown(theirs.fd, syscall.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		_, err := ours.call(&Request{Function: "Encrypt", Data: make([]byte, 32), Mechanisms: mech(ecb)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", answer, err, want)
		}
		theirs.close()
	}
	ours, theirs := pair(t)
	if _, err := syscall.Write(theirs.fd, []byte("d\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.call(&Request{Function: "GetSlotList"}); err == nil {
		t.Error("an encryption answers another function")
	}
	theirs.close()
}

// TestServeEnds: the worker closes a connection when it reads bytes that are not a request.
func TestServeEnds(t *testing.T) {
	for _, request := range []string{"x", "g\xff\xff", "e", "e" + strings.Repeat("\x00", 24),
		"e" + strings.Repeat("\x00", 28), "e" + strings.Repeat("\x00", 24) + "\xff\xff\xff\xff",
		"e" + strings.Repeat("\x00", 24) + "\xff\xff\xff\xff" + strings.Repeat("\x00", 4)} {
		ours, theirs := pair(t)
		if _, err := syscall.Write(ours.fd, []byte(request)); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Shutdown(ours.fd, syscall.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		if err := theirs.serve(func(*Request, *Response) { t.Errorf("%q is answered", request) }); err == nil {
			t.Errorf("%q is no error", request)
		}
		if _, err := unix.FcntlInt(uintptr(theirs.fd), unix.F_GETFD, 0); !errors.Is(err, syscall.EBADF) {
			t.Errorf("%q leaves the connection open: %v", request, err)
		}
	}
	ours, theirs := pair(t)
	ours.shutdown()
	err := theirs.serve(func(*Request, *Response) {})
	if err == nil {
		t.Error("no error")
	}
}

// TestNoMoreSockets: the process may open no more files. A call that finds no free connection waits for one.
func TestNoMoreSockets(t *testing.T) {
	m, c := start(t, 0)
	m.Delay(faultmodule.GetSlotList, 10*time.Millisecond)
	limitFiles(t, 0, func() {
		var calls sync.WaitGroup
		for range 20 {
			calls.Go(func() {
				if _, err := c.GetSlotList(true); err != nil {
					t.Error(err)
				}
			})
		}
		within(t, "20 calls", calls.Wait)
	})
	p := c.process.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) > 2 { // one made by the load, and one by a ping
		t.Errorf("%d connections", len(p.conns))
	}
}

// TestWaitForSocketEnds: a call that waits for a connection returns when the worker ends.
func TestWaitForSocketEnds(t *testing.T) {
	m, c := start(t, 0)
	m.Order(faultmodule.GetSlotList, faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always})
	errs := make(chan error, 4)
	limitFiles(t, 0, func() {
		for range cap(errs) {
			go func() { errs <- errorOf(c.GetSlotList(true)) }()
		}
		for m.Running(faultmodule.GetSlotList) == 0 {
			time.Sleep(time.Millisecond)
		}
		within(t, "the calls", func() {
			c.Kill("for the test")
			for range cap(errs) {
				wantGone(t, <-errs, "for the test")
			}
		})
	})
}

// TestTakeAndFreeAtEnd: a worker that ends takes no connections, and no caller waits for another call's connection. A
// connection of a call that returns after the end is closed.
func TestTakeAndFreeAtEnd(t *testing.T) {
	socket, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(theirs); err != nil { // as the worker does when it ends
		t.Fatal(err)
	}
	fd, err := syscall.Dup(socket)
	if err != nil {
		t.Fatal(err)
	}
	busy := newConn(fd)
	p := &process{socket: os.NewFile(uintptr(socket), "worker"), ended: make(chan struct{}), status: "for the test",
		conns: map[*conn]struct{}{busy: {}}}
	p.freed.L = &p.mu
	within(t, "take", func() {
		if l, err := p.take(); l != nil || !errors.Is(err, syscall.EPIPE) {
			t.Errorf("before the end is noticed: %v, %v", l, err)
		}
		close(p.ended)
		l, err := p.take()
		if wantGone(t, err, "for the test"); l != nil {
			t.Error(l)
		}
	})
	p.free(busy)
	if _, err := unix.FcntlInt(uintptr(busy.fd), unix.F_GETFD, 0); !errors.Is(err, syscall.EBADF) ||
		len(p.conns)+len(p.idle) > 0 {
		t.Errorf("the connection is open (%v), or kept: %v, %v", err, p.conns, p.idle)
	}
}

// TestConnectionsAreKept: calls that follow each other use the same connection, and Finalize closes all.
func TestConnectionsAreKept(t *testing.T) {
	keepFiles(t)
	_, c := start(t, 0)
	if err := c.Finalize(); err != nil {
		t.Fatal(err)
	}
	before := processtest.Descriptors(t)
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	p := c.process.Load()
	for range 20 {
		if _, err := c.GetSlotList(true); err != nil {
			t.Fatal(err)
		}
	}
	p.mu.Lock()
	if n := len(p.conns); n > 2 { // one may be of a ping
		t.Errorf("%d connections for calls that follow each other", n)
	}
	p.mu.Unlock()
	if err := c.Finalize(); err != nil {
		t.Fatal(err)
	}
	noneLeft(t, before)
}

// TestSocketOfAnotherProcess: a process that the library has started may have the worker's end of a connection. Even
// then a call returns when the worker has ended.
func TestSocketOfAnotherProcess(t *testing.T) {
	ours, theirs := pair(t) // theirs stays open, as in such a process
	defer theirs.close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.CommandContext(t.Context(), "true"), socket: null, ended: make(chan struct{}),
		conns: map[*conn]struct{}{ours: {}}}
	p.freed.L = &p.mu
	failed := make(chan error, 1)
	go func() {
		_, err := ours.call(&Request{Function: ping})
		failed <- err
	}()
	if kind, err := theirs.ReadByte(); err != nil || kind != byGob {
		t.Fatal(kind, err)
	}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	within(t, "the call", func() {
		if err := <-failed; !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// BenchmarkEncrypt encrypts one block, and the blocks of 1,000 EDEKs, in this process and in a worker.
func BenchmarkEncrypt(b *testing.B) {
	tok := softhsmtest.New(b)
	in, _, err := Load(b.Context(), tok.Module, 0)
	if err != nil {
		b.Fatal(err)
	}
	for name, l := range map[string]cryptoki.Library{"in process": cryptoki.Load(tok.Module), "worker": in} {
		if err := l.Initialize(); err != nil {
			b.Fatal(err)
		}
		defer l.Destroy()
		slots, err := l.GetSlotList(true)
		if err != nil {
			b.Fatal(err)
		}
		s, err := l.OpenSession(slots[0], p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
		if err != nil {
			b.Fatal(err)
		}
		pin, err := os.ReadFile(tok.PINFile)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Login(s, p11.CKU_USER, strings.TrimSpace(string(pin))); err != nil {
			b.Fatal(err)
		}
		key, err := l.GenerateKey(s, mech(p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)),
			[]*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_ENCRYPT, true)})
		if err != nil {
			b.Fatal(err)
		}
		for size, blocks := range map[string]int{"one block": 1, "batch": 2000} {
			b.Run(name+" "+size, func(b *testing.B) {
				data := make([]byte, 16*blocks)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := l.Encrypt(s, ecb, key, data); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
