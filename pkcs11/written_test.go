package pkcs11

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sync/errgroup"

	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
)

// envOpen makes this binary open the SoftHSM token of that label, and end. envModule and envPIN name the library and
// the file of the PIN.
const envOpen, envModule, envPIN = "CLAVIGER_TEST_OPEN", "CLAVIGER_TEST_MODULE", "CLAVIGER_TEST_PIN"

func openAndEnd() int {
	tok := softhsm.Token{Module: os.Getenv(envModule), Label: os.Getenv(envOpen), PINFile: os.Getenv(envPIN)}
	t, err := Open(context.Background(), config(tok))
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestConcurrentStarts: processes that open one SoftHSM token at the same time all succeed. Each login writes the
// token's file, and the other processes read it.
func TestConcurrentStarts(t *testing.T) {
	tok := softhsmtest.New(t)
	for range 10 {
		var g errgroup.Group
		for range 4 {
			g.Go(func() error {
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), envOpen+"="+tok.Label, envModule+"="+tok.Module, envPIN+"="+tok.PINFile)
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

func failsOnce(call string, err error) func(Boundary) Boundary {
	m := new(Meter)
	m.Fail(call, 1, err)
	return m.Wrap
}

// lateFlagsLibrary is a library that first shows a token without a PIN of the user.
type lateFlagsLibrary struct {
	Boundary
	seen bool
}

func (u *lateFlagsLibrary) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info, err := u.Boundary.GetTokenInfo(slot)
	if !u.seen {
		info.Flags &^= flagPINInitialized
	}
	u.seen = true
	return info, err
}

// TestLoginRetried: a login that fails once, because another process writes the token's file, is tried again.
func TestLoginRetried(t *testing.T) {
	tok := softhsmtest.New(t)
	for name, wrap := range map[string]func(Boundary) Boundary{
		"a general error": failsOnce("Login", p11.Error(p11.CKR_GENERAL_ERROR)),
		"no PIN":          failsOnce("Login", p11.Error(p11.CKR_USER_PIN_NOT_INITIALIZED)),
		"no flag of a PIN": func(b Boundary) Boundary {
			return &lateFlagsLibrary{Boundary: b}
		},
	} {
		c := config(tok)
		c.Wrap = wrap
		opened, err := Open(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}
}

// listHook is a library that calls then after it has listed its slots for the first time.
type listHook struct {
	Boundary
	then func()
}

func (l *listHook) GetSlotList(present bool) ([]uint, error) {
	slots, err := l.Boundary.GetSlotList(present)
	if l.then != nil {
		l.then()
	}
	l.then = nil
	return slots, err
}

// TestReadDuringWrite: Open opens a token whose file is empty or half written for a moment. It soon refuses a token
// whose file stays so, or that does not exist.
func TestReadDuringWrite(t *testing.T) {
	tok := softhsmtest.New(t)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(tok.PINFile), "tokens", "*", "token.object"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"empty": 0, "half": len(whole) / 2, "but the end": len(whole) - 1} {
		if err := os.WriteFile(files[0], whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		c := config(tok)
		c.Wrap = func(b Boundary) Boundary { // the library has read the file by then
			return &listHook{b, func() { written <- os.WriteFile(files[0], whole, 0o600) }}
		}
		opened, err := Open(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := opened.Close(); err != nil {
			t.Error(err)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	}

	refused := func(name string, c Config, once bool) {
		t.Helper()
		m := new(Meter)
		c.Wrap = m.Wrap
		began := time.Now()
		opened, err := Open(t.Context(), c)
		if err == nil {
			_ = opened.Close()
			t.Fatalf("%s: opened", name)
		}
		if took := time.Since(began); took > 10*writeTimeout {
			t.Errorf("%s: refused after %v", name, took)
		}
		if n := m.Count("Initialize"); once && n > 0 { // Open itself initialises the library before Wrap
			t.Errorf("%s: searched %d times again", name, n)
		}
	}
	c := config(tok)
	c.TokenLabel = "nosuch"
	refused("another token", c, true)
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("87654321"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = config(tok)
	c.PIN = pinFile(wrong)
	refused("a wrong PIN", c, true)
	if err := os.Truncate(files[0], 0); err != nil {
		t.Fatal(err)
	}
	refused("a damaged token", config(tok), false)
	if err := os.RemoveAll(filepath.Dir(files[0])); err != nil {
		t.Fatal(err)
	}
	refused("no token", config(tok), true)
}
