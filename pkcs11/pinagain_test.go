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

// touch sets a file's modification time to one second from now.
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

// wantRefused checks that the token refuses the PIN after this number of logins, and that the PIN is not tried again.
func wantRefused(t *testing.T, tok *Token, m *Meter, logins int) {
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
	wantRefused(t, tok, m, 1)
	touch(t, file)
	wantRefused(t, tok, m, 2)
	softhsmtest.ChangePIN(t, tok.cfg.Module, pin, "11112222")
	wantRefused(t, tok, m, 2)
	writePIN(t, file, "11112222") // the same PIN
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if n := m.Count("Login"); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
}

// TestPINOfTheHSMComesBack: the PIN of the file is right, and the HSM has another PIN for a while.
func TestPINOfTheHSMComesBack(t *testing.T) {
	tok, m, file, pin := serverWithPIN(t)
	softhsmtest.ChangePIN(t, tok.cfg.Module, pin, "11112222")
	endWorker(t, tok, m)
	wantRefused(t, tok, m, 1)
	softhsmtest.ChangePIN(t, tok.cfg.Module, "11112222", pin)
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
	wantRefused(t, tok, m, 1)
	writePIN(t, file, pin)
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	triedPINs.mu.Lock()
	for _, r := range triedPINs.refused {
		if strings.Contains(r.token, tok.Info().Serial) {
			t.Errorf("this refusal is left: %v", r.err)
		}
	}
	triedPINs.mu.Unlock()
	softhsmtest.ChangePIN(t, tok.cfg.Module, pin, "11112222")
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
		for range 2 { // the first try may return staleLibrary: the library must be started again
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

// TestRefusedPINIsTriedAFewTimes: a program touches the file of a wrong PIN again and again. The PIN is not tried so
// often that a token locks, whatever the code of its refusal is. Another PIN is tried at once.
func TestRefusedPINIsTriedAFewTimes(t *testing.T) {
	for _, code := range []uint{p11.CKR_PIN_INCORRECT, p11.CKR_VENDOR_DEFINED | 9} {
		tried, tries := newPINTrials(), 0
		try := func(pin string, n int) error {
			of := trial{pin: secret.Bytes(pin), source: "a", file: filestamp.Stamp{ModTime: time.Unix(int64(n), 0)}}
			for _, d := range tried.doubts {
				d.last = time.Time{} // its pause is over
			}
			for { // the first try may return staleLibrary: the library must be started again
				of.started = time.Now()
				err := tried.try(t.Context(), of, func(bool) (bool, error) {
					tries++
					return false, loginError{p11.Error(code)}
				})
				if !errors.As(err, new(staleLibrary)) {
					return err
				}
			}
		}
		var last error
		for n := range 30 {
			last = try("1", n+1)
		}
		if tries != mostLogins || last == nil {
			t.Errorf("%v: tried %d times, want %d; %v", p11.Error(code), tries, mostLogins, last)
		}
		if code == p11.CKR_PIN_INCORRECT && !errors.As(last, new(spentPIN)) {
			t.Errorf("the message would say that the PIN is tried again: %v", last)
		}
		if text := last.Error(); code != p11.CKR_PIN_INCORRECT && !strings.Contains(text, "start again") {
			t.Errorf("%v: %s", p11.Error(code), text)
		}
		if _ = try("2", 31); tries != mostLogins+1 {
			t.Errorf("%v: another PIN was not tried", p11.Error(code))
		}
	}
}

// TestChangedPINOfASlowHSM: the PIN file was changed while another token of the library is open. So the library is
// started again before the PIN is tried, also if the HSM needs long to show its token.
func TestChangedPINOfASlowHSM(t *testing.T) {
	tok, _, file, _ := serverWithPIN(t)
	touch(t, file)
	slow := new(Meter)
	slow.SetLatency(writeTimeout / 2)
	c := tok.cfg
	c.Wrap = slow.Wrap
	other, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	slow.SetLatency(0)
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// TestLoggedInAlready: a token that is logged in already does not compare the PIN, so its answer does not clear the
// recorded refusal of a PIN.
func TestLoggedInAlready(t *testing.T) {
	tok, _ := open(t)
	of := trial{module: tok.module.name.resolved, token: tok.found}
	refused := pinHash{1}
	set := func(r *refusedPIN) {
		triedPINs.mu.Lock()
		defer triedPINs.mu.Unlock()
		if delete(triedPINs.refused, refused); r != nil {
			triedPINs.refused[refused] = r
		}
	}
	set(&refusedPIN{token: of.name()})
	defer set(nil)
	second, err := tok.connect(t.Context()) // while the first login goes on
	if err != nil {
		t.Fatal(err)
	}
	defer tok.b.CloseSession(second.session) //nolint:errcheck // it ends with the test
	triedPINs.mu.Lock()
	defer triedPINs.mu.Unlock()
	if triedPINs.refused[refused] == nil {
		t.Error("the refusal was forgotten")
	}
}

// TestRefusalNeedsANewStart: after a refusal the PIN of the token may be changed. So the next PIN, from whichever file,
// is compared by a library that was started after the refusal.
func TestRefusalNeedsANewStart(t *testing.T) {
	tried := newPINTrials()
	try := func(pin, source string, started time.Time, result error) error {
		of := trial{pin: secret.Bytes(pin), source: source, started: started}
		return tried.try(t.Context(), of, func(bool) (bool, error) { return result == nil, result })
	}
	begun := time.Now()
	if err := try("1", "a", begun, loginError{p11.Error(p11.CKR_PIN_INCORRECT)}); !isPIN(err) {
		t.Error(err)
	}
	if err := try("2", "b", begun, nil); !errors.As(err, new(staleLibrary)) {
		t.Errorf("a library that was started before the refusal: %v", err)
	}
	if err := try("2", "b", time.Now(), nil); err != nil {
		t.Error(err)
	}
}

// TestSpentPIN: the error of a PIN that was tried too often counts as a refusal, has the token's code, and says that
// the PIN is not tried again.
func TestSpentPIN(t *testing.T) {
	tok, _ := open(t)
	err := tok.withCure("kms", secret.Bytes("1"), spentPIN{p11.Error(p11.CKR_PIN_INCORRECT)})
	if !errors.As(err, new(refusal)) || !errors.Is(err, p11.Error(p11.CKR_PIN_INCORRECT)) ||
		!strings.Contains(err.Error(), "it was tried 8 times and is not tried again") {
		t.Errorf("%v", err)
	}
}

// TestLoginForgetsRefusalsOfItsToken: a login that one token accepts ends no refusal, and no doubt, of another token.
func TestLoginForgetsRefusalsOfItsToken(t *testing.T) {
	tried := newPINTrials()
	try := func(module string, err error) error {
		of := trial{module: module, pin: secret.Bytes("1"), started: time.Now()}
		return tried.try(t.Context(), of, func(bool) (bool, error) { return err == nil, err })
	}
	_ = try("refuses", loginError{p11.Error(p11.CKR_PIN_INCORRECT)})
	_ = try("doubts", loginError{p11.Error(p11.CKR_VENDOR_DEFINED | 9)})
	if err := try("accepts", nil); err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"refuses", "doubts"} {
		if err := try(module, nil); err == nil {
			t.Errorf("%s: the PIN was tried again", module)
		}
	}
}
