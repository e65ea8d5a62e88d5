package pkcs11

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	p11 "github.com/miekg/pkcs11"
)

// module is a loaded library. A process may load and initialise each library
// once only, so tokens of one library share it.
type module struct {
	path string
	b    *p11.Ctx

	// busy is held for reading by every call, and for writing while the library is
	// initialised anew: a C_Finalize beside a running call crashes some libraries.
	busy sync.RWMutex
	// objects is what Token.objects holds.
	objects sync.Mutex

	mu         sync.Mutex
	users      int
	generation uint64 // of initialisations; sessions and handles live in one
}

var (
	modulesMu sync.Mutex
	modules   = map[string]*module{}
)

// openModule loads the library, or joins those that use it.
func openModule(path string) (*module, error) {
	modulesMu.Lock()
	defer modulesMu.Unlock()
	if m, ok := modules[path]; ok {
		m.users++
		return m, nil
	}
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		if errors.Is(err, fs.ErrNotExist) || err == nil {
			return nil, fmt.Errorf("PKCS#11 module %s is not there; install the HSM's client software, or name its library where it is", path)
		}
		return nil, fmt.Errorf("PKCS#11 module: %w", err)
	}
	b := p11.New(path)
	if b == nil {
		return nil, fmt.Errorf("PKCS#11 module %s cannot be loaded: it is no PKCS#11 library for this machine, or a library that it needs is missing (ldd %s tells)", path, path)
	}
	if err := initialize(b); err != nil {
		b.Destroy()
		return nil, fmt.Errorf("PKCS#11 module %s cannot be initialised: %w; the HSM client's own log or check program tells more", path, err)
	}
	m := &module{path: path, b: b, users: 1, generation: 1}
	modules[path] = m
	return m, nil
}

func initialize(b Boundary) error {
	err := b.Initialize()
	if errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return nil
	}
	return err
}

// release ends one use; the last one unloads the library.
func (m *module) release() error {
	modulesMu.Lock()
	defer modulesMu.Unlock()
	if m.users--; m.users > 0 {
		return nil
	}
	delete(modules, m.path)
	if !m.busy.TryLock() {
		// A call hangs in the library; to finalise under it could crash.
		return fmt.Errorf("PKCS#11 module %s: a call did not return; the library stays loaded", m.path)
	}
	defer m.busy.Unlock()
	err := m.b.Finalize()
	if errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		err = nil
	}
	m.b.Destroy()
	return err
}

// current is the generation in force.
func (m *module) current() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation
}

// reset initialises the library anew, unless somebody has since seen. It may be
// called when no call is under way; ok is false where one is.
func (m *module) reset(seen uint64, b Boundary) (ok bool, err error) {
	// Not Lock: a call that hangs would make all others wait behind us.
	if !m.busy.TryLock() {
		return false, nil
	}
	defer m.busy.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.generation != seen {
		return true, nil
	}
	_ = b.Finalize() // the library may have lost its state already
	if err := initialize(b); err != nil {
		return true, err
	}
	m.generation++
	return true, nil
}
