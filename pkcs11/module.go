package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/cryptoki"
	"claviger/pkcs11/worker"
	"claviger/secret"
)

const (
	// drainTimeout is the time that a reset waits for running calls, and blocks new ones. A call that runs longer
	// counts as hung.
	drainTimeout = 3 * time.Second
	// resetTimeout is the time that a call waits for the end of a reset, counted from the start of the reset. It is
	// longer than drainTimeout by the time that a library may need to initialise.
	resetTimeout = 10 * time.Second
)

// module is a loaded library. A process may load and initialise each library only once, so all tokens of a library
// share its module.
type module struct {
	path string // as configured, for messages
	name moduleName
	b    cryptoki.Library

	// objects is locked by Token.objects.
	objects sync.Mutex

	// loginsBegun and loginsEnded count the calls of C_Login by all tokens of the library.
	loginsBegun, loginsEnded atomic.Uint64

	mu         sync.Mutex
	users      int
	generation uint64    // number of initialisations; sessions and handles are valid in one generation only
	started    time.Time // before the last initialisation

	// Each call is between enter and leave, because some libraries crash if C_Finalize runs at the same time as
	// another call. While resetting is not nil, no call enters: a reset sets it, waits until active is 0, and sets it
	// to nil again.
	active    int
	resetting *pendingReset
	allLeft   chan struct{} // closed when the last call leaves; nil unless somebody waits for that
	// hung is the number of calls that a reset stopped waiting for: the calls that entered before epoch and have
	// not left. Until all of them leave, each reset fails at once and blocks no other calls.
	hung  int
	epoch uint64
}

// moduleName names a loaded library: its path without symbolic links, whether it runs in a worker, the limit of a call
// in the worker, and whether the worker serves one token only.
type moduleName struct {
	resolved  string
	inWorker  bool
	limit     time.Duration
	ownWorker bool
}

// kill ends the worker, so that all calls in the library return. It returns false if the library runs in this process.
func (m *module) kill(why string) bool {
	w, ok := m.b.(worker.Library)
	if ok {
		w.Kill(why)
	}
	return ok
}

// pendingReset is a reset that is under way.
type pendingReset struct {
	since time.Time
	done  chan struct{} // closed when the reset ends
	err   error         // result of the reset; read it after done is closed
}

// wait waits until the reset ends, up to resetTimeout, because C_Finalize may hang.
func (r *pendingReset) wait(ctx context.Context) error {
	timer := time.NewTimer(time.Until(r.since.Add(resetTimeout)))
	defer timer.Stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("the PKCS#11 library is still being initialised again")
	}
}

var (
	modulesMu sync.Mutex
	modules   = map[moduleName]*module{}
)

// openModule loads the library, or adds a user to the module if the library is loaded. If ctx ends while a worker loads
// or initialises the library, openModule ends the worker and fails. A library in this process cannot be stopped.
func openModule(ctx context.Context, path string, inWorker bool, callLimit time.Duration, ownWorker bool) (*module,
	error) {
	modulesMu.Lock()
	defer modulesMu.Unlock()
	if err := ctx.Err(); err != nil { // another library hung while this one waited for its turn
		return nil, fmt.Errorf("PKCS#11 module %s was not loaded in time: %w", path, err)
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return nil, fmt.Errorf("PKCS#11 module %s is a folder; name the library in it", path)
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("PKCS#11 module %s does not exist; install the HSM's client software, or name its "+
				"library where it is", path)
		}
		return nil, fmt.Errorf("PKCS#11 module: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 module: %w", err)
	}
	name := moduleName{resolved: resolved} // without a worker, the library is loaded once, and its calls have no limit
	if inWorker {
		name = moduleName{resolved, inWorker, callLimit, ownWorker}
	}
	if m, ok := modules[name]; ok {
		if err := m.join(); err != nil {
			return nil, fmt.Errorf("PKCS#11 module %s cannot be initialised again: %w", path, err)
		}
		return m, nil
	}
	if faults := ModuleFaults(path, secret.Self()); len(faults) > 0 {
		return nil, errors.New(strings.Join(faults, "; "))
	}
	b, err := load(ctx, path, inWorker, callLimit)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, fmt.Errorf("PKCS#11 module %s cannot be loaded: it is no PKCS#11 library for this machine, or a "+
			"library that it needs is missing (ldd %s shows which)", path, path)
	}
	m := &module{path: path, name: name, b: b, users: 1, generation: 1, started: time.Now()}
	inTime := context.AfterFunc(ctx, func() { m.kill("it did not initialise its library in time") })
	err = initialize(b)
	inTime()
	if err != nil {
		b.Destroy()
		return nil, notInitialized(path, err)
	}
	modules[name] = m
	return m, nil
}

// notInitialized explains err, the result of C_Initialize of the library at path.
func notInitialized(path string, err error) error {
	fault := softHSMFault(&Config{Module: path})
	switch {
	case errors.Is(fault, fs.ErrNotExist): // a missing folder may come back, as a device that does not answer
		return fmt.Errorf("PKCS#11 module %s cannot be initialised (%w): %w", path, err, fault)
	case fault != nil:
		return fmt.Errorf("PKCS#11 module %s cannot be initialised: %w", path, fault)
	}
	return fmt.Errorf("PKCS#11 module %s cannot be initialised: %w; the HSM client's own log or check program says "+
		"more", path, err)
}

