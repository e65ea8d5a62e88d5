package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/processtest"
	"claviger/internal/softhsm/softhsmtest"
)

// loaded reports whether the library is loaded.
func loaded(path string) bool {
	modulesMu.Lock()
	defer modulesMu.Unlock()
	_, ok := modules[moduleName{resolved: path}]
	return ok
}

// faulty returns the configuration of a new token behind a module that makes faults.
func faulty(t *testing.T) (Config, *faultmodule.Module) {
	t.Helper()
	c := config(softhsmtest.New(t))
	fault := faultmodule.New(t, c.Module)
	c.Module = fault.Path
	return c, fault
}

// openMayFail has the calls without which Open can succeed, and the reason.
var openMayFail = map[string]string{
	"Encrypt":           "the next mechanism is tried",
	"GetAttributeValue": "the key of the try ends with its session",
	"DestroyObject":     "the key of the try ends with its session",
	"CloseSession":      "most libraries have closed the session themselves",
}

// TestEachCallOfOpenFails: if a call of Open fails, Open returns that error and unloads the library.
func TestEachCallOfOpenFails(t *testing.T) {
	c := config(softhsmtest.New(t))
	m := new(Meter)
	c.Wrap = m.Wrap
	run := func() error {
		tok, err := Open(t.Context(), c)
		if err != nil {
			return err
		}
		return tok.Close()
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	counts := m.Counts()
	t.Log(counts)
	if counts["DestroyObject"] != 1 {
		t.Error("the key of the try is not destroyed")
	}
	for _, call := range slices.Sorted(maps.Keys(counts)) {
		m.Reset()
		times := 1
		if call == "GetTokenInfo" {
			times = 1000 // Open searches the token again for a second, see readDuringWrite
		}
		m.Fail(call, times, p11.Error(p11.CKR_ACTION_PROHIBITED))
		err := run()
		switch {
		case openMayFail[call] != "":
			if err != nil {
				t.Errorf("%s fails: %v", call, err)
			}
		case call == "GetTokenInfo":
			if !errors.Is(err, errNoTokenShown) || !claviger.IsUnreachable(err) {
				t.Errorf("%s fails: %v", call, err)
			}
		case !errors.Is(err, p11.Error(p11.CKR_ACTION_PROHIBITED)) || !claviger.Is(err, claviger.Invalid):
			t.Errorf("%s fails: %v", call, err)
		}
		open := m.Count("OpenSession") - m.Count("CloseSession")
		if call == "OpenSession" {
			open-- // the call that failed opened none
		}
		if open != 0 || loaded(c.Module) {
			t.Errorf("%s fails: %d sessions stay open; the library stays loaded: %t", call, open, loaded(c.Module))
		}
		m.Heal()
	}
}

// TestEachCallOfALoginFails: if a call of a later login fails once, the library is initialised again and the operation
// succeeds. If the call fails each time, the operation fails with that error.
func TestEachCallOfALoginFails(t *testing.T) {
	tok, m := open(t)
	logOut := func() {
		t.Helper()
		m.Heal()
		if err := tok.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		tok.retire(tok.login)
		tok.mu.Lock()
		tok.retryAt, tok.backoff = time.Time{}, 0
		tok.mu.Unlock()
		m.Reset()
	}
	logOut()
	if err := tok.Ping(t.Context()); err != nil || m.Count("CloseSession") != 2 {
		t.Fatalf("%d sessions of the earlier login were closed, want its own and an idle one; %v",
			m.Count("CloseSession"), err)
	}
	for call := range m.Counts() {
		if call == "CloseSession" || call == "GetTokenInfo" || call == "GenerateRandom" {
			continue // the first two may fail, see openMayFail; the last is not part of the login
		}
		logOut()
		m.Fail(call, 1, p11.Error(p11.CKR_HOST_MEMORY))
		if err := tok.Ping(t.Context()); err != nil || m.Count("Initialize") != 1 {
			t.Errorf("%s fails once: %v, initialised %d times", call, err, m.Count("Initialize"))
		}
		logOut()
		m.Fail(call, 100, p11.Error(p11.CKR_HOST_MEMORY))
		if err := tok.Ping(t.Context()); !errors.Is(err, p11.Error(p11.CKR_HOST_MEMORY)) ||
			!claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s fails: %v", call, err)
		}
	}
}

