package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// resettable returns a module, and a library whose C_Finalize and C_Initialize return those errors at each call.
func resettable(finalize, initialize error) (*module, Boundary, *Meter) {
	m := new(Meter)
	m.Fail("Finalize", 100, finalize)
	m.Fail("Initialize", 100, initialize)
	return &module{generation: 1, users: 1}, m.Wrap(noLibrary{}), m
}

// noLibrary is a library that does nothing.
type noLibrary struct{ Boundary }

func (noLibrary) Finalize() error                                  { return nil }
func (noLibrary) Initialize(...p11.InitializeOption) error         { return nil }
func (noLibrary) CloseSession(p11.SessionHandle) error             { return nil }
func (noLibrary) OpenSession(_, _ uint) (p11.SessionHandle, error) { return 1, nil }

// TestModuleReset: a reset counts as a new generation if the library was initialised, whatever C_Finalize returned.
// Another reset of the same generation does nothing.
func TestModuleReset(t *testing.T) {
	failed := p11.Error(p11.CKR_DEVICE_ERROR)
	for _, c := range []struct {
		name                 string
		finalize, initialize error
		want                 error
	}{
		{"in order", nil, nil, nil},
		{"C_Finalize fails", failed, nil, nil},
		{"C_Initialize fails", nil, failed, failed},
		{"initialised already", failed, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED), nil},
	} {
		m, b, meter := resettable(c.finalize, c.initialize)
		err := m.reset(t.Context(), 1, b)
		if !errors.Is(err, c.want) || (m.current() == 2) != (c.want == nil) || m.resetting != nil ||
			meter.Count("Finalize") != 1 {
			t.Errorf("%s: %v, generation %d, resetting %v, calls %v", c.name, err, m.current(), m.resetting,
				meter.Counts())
		}
		if c.want != nil {
			continue
		}
		if err := m.reset(t.Context(), 1, b); err != nil || m.current() != 2 || meter.Count("Initialize") != 1 {
			t.Errorf("%s: the second reset: %v, %d calls", c.name, err, meter.Count("Initialize"))
		}
	}
}

// TestResetTogether: a reset during another one returns the result of that one, and calls that begin meanwhile wait for
// its end. Each gives up when its context ends.
func TestResetTogether(t *testing.T) {
	failed := p11.Error(p11.CKR_DEVICE_ERROR)
	m, b, meter := resettable(nil, failed)
	visit, err := m.enter(t.Context()) // so that the reset waits
	if err != nil {
		t.Fatal(err)
	}
	tok := &Token{module: m, b: b, log: slog.New(slog.DiscardHandler)}
	first, second, third := make(chan error, 1), make(chan error, 1), make(chan error, 2)
	go func() { first <- m.reset(t.Context(), 1, b) }()
	eventually(t, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.resetting == nil {
			return errors.New("no reset is under way")
		}
		return nil
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.reset(ended, 1, b); !errors.Is(err, context.Canceled) {
		t.Errorf("a reset whose context has ended: %v", err)
	}
	if _, err := m.enter(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("a call whose context has ended: %v", err)
	}
	go func() { second <- m.reset(t.Context(), 1, b) }()
	for range 2 { // the resets of one token, which wait for each other too
		go func() { third <- tok.reset(t.Context(), 1, nil) }()
	}
	eventually(t, func() error {
		tok.mu.Lock()
		defer tok.mu.Unlock()
		if tok.resetting == nil {
			return errors.New("the token's reset is not under way")
		}
		return nil
	})
	entered := make(chan error, 1)
	go func() {
		again, err := m.enter(t.Context())
		if err == nil {
			m.leave(again)
		}
		entered <- err
	}()
	m.leave(visit)
	for _, c := range []chan error{first, second, third} {
		if err := <-c; !errors.Is(err, failed) {
			t.Errorf("a reset returns %v", err)
		}
	}
	if err := <-third; err == nil { // it may have begun after the others, in the pause
		t.Error("a reset returns no error")
	}
	if n := meter.Count("Initialize"); n > 3 { // each may have begun after the one before
		t.Errorf("%d resets", n)
	}
	if err := <-entered; err != nil || m.active != 0 {
		t.Errorf("a call after the reset: %v, %d active", err, m.active)
	}
	m.hung = 1
	if err := m.reset(t.Context(), 1, b); !errors.Is(err, errHung) {
		t.Errorf("a reset while a call hangs: %v", err)
	}
}

// TestLeave: a call counts as hung until it leaves, if a reset stopped waiting for it.
func TestLeave(t *testing.T) {
	m := &module{epoch: 1, hung: 1, active: 2}
	m.leave(1) // it entered after that reset
	if m.hung != 1 || m.active != 1 {
		t.Errorf("%d calls hang, %d are active", m.hung, m.active)
	}
	m.leave(0)
	if m.hung != 0 || m.active != 0 {
		t.Errorf("%d calls hang, %d are active", m.hung, m.active)
	}
}

// TestWaitForReset: a call waits until the reset ends, until its context ends, or up to resetTimeout after the start of
// the reset.
func TestWaitForReset(t *testing.T) {
	r := &pendingReset{since: time.Now().Add(-resetTimeout), done: make(chan struct{})}
	if err := r.wait(t.Context()); err == nil || !strings.Contains(err.Error(), "still being initialised again") {
		t.Errorf("an old reset: %v", err)
	}
	r.since = time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	close(r.done)
	if err := r.wait(t.Context()); err != nil {
		t.Errorf("an ended reset: %v", err)
	}
}

// TestOpenModuleFails: the message for a library that cannot be used names the file and the reason.
func TestOpenModuleFails(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop.so")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                                   "PKCS#11 module " + dir + " is a folder;",
		loop:                                  "PKCS#11 module: stat " + loop,
		write(t, "x.so", "no library", 0o600): "cannot be loaded: it is no PKCS#11 library for this machine",
	} {
		m, err := openModule(t.Context(), path, false, 0, false)
		if err == nil || !strings.Contains(err.Error(), want) || m != nil {
			t.Errorf("%s: %v; want %q", path, err, want)
		}
	}
}

