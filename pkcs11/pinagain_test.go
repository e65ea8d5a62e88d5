package pkcs11

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/filestamp"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
)

// changePIN changes the PIN of the test's token in this process, so as another process than the worker.
func changePIN(t *testing.T, module, from, to string) {
	t.Helper()
	lib := p11.New(module)
	defer lib.Destroy()
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer lib.Finalize() //nolint:errcheck // the change is what counts
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := lib.OpenSession(slots[0], p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err == nil {
		err = lib.Login(s, p11.CKU_USER, from)
	}
	if err == nil {
		err = lib.SetPIN(s, from, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// touch gives a file the next second as its time.
func touch(t *testing.T, file string) {
	t.Helper()
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
}

// serverWithPIN opens a token in a worker, as a server does, with a PIN file of its own.
func serverWithPIN(t *testing.T) (tok *Token, m *Meter, file, pin string) {
	t.Helper()
	made := softhsmtest.New(t)
	b, err := os.ReadFile(made.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	pin, file = strings.TrimSpace(string(b)), made.PINFile
	c := config(made)
	c.PINFile, c.Worker, c.Serving = file, WorkerYes, true
	tok, m = openAs(t, c)
	generate(t, tok, 1, 256)
	return tok, m, file, pin
}

// endWorker ends the worker, and so the login.
func endWorker(t *testing.T, tok *Token, m *Meter) {
	t.Helper()
	tok.module.kill("the test ends it")
	m.Reset()
}

// refusedOnce checks that the token refuses the PIN, that the PIN was tried that often, and that it is not tried again.
func refusedOnce(t *testing.T, tok *Token, m *Meter, logins int) {
	t.Helper()
	eventually(t, func() error {
		if err := encryptWith(t, tok, 1); !IsPINRefused(err) {
			return errors.Join(errors.New("the PIN is not refused"), err)
		}
		return nil
	})
	for range 3 {
		if err := encryptWith(t, tok, 1); !IsPINRefused(err) || !strings.Contains(err.Error(), "touch the file") {
			t.Errorf("%v", err)
		}
	}
	if n := m.Count("Login"); n != logins {
		t.Errorf("%d logins, want %d", n, logins)
	}
}

// TestPINOfTheFileBecomesRight: the new PIN is in the file before the HSM has it, and so is refused. When the HSM has
// it, a touch of the file is enough. A touch before that costs one more try.
func TestPINOfTheFileBecomesRight(t *testing.T) {
	tok, m, file, pin := serverWithPIN(t)
	writePIN(t, file, "11112222")
	endWorker(t, tok, m)
	refusedOnce(t, tok, m, 1)
	touch(t, file)
	refusedOnce(t, tok, m, 2)
	changePIN(t, tok.cfg.Module, pin, "11112222")
	refusedOnce(t, tok, m, 2)
	writePIN(t, file, "11112222") // the same PIN
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if n := m.Count("Login"); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
}

// TestPINOfTheHSMComesBack: the PIN of the file is right, and the HSM has another PIN for a while.
func TestPINOfTheHSMComesBack(t *testing.T) {
	tok, m, file, pin := serverWithPIN(t)
	changePIN(t, tok.cfg.Module, pin, "11112222")
	endWorker(t, tok, m)
	refusedOnce(t, tok, m, 1)
	changePIN(t, tok.cfg.Module, "11112222", pin)
	touch(t, file)
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if n := m.Count("Login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

// TestLoginForgetsRefusals: a login that the token accepts ends the refusal of another PIN.
func TestLoginForgetsRefusals(t *testing.T) {
	tok, m, file, pin := serverWithPIN(t)
	writePIN(t, file, "11112222")
	endWorker(t, tok, m)
	refusedOnce(t, tok, m, 1)
	writePIN(t, file, pin)
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	triedPINs.mu.Lock()
	for _, r := range triedPINs.refused {
		if strings.Contains(r.token, tok.Info().Serial) {
			t.Errorf("this refusal is left: %v", r.err)
		}
	}
	triedPINs.mu.Unlock()
	changePIN(t, tok.cfg.Module, pin, "11112222")
	writePIN(t, file, "11112222")
	endWorker(t, tok, m)
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if n := m.Count("Login"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

// TestRefusedPINInTwoFiles: a wrong PIN that stands in two files is tried once, and once more for each change.
func TestRefusedPINInTwoFiles(t *testing.T) {
	tried, tries := newPINTrials(), 0
	one := filestamp.Stamp{ModTime: time.Unix(1, 0)}
	two := filestamp.Stamp{ModTime: time.Unix(2, 0)}
	for i, c := range []struct {
		source string
		file   filestamp.Stamp
		tries  int
	}{
		{"a", one, 1}, {"b", two, 1}, {"a", one, 1}, {"b", two, 1}, {"b", one, 2}, {"a", one, 2}, {"a", two, 3},
		{"b", one, 3}, {"a", filestamp.Stamp{}, 3},
	} {
		for range 2 { // the first may say that the library must be started again
			of := trial{pin: secret.Bytes("1"), source: c.source, file: c.file, started: time.Now()}
			_ = tried.try(t.Context(), of, func(bool) (bool, error) {
				tries++
				return false, loginError{p11.Error(p11.CKR_PIN_INCORRECT)}
			})
		}
		if tries != c.tries {
			t.Errorf("trial %d: tried %d times, want %d", i, tries, c.tries)
		}
	}
}