// TestNextMechanism: if the token refuses a mechanism, or does not list it, the next one is used, and the log and the
// error say why.
func TestNextMechanism(t *testing.T) {
	c, fault := faulty(t)
	for _, s := range []struct {
		refused []uint // by C_EncryptInit
		hidden  []uint // not in the list of C_GetMechanismList
		want    string // "" if no mechanism is left
		tried   string
	}{
		{nil, nil, "CKM_AES_ECB", ""},
		{[]uint{p11.CKM_AES_ECB}, nil, "CKM_AES_CBC", "CKM_AES_ECB (pkcs11: 0x70: CKR_MECHANISM_INVALID)"},
		{nil, []uint{p11.CKM_AES_ECB}, "CKM_AES_CBC", "CKM_AES_ECB (not offered)"},
		{[]uint{p11.CKM_AES_CBC}, []uint{p11.CKM_AES_ECB}, "", "CKM_AES_CBC (pkcs11: 0x70"},
	} {
		var log bytes.Buffer
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
		c.Wrap = func(b Boundary) Boundary { return hidesMechanisms{b, s.hidden} }
		for _, m := range s.refused {
			fault.RefuseMechanism(m)
		}
		tok, err := Open(t.Context(), c)
		if s.want == "" {
			if err == nil || !strings.Contains(err.Error(), s.tried) ||
				!strings.Contains(err.Error(), "allow one of them in the policies of the partition") {
				t.Errorf("no mechanism: %v", err)
			}
		} else if err != nil || tok.Info().Mechanism != s.want ||
			strings.Contains(log.String(), "does not encrypt by CKM_AES_ECB") != (s.tried != "") ||
			!strings.Contains(log.String(), s.tried) {
			t.Errorf("refused %v, hidden %v: %v, log %s", s.refused, s.hidden, err, log.String())
		}
		if err == nil {
			if err := tok.Close(); err != nil {
				t.Error(err)
			}
		}
		fault.Heal()
	}
}

// hidesMechanisms is a library that does not list some mechanisms.
type hidesMechanisms struct {
	Boundary
	hidden []uint
}

func (h hidesMechanisms) GetMechanismList(slot uint) ([]*p11.Mechanism, error) {
	list, err := h.Boundary.GetMechanismList(slot)
	return slices.DeleteFunc(list, func(m *p11.Mechanism) bool { return slices.Contains(h.hidden, m.Mechanism) }), err
}

// TestInitialize: the results of C_Initialize and C_Finalize that mean success are no errors, and other results are.
func TestInitialize(t *testing.T) {
	c, fault := faulty(t)
	again := func() (opened, closed error) {
		tok, err := Open(t.Context(), c)
		if err != nil {
			return err, nil
		}
		return nil, tok.Close()
	}
	for _, s := range []struct {
		function       faultmodule.Function
		action         faultmodule.Action
		code           uint
		opened, closed uint
	}{
		{faultmodule.Initialize, faultmodule.Fail, p11.CKR_GENERAL_ERROR, p11.CKR_GENERAL_ERROR, 0},
		{faultmodule.Initialize, faultmodule.FailAfter, p11.CKR_CRYPTOKI_ALREADY_INITIALIZED, 0, 0},
		{faultmodule.Finalize, faultmodule.FailAfter, p11.CKR_CRYPTOKI_NOT_INITIALIZED, 0, 0},
		{faultmodule.Finalize, faultmodule.FailAfter, p11.CKR_DEVICE_ERROR, 0, p11.CKR_DEVICE_ERROR},
	} {
		fault.Order(s.function, faultmodule.Order{Action: s.action, Value: s.code})
		opened, closed := again()
		for what, c := range map[string]struct {
			err  error
			want uint
		}{"Open": {opened, s.opened}, "Close": {closed, s.closed}} {
			if c.want == 0 && c.err != nil || c.want != 0 && !errors.Is(c.err, p11.Error(c.want)) {
				t.Errorf("function %d returns %v: %s returns %v", s.function, p11.Error(s.code), what, c.err)
			}
		}
		if loaded(c.Module) || processtest.Mapped(t, c.Module) {
			t.Errorf("function %d returns %v: the library stays loaded", s.function, p11.Error(s.code))
		}
	}
	if opened, closed := again(); opened != nil || closed != nil {
		t.Errorf("afterwards: %v, %v", opened, closed)
	}
}