// TestLinksToALibrary: a library that is named by two paths is one module.
func TestLinksToALibrary(t *testing.T) {
	c := config(softhsmtest.New(t))
	link := filepath.Join(t.TempDir(), "link-softhsm.so")
	if err := os.Symlink(c.Module, link); err != nil {
		t.Fatal(err)
	}
	first, _ := openAs(t, c)
	c.Module = link
	second, _ := openAs(t, c)
	if first.module != second.module {
		t.Error("one library, two modules")
	}
}

// TestJoinFails: a library that stayed loaded cannot be initialised again. Open says so, and tries it again next time.
func TestJoinFails(t *testing.T) {
	c, fault := faulty(t)
	c.Worker = WorkerNo
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	fault.Order(faultmodule.GenerateRandom, faultmodule.Order{Action: faultmodule.Hang})
	ctx, cancel := context.WithCancel(t.Context())
	pinged := make(chan error, 1)
	go func() { pinged <- tok.Ping(ctx) }()
	eventually(t, func() error {
		if fault.Running(faultmodule.GenerateRandom) == 0 {
			return errors.New("not called")
		}
		return nil
	})
	cancel()
	if err := <-pinged; err == nil {
		t.Error("no error")
	}
	var log bytes.Buffer
	tok.log = slog.New(slog.NewTextHandler(&log, nil))
	tok.closeTimeout = time.Second // the goroutine of Close needs a part of it
	if err := tok.Close(); err == nil ||
		!strings.Contains(err.Error(), "a call did not return; the library stays loaded") ||
		!strings.Contains(log.String(), "did not return before the token was closed") {
		t.Fatalf("closed under a call: %v, %s", err, log.String())
	}
	fault.Release()
	eventually(t, func() error {
		tok.module.mu.Lock()
		defer tok.module.mu.Unlock()
		if tok.module.active > 0 {
			return fmt.Errorf("%d calls are in the library", tok.module.active)
		}
		return nil
	})
	for range 2 {
		fault.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR})
		if _, err := Open(t.Context(), c); !errors.Is(err, p11.Error(p11.CKR_DEVICE_ERROR)) ||
			!strings.Contains(err.Error(), "cannot be initialised again") {
			t.Errorf("the library fails: %v", err)
		}
	}
	again, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil || loaded(c.Module) {
		t.Errorf("%v; the library stays loaded: %t", err, loaded(c.Module))
	}
}

// TestOpenRefusesConfig: a configuration without a PIN, or with an unknown profile, is refused before the library is
// loaded.
func TestOpenRefusesConfig(t *testing.T) {
	c := config(softhsmtest.New(t))
	c.Profile = "lunar"
	if _, err := Open(t.Context(), c); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), `"lunar"`) {
		t.Errorf("profile: %v", err)
	}
	c.Profile, c.PIN = "", nil
	if _, err := Open(t.Context(), c); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "no source of the PIN") {
		t.Errorf("PIN: %v", err)
	}
}