// load loads the library, into this process or into a worker. It returns nil if the library cannot be loaded.
func load(ctx context.Context, path string, inWorker bool, callLimit time.Duration) (cryptoki.Library, error) {
	if !inWorker {
		return cryptoki.Load(path), nil
	}
	c, _, err := worker.Load(ctx, path, callLimit)
	return c, err
}

func initialize(b Boundary) error {
	err := b.Initialize()
	if errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return nil
	}
	return err
}

// join adds a user. A module without users is still loaded only because a call hung in the library. Once that call
// has left, join initialises the library again. Until then it fails, so that attempts to open a token do not add calls
// that hang.
func (m *module) join() error {
	m.mu.Lock()
	unused, seen := m.users == 0, m.generation
	if unused && (m.active > 0 || m.resetting != nil) {
		m.mu.Unlock()
		return claviger.Unreachable(errHung)
	}
	m.users++
	m.mu.Unlock()
	if !unused {
		return nil
	}
	err := m.reset(context.Background(), seen, m.b)
	if err != nil {
		m.mu.Lock()
		m.users--
		m.mu.Unlock()
	}
	return err
}

// release removes a user. When the last user is removed, it unloads the library.
func (m *module) release() error {
	modulesMu.Lock()
	defer modulesMu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users--; m.users > 0 {
		return nil
	}
	if (m.active > 0 || m.resetting != nil) && !m.kill("a call did not return before the token was closed") {
		// C_Finalize could crash while a call runs.
		return fmt.Errorf("PKCS#11 module %s: a call did not return; the library stays loaded", m.path)
	}
	delete(modules, m.name)
	err := m.b.Finalize()
	var gone worker.GoneError
	if errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)) || errors.As(err, &gone) {
		err = nil
	}
	m.b.Destroy()
	return err
}

// current returns the generation, which does not change between enter and leave.
func (m *module) current() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation
}

// startedAt returns a time before the last initialisation. All that the library reads at its start was read since.
func (m *module) startedAt() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.started
}

// enter must be called before C calls. It waits while a reset runs. Pass its result to leave.
func (m *module) enter(ctx context.Context) (visit uint64, err error) {
	for {
		m.mu.Lock()
		r := m.resetting
		if r == nil {
			m.active++
			visit = m.epoch
			m.mu.Unlock()
			return visit, nil
		}
		m.mu.Unlock()
		if err := r.wait(ctx); err != nil {
			return 0, err
		}
	}
}

// leave must be called after the C calls that follow an enter.
func (m *module) leave(visit uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.active--
	if visit < m.epoch {
		m.hung--
	}
	if m.active == 0 && m.allLeft != nil {
		close(m.allLeft)
		m.allLeft = nil
	}
}

// errHung is the error of a reset that cannot run because calls hang in the library.
var errHung = errors.New("calls hang in the HSM's library, so it cannot be initialised again; if they keep " +
	"hanging, restart claviger")

// reset initialises the library again, unless another reset did so after generation seen. The caller must not be
// between enter and leave.
func (m *module) reset(ctx context.Context, seen uint64, b Boundary) error {
	m.mu.Lock()
	if m.users == 0 { // a call that ends after the last token was closed must not start the library again
		m.mu.Unlock()
		return errors.New("the PKCS#11 library is no longer in use")
	}
	if m.generation != seen {
		m.mu.Unlock()
		return nil
	}
	if r := m.resetting; r != nil {
		m.mu.Unlock()
		if err := r.wait(ctx); err != nil {
			return err
		}
		return r.err
	}
	if m.hung > 0 {
		m.mu.Unlock()
		return errHung
	}
	r := &pendingReset{since: time.Now(), done: make(chan struct{})}
	m.resetting = r
	allLeft := make(chan struct{})
	if m.active == 0 {
		close(allLeft)
	} else {
		m.allLeft = allLeft
	}
	m.mu.Unlock()

	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-allLeft:
	case <-timer.C:
		if m.kill("calls did not return before the library was initialised again") {
			waitShort(allLeft)
		}
		m.mu.Lock()
		if m.active > 0 {
			defer m.mu.Unlock()
			m.epoch++
			m.hung = m.active
			m.allLeft = nil
			m.endReset(r, errHung)
			return errHung
		}
		m.mu.Unlock()
	}
	return m.initializeAgain(r, b)
}

// initializeAgain is the last step of a reset. No call is in the library.
func (m *module) initializeAgain(r *pendingReset, b Boundary) error {
	_ = b.Finalize() // the library may have lost its state already
	started := time.Now()
	err := initialize(b)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.generation++
		m.started = started
	}
	m.endReset(r, err)
	return err
}

// awaitLeft is called before the last user is released. It waits until no call is in the library, for the time that
// callers need to return.
func (m *module) awaitLeft() {
	m.mu.Lock()
	if m.active == 0 || m.users > 1 {
		m.mu.Unlock()
		return
	}
	if m.allLeft == nil {
		m.allLeft = make(chan struct{})
	}
	c := m.allLeft
	m.mu.Unlock()
	waitShort(c)
}

// waitShort waits until c is closed, for the time that the callers of a killed worker need to return.
func waitShort(c <-chan struct{}) {
	select {
	case <-c:
	case <-time.After(time.Second):
	}
}

// endReset lets calls enter again. The caller holds m.mu.
func (m *module) endReset(r *pendingReset, err error) {
	m.resetting, r.err = nil, err
	close(r.done)
}