// TestLibraryIsShared: the tokens of a library share it. It is initialised once, and finalised with the last token.
func TestLibraryIsShared(t *testing.T) {
	c, fault := faulty(t)
	c.Worker = WorkerNo
	first, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if n := fault.Calls(faultmodule.Finalize); n != 0 || !loaded(c.Module) {
		t.Errorf("finalised %d times under the second token", n)
	}
	if err := second.Ping(t.Context()); err != nil || !processtest.Mapped(t, c.Module) {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if i, f := fault.Calls(faultmodule.Initialize), fault.Calls(faultmodule.Finalize); i != 1 || f != 1 ||
		loaded(c.Module) {
		t.Errorf("initialised %d times, finalised %d times, loaded %t", i, f, loaded(c.Module))
	}
	if o, cl := fault.Calls(faultmodule.OpenSession), fault.Calls(faultmodule.CloseSession); o != cl {
		t.Errorf("%d sessions opened, %d closed", o, cl)
	}
}

// TestHandlesThatTheModuleLoses: a module loses logins, sessions and the handles of objects. Each operation succeeds.
func TestHandlesThatTheModuleLoses(t *testing.T) {
	c, fault := faulty(t)
	tok, m := openAs(t, c)
	resets := 0
	tok.OnReset(func() { resets++ })
	for _, o := range slices.Concat(keyOperations(), dataOperations()) {
		for name, lose := range map[string]func(){
			"login": fault.LogOut, "sessions": fault.CloseSessions, "handles": fault.StaleHandles,
		} {
			o.setUp(t, tok, m)
			want, err := o.run(t.Context(), tok) // with the handles in memory
			if err != nil {
				t.Fatal(err)
			}
			if o.prepare != nil {
				o.prepare(t, tok)
			}
			lose()
			if got, err := o.run(t.Context(), tok); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s without its %s: %v, %v; want %v", o.name, name, got, err, want)
			}
		}
	}
	if resets == 0 {
		t.Error("nothing was lost")
	}
	if n := fault.Calls(faultmodule.Initialize); n != 1 {
		t.Errorf("the library was initialised %d times", n)
	}
}

// TestOpenHangs: Open returns when its time ends, whichever call hangs, and a later Open succeeds.
func TestOpenHangs(t *testing.T) {
	c, fault := faulty(t)
	for _, s := range []struct {
		function faultmodule.Function
		text     string
	}{
		{faultmodule.Initialize, "did not start in time"},
		{faultmodule.GetSlotList, "did not answer in time"},
		{faultmodule.Login, "did not answer in time"},
		{faultmodule.GenerateKey, "did not answer in time"},
	} {
		fault.Order(s.function, faultmodule.Order{Action: faultmodule.Hang})
		ctx, cancel := context.WithCancel(t.Context())
		opened := make(chan error, 1)
		go func() {
			_, err := Open(ctx, c)
			opened <- err
		}()
		eventually(t, func() error {
			if fault.Running(s.function) == 0 {
				return errors.New("the function has not been called")
			}
			return nil
		})
		cancel()
		err := <-opened
		if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.Canceled) ||
			!strings.Contains(err.Error(), s.text) {
			t.Errorf("function %d hangs: %v", s.function, err)
		}
		fault.Release()
		eventually(t, func() error {
			tok, err := Open(t.Context(), c)
			if err == nil {
				err = tok.Close()
			}
			return err
		})
		eventually(t, func() error {
			if loaded(c.Module) {
				return errors.New("the library stays loaded")
			}
			return nil
		})
	}
}