// infoLibrary is a library that reports a token with changes.
type infoLibrary struct {
	Boundary
	change func(*p11.TokenInfo)
}

func (l infoLibrary) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info, err := l.Boundary.GetTokenInfo(slot)
	l.change(&info)
	return info, err
}

// TestInfo: without settings, the profile and the number of sessions follow from the manufacturer. The free memory is 0
// if the token does not report it. A PIN that was wrong before is logged.
func TestInfo(t *testing.T) {
	made := softhsmtest.New(t)
	for _, c := range []struct {
		profile  Profile
		sessions int
		free     uint
		low      bool
		want     TokenInfo
	}{
		{"", 0, unavailable, false, TokenInfo{Profile: NCipher, MaxSessions: 16, MaxData: 32 << 10}},
		{Luna, 3, 1234, true, TokenInfo{Profile: Luna, MaxSessions: 3, MaxData: 32 << 10, FreePrivateMemory: 1234}},
	} {
		var log bytes.Buffer
		cfg := config(made)
		cfg.Profile, cfg.MaxSessions, cfg.Log = c.profile, c.sessions, slog.New(slog.NewTextHandler(&log, nil))
		cfg.Wrap = func(b Boundary) Boundary {
			return infoLibrary{b, func(i *p11.TokenInfo) {
				i.ManufacturerID, i.Model, i.FreePrivateMemory = "nCipher Corp. Ltd  ", "nShield ", c.free
				i.FirmwareVersion = p11.Version{Major: 12, Minor: 3}
				if c.low {
					i.Flags |= flagPINCountLow
				}
			}}
		}
		tok, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.want.Label, c.want.Serial = made.Label, made.Serial
		c.want.Manufacturer, c.want.Model = "nCipher Corp. Ltd", "nShield"
		c.want.Firmware, c.want.Mechanism, c.want.Slot = "12.3", "CKM_AES_ECB", tok.found.slot
		if got := tok.Info(); got != c.want {
			t.Errorf("%+v\nwant %+v", got, c.want)
		}
		if _, limit := tok.Sessions(); limit != c.want.MaxSessions-1 {
			t.Errorf("%d calls at the same time, want %d", limit, c.want.MaxSessions-1)
		}
		if strings.Contains(log.String(), "a wrong PIN was tried") != c.low {
			t.Errorf("the log: %s", log.String())
		}
		if err := tok.Close(); err != nil || strings.Contains(log.String(), "did not return") {
			t.Errorf("closed: %v, %s", err, log.String())
		}
	}
}

// TestCloseGivesUp: Close returns although the library does not release the token.
func TestCloseGivesUp(t *testing.T) {
	c := config(softhsmtest.New(t))
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	tok.closeTimeout = 50 * time.Millisecond
	modulesMu.Lock() // release waits
	err = tok.Close()
	modulesMu.Unlock()
	if err == nil || !strings.Contains(err.Error(), "the library does not release token") {
		t.Error(err)
	}
	eventually(t, func() error {
		if loaded(tok.module.name.resolved) {
			return errors.New("the library stays loaded")
		}
		return nil
	})
}

// TestOpenDuringReset: an Open whose time ends while another token's reset hangs leaves the library as it was.
func TestOpenDuringReset(t *testing.T) {
	made := softhsmtest.New(t)
	tok, m := openAs(t, config(made))
	release := m.Hang("Finalize")
	defer release()
	m.Fail("GenerateRandom", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	pingHangs(t, tok, m, "Finalize", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, config(made)); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("opened during a reset: %v", err)
	}
	release()
	eventually(t, func() error { return tok.Ping(t.Context()) })
	eventually(t, func() error {
		tok.module.mu.Lock()
		defer tok.module.mu.Unlock()
		if tok.module.active != 0 || tok.module.users != 1 {
			return fmt.Errorf("%d calls in the library, %d users", tok.module.active, tok.module.users)
		}
		return nil
	})
}

// TestFirstLoginGivesUp: the first login returns its error if the context ends before the next try, or if the library
// cannot be initialised for that.
func TestFirstLoginGivesUp(t *testing.T) {
	c := config(softhsmtest.New(t))
	m := new(Meter)
	c.Wrap = m.Wrap
	m.Fail("Login", 1, p11.Error(p11.CKR_GENERAL_ERROR))
	m.Fail("Initialize", 1, p11.Error(p11.CKR_DEVICE_ERROR))
	if _, err := Open(t.Context(), c); !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) ||
		!errors.Is(err, p11.Error(p11.CKR_DEVICE_ERROR)) || loaded(c.Module) {
		t.Errorf("not initialised again: %v", err)
	}
	tok, m := openAs(t, c)
	tok.retire(tok.login)
	m.Fail("Login", 1, p11.Error(p11.CKR_GENERAL_ERROR))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tok.firstLogin(ctx); !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) || m.Count("Initialize") != 0 {
		t.Errorf("the context ended: %v, initialised %d times", err, m.Count("Initialize"))
	}
}

