// Package faultmodule gives tests a PKCS#11 module that stands in front of
// another one, such as SoftHSM's, and makes faults on demand: error codes, delays,
// hangs, crashes, flipped bits, stale and renumbered handles, lost logins and
// sessions, and limits. The module is a C library of its own (module/module.c),
// which this package compiles. So a fault reaches the program in the same way as
// a vendor's, also in another process that has the module loaded: the orders lie
// in a file that both map.
package faultmodule

import (
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A Function is a function of PKCS #11 that the module forwards.
type Function int

// The functions, in the order of module.c.
const (
	Initialize Function = iota
	Finalize
	GetInfo
	GetSlotList
	GetSlotInfo
	GetTokenInfo
	GetMechanismList
	GetMechanismInfo
	OpenSession
	CloseSession
	CloseAllSessions
	GetSessionInfo
	Login
	Logout
	CreateObject
	DestroyObject
	GetAttributeValue
	FindObjectsInit
	FindObjects
	FindObjectsFinal
	EncryptInit
	Encrypt
	DecryptInit
	Decrypt
	GenerateKey
	GenerateKeyPair
	GenerateRandom
	SignInit
	Sign
	functions
)

// Words of the orders that concern all functions, as in module.c.
const (
	magic = iota
	latency
	stale
	renumbered
	sessionCap
	dataLimit
	refusedMechanism
	logouts
	sessionsGone
	released
	seed
	hangingKey
	firstLabel
	secondLabel
	firstHandle
	secondHandle
	firstFunction = 64
)

// Words of one function.
const (
	calls = iota
	running
	delay
	action
	value
	times
	permille
	done
	skip
	wordsOfFunction = 16
)

const (
	magicValue = 0x636c61766b657973
	size       = 65536 // of the orders, in bytes
)

// An Action is what an order does to a call.
type Action uint64

// The actions, as in module.c.
const (
	nothing   Action = iota
	Fail             // answers an error code; the module behind is not called
	FailAfter        // calls the module behind, then answers an error code
	Hang             // does not return until Release
	Abort            // ends the process with abort()
	Segfault         // ends the process with SIGSEGV
	Flip             // flips a bit of what C_Encrypt or C_Sign returns
	Exchange         // after the call, the handles of two objects change places; see ExchangeLabels
)

// Always as the Times of an Order carries it out until it is cancelled.
const Always = -1

// An Order is what happens to the next calls of one function.
type Order struct {
	Action   Action
	Value    uint // the CKR_ code of Fail and FailAfter
	Times    int  // how many calls; 0 means 1; Always
	Skip     int  // how many calls come before, and are not changed
	Permille int  // of 1,000 calls at random; 0 means each
}

// Module is a fault module in front of another module.
type Module struct {
	Path string // of the library, to load in place of the other

	words []uint64
}

// library compiles the module, once for a test process.
var library = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "faultmodule")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", //nolint:noctx // short
		"github.com/miekg/pkcs11", "claviger/internal/faultmodule").Output()
	folders := strings.Fields(string(out))
	if err != nil || len(folders) != 2 {
		return nil, fmt.Errorf("the headers of PKCS #11 and the module's source: %q, %w", folders, err)
	}
	headers, source := folders[0], filepath.Join(folders[1], "module", "module.c")
	path := filepath.Join(dir, "fault.so")
	cc := exec.Command("cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", //nolint:noctx // short
		"-Wno-unused-parameter", "-Wno-cast-function-type", "-Werror", "-I", headers, "-o", path, source, "-ldl")
	if out, err := cc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s cannot be compiled: %w\n%s", source, err, out)
	}
	return os.ReadFile(path)
})

// New makes a module in front of the library real. It has no order yet.
func New(t testing.TB, real string) *Module {
	t.Helper()
	content, err := library()
	if err != nil {
		t.Fatal(err)
	}
	m := &Module{Path: filepath.Join(t.TempDir(), "fault.so")}
	for name, text := range map[string][]byte{
		m.Path: content, m.Path + ".real": []byte(real + "\n"), m.Path + ".orders": make([]byte, size),
	} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(m.Path+".orders", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(mem) })
	m.words = unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), size/8) //nolint:gosec // mapped memory is aligned
	m.set(seed, 1)
	m.set(magic, magicValue)
	return m
}

func (m *Module) set(at int, v uint64) { atomic.StoreUint64(&m.words[at], v) }

func (m *Module) of(f Function, word int) *uint64 {
	return &m.words[firstFunction+int(f)*wordsOfFunction+word]
}