// TestLibraryWithoutSettings: SoftHSM cannot be initialised without its settings. If the user may not read them, the
// message names them.
func TestLibraryWithoutSettings(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make files that the test may not read")
	}
	c := config(softhsmtest.New(t))
	tokenFiles(t)
	conf := os.Getenv("SOFTHSM2_CONF")
	chmod(t, 0o600, conf)
	asNobody(func() {
		if _, err := openModule(t.Context(), c.Module, false, 0, false); err == nil ||
			!strings.Contains(err.Error(), "cannot be initialised: SoftHSM shows") ||
			!strings.Contains(err.Error(), conf) {
			t.Errorf("%v", err)
		}
	})
	if loaded(c.Module) {
		t.Error("the library stays loaded")
	}
}

// TestNoFolder: a token of another library than SoftHSM has no folder.
func TestNoFolder(t *testing.T) {
	c, _ := faulty(t)
	tok := openBare(t, c)
	if f, ok := tok.folder(); ok {
		t.Errorf("the folder is %s", f.path)
	}
}

// TestModuleOfOthers: a library that everybody may write, or in a folder that everybody may write, is not loaded. The
// error has the cure.
func TestModuleOfOthers(t *testing.T) {
	made := softhsmtest.New(t)
	c := config(made)
	dir := filepath.Join(t.TempDir(), "lib")
	c.Module = filepath.Join(dir, "hsm.so")
	code, err := os.ReadFile(made.Module)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(c.Module, code, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.Module, dir} {
		if err := os.Chmod(path, 0o777); err != nil { //nolint:gosec // the fault of the test
			t.Fatal(err)
		}
		for name, open := range map[string]func() error{
			"Open":        func() error { _, err := Open(t.Context(), c); return err },
			"OpenLibrary": func() error { _, err := OpenLibrary(t.Context(), c); return err },
		} {
			if err := open(); err == nil || !strings.Contains(err.Error(), "may be written by everybody (mode 0777)") ||
				!strings.HasSuffix(err.Error(), "cure: chmod o-w "+path) {
				t.Errorf("%s with %s: %v", name, path, err)
			}
		}
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// TestJoinWhileCallsHang: a module without users, in which a call or a reset hangs, takes no new user, and fails at
// once.
func TestJoinWhileCallsHang(t *testing.T) {
	hangs := &pendingReset{since: time.Now(), done: make(chan struct{})}
	for name, m := range map[string]*module{"call": {active: 1}, "reset": {resetting: hangs}} {
		begun := time.Now()
		if err := m.join(); !errors.Is(err, errHung) || m.users != 0 || m.epoch != 0 {
			t.Errorf("%s: %v, %d users, epoch %d", name, err, m.users, m.epoch)
		}
		if took := time.Since(begun); took >= drainTimeout {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// TestAwaitLeft: the release of the last user waits until the calls have left the library, for a second at most.
func TestAwaitLeft(t *testing.T) {
	for name, c := range map[string]struct {
		m     *module
		after time.Duration // after which the call leaves; 0: never
		want  time.Duration
	}{
		"no call":                {&module{users: 1}, 0, 0},
		"another user":           {&module{users: 2, active: 1}, 0, 0},
		"a call":                 {&module{users: 1, active: 1}, 300 * time.Millisecond, 300 * time.Millisecond},
		"a call that hangs":      {&module{users: 1, active: 1}, 0, time.Second},
		"a reset that waits too": {&module{users: 1, active: 1}, 300 * time.Millisecond, 300 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			waits := make(chan struct{})
			if name == "a reset that waits too" {
				c.m.allLeft = waits
			}
			begun := time.Now()
			if c.after > 0 {
				time.AfterFunc(c.after, func() { c.m.leave(0) })
			}
			c.m.awaitLeft()
			if took := time.Since(begun); took != c.want {
				t.Errorf("%s: it took %v, want %v", name, took, c.want)
			}
			if name == "a reset that waits too" {
				<-waits
			}
		})
	}
}