// Order makes the next calls of a function fail, or do what else it says. It
// replaces the function's earlier order.
func (m *Module) Order(f Function, o Order) {
	n := o.Times
	if n == 0 {
		n = 1
	}
	atomic.StoreUint64(m.of(f, times), 0)
	atomic.StoreUint64(m.of(f, action), uint64(o.Action))
	atomic.StoreUint64(m.of(f, value), uint64(o.Value))
	atomic.StoreUint64(m.of(f, skip), uint64(o.Skip))         //nolint:gosec // not negative
	atomic.StoreUint64(m.of(f, permille), uint64(o.Permille)) //nolint:gosec // not negative
	atomic.StoreUint64(m.of(f, times), uint64(n))             //nolint:gosec // -1 is Always there too
}

// OrderAll is Order for each function of a list, or for all without a list.
func (m *Module) OrderAll(o Order, list ...Function) {
	if len(list) == 0 {
		for f := range functions {
			list = append(list, f)
		}
	}
	for _, f := range list {
		m.Order(f, o)
	}
}

// Heal cancels all orders and limits, and releases hanging calls. Handles stay as
// they are.
func (m *Module) Heal() {
	for f := range functions {
		atomic.StoreUint64(m.of(f, times), 0)
		atomic.StoreUint64(m.of(f, action), uint64(nothing))
		atomic.StoreUint64(m.of(f, delay), 0)
	}
	m.SetLatency(0)
	m.LimitSessions(0)
	m.LimitData(0)
	m.RefuseMechanism(0)
	m.HangKey("")
	m.Release()
}

// Release lets all hanging calls continue.
func (m *Module) Release() { atomic.AddUint64(&m.words[released], 1) }

// SetLatency delays each call of each function.
func (m *Module) SetLatency(d time.Duration) { m.set(latency, uint64(d.Microseconds())) } //nolint:gosec // not negative

// Delay delays each call of one function, beyond the latency of all.
func (m *Module) Delay(f Function, d time.Duration) {
	atomic.StoreUint64(m.of(f, delay), uint64(d.Microseconds())) //nolint:gosec // not negative
}

// StaleHandles makes all handles of objects that were given so far invalid.
func (m *Module) StaleHandles() { atomic.AddUint64(&m.words[stale], 1) }

// Renumber exchanges the handles of neighbouring objects: an earlier handle then
// names another object, if there is one. Called again, it undoes that.
func (m *Module) Renumber() {
	for {
		n := atomic.LoadUint64(&m.words[renumbered])
		if atomic.CompareAndSwapUint64(&m.words[renumbered], n, n^1) {
			return
		}
	}
}

// LimitSessions bounds the open sessions of a process. 0 means no limit.
func (m *Module) LimitSessions(n int) { m.set(sessionCap, uint64(n)) } //nolint:gosec // not negative

// LimitData bounds the bytes of one C_Encrypt. 0 means no limit.
func (m *Module) LimitData(n int) { m.set(dataLimit, uint64(n)) } //nolint:gosec // not negative

// RefuseMechanism refuses one CKM_ value in C_EncryptInit and C_SignInit. 0 refuses none.
func (m *Module) RefuseMechanism(ckm uint) { m.set(refusedMechanism, uint64(ckm)) }

// HangKey has C_EncryptInit hang with the key of that label, until it is called
// again; "" is no key. Done(EncryptInit) counts these calls.
func (m *Module) HangKey(label string) { m.set(hangingKey, hash(label)) }

// ExchangeLabels names the two objects whose handles the action Exchange exchanges.
// The action applies to functions that concern objects, once both objects exist. The
// second exchange undoes the first.
func (m *Module) ExchangeLabels(first, second string) {
	m.UndoExchange()
	m.set(firstLabel, hash(first))
	m.set(secondLabel, hash(second))
}

// Exchanged reports whether the handles of two objects have changed places.
func (m *Module) Exchanged() bool { return atomic.LoadUint64(&m.words[firstHandle]) != 0 }

// UndoExchange undoes an exchange of handles.
func (m *Module) UndoExchange() { m.set(firstHandle, 0) }

// hash returns the FNV-1a hash of a label; 0 is no label.
func hash(label string) uint64 {
	if label == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(label)) // it never fails
	return h.Sum64()
}

// LogOut logs each process out at its next call.
func (m *Module) LogOut() { atomic.AddUint64(&m.words[logouts], 1) }

// CloseSessions closes all sessions of each process at its next call.
func (m *Module) CloseSessions() { atomic.AddUint64(&m.words[sessionsGone], 1) }

// Calls returns how often a function was called, by all processes together.
func (m *Module) Calls(f Function) int { return int(atomic.LoadUint64(m.of(f, calls))) } //nolint:gosec // a count

// Running returns how many calls of a function have not returned.
func (m *Module) Running(f Function) int { return int(atomic.LoadUint64(m.of(f, running))) } //nolint:gosec // a count

// Done returns how often an order of a function was carried out.
func (m *Module) Done(f Function) int { return int(atomic.LoadUint64(m.of(f, done))) } //nolint:gosec // a count
