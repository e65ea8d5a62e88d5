package pkcs11

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm/softhsmtest"
)

// wrongPIN returns the configuration of a new token with a wrong PIN, the file of the PIN, and a Meter before the
// token.
func wrongPIN(t *testing.T) (c Config, file, right string, m *Meter) {
	t.Helper()
	made := softhsmtest.New(t)
	pin, err := os.ReadFile(made.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "pin")
	writePIN(t, file, "87654321")
	c, m = config(made), new(Meter)
	c.PIN, c.PINSource, c.PINFile, c.Wrap = pinFile(file), "file "+file, file, m.Wrap
	return c, file, string(pin), m
}

func writePIN(t *testing.T, file, pin string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWrongPINOnce: a process tries a wrong PIN once, however often and by however many callers the token is opened. It
// tries another PIN at once.
func TestWrongPINOnce(t *testing.T) {
	c, file, right, m := wrongPIN(t)
	var log logtest.Buffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	const opens = 4
	says := make([]string, opens)
	var wg sync.WaitGroup
	for i := range opens {
		wg.Go(func() {
			tok, err := Open(t.Context(), c)
			if err == nil {
				_ = tok.Close()
				t.Error("a wrong PIN opens the token")
				return
			}
			says[i] = err.Error()
		})
	}
	wg.Wait()
	if n := m.Count("Login"); n != 1 {
		t.Errorf("%d logins with one wrong PIN", n)
	}
	for _, s := range says {
		if s != says[0] || !strings.Contains(s, "was tried once") {
			t.Errorf("not the same words: %s", s)
		}
	}
	if _, err := Open(t.Context(), c); err == nil || strings.Contains(log.String(), "a wrong PIN was tried") {
		t.Errorf("a PIN that is not tried is warned of: %v\n%s", err, log.String())
	}
	writePIN(t, file, right)
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("the right PIN: %v", err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// TestPINWithBlank: the error of a PIN that begins or ends with a blank says so, and does not show the PIN.
func TestPINWithBlank(t *testing.T) {
	c, file, right, _ := wrongPIN(t)
	right = strings.TrimSpace(right)
	for pin, hint := range map[string]bool{right + " ": true, " " + right: true, "1122 3344": false} {
		writePIN(t, file, pin)
		_, err := Open(t.Context(), c)
		if err == nil || strings.Contains(err.Error(), "begins or ends with a blank") != hint ||
			strings.Contains(err.Error(), strings.TrimSpace(pin)) {
			t.Errorf("hint %t: %v", hint, err)
		}
	}
}

// TestPINChanged: the PIN becomes wrong while the token is open. It is tried once, callers get the reason, and the
// library is not initialised again for it. The right PIN is accepted without a restart.
func TestPINChanged(t *testing.T) {
	c, file, right, m := wrongPIN(t)
	fault := faultmodule.New(t, c.Module)
	c.Module = fault.Path
	writePIN(t, file, right)
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close() //nolint:errcheck // the calls below are what is tested
	id, label := generate(t, tok, 1, 256)
	// While another session is logged in, SoftHSM counts every session as logged in.
	fault.LogOut()
	writePIN(t, file, "11112222")
	m.Reset()
	for range 3 {
		err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16))
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "was tried once") ||
			!strings.Contains(err.Error(), "correct the PIN; this server reads a corrected PIN file by itself") {
			t.Fatal(err)
		}
	}
	if m.Count("Login") != 1 || m.Count("Initialize") != 1 {
		t.Errorf("%d logins, initialised %d times", m.Count("Login"), m.Count("Initialize"))
	}
	writePIN(t, file, right)
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
		t.Errorf("the right PIN: %v", err)
	}
}

// TestPINOfAServer: a server that opens the token in the background is not told to start again.
func TestPINOfAServer(t *testing.T) {
	c, _, _, m := wrongPIN(t)
	c.Serving = true
	if _, err := Open(t.Context(), c); err == nil || strings.Contains(err.Error(), "start again") ||
		!strings.Contains(err.Error(), "this server reads") {
		t.Error(err)
	}
	c.Wrap = func(b Boundary) Boundary { return flagged{Boundary: m.Wrap(b), set: flagPINFinalTry} }
	if _, err := Open(t.Context(), c); err == nil || strings.Contains(err.Error(), "start again") ||
		!strings.Contains(err.Error(), "this server then logs in by itself") {
		t.Error(err)
	}
}

// TestPINOnlyIfRefused: an error that is not about the PIN does not count as a refusal of the PIN.
func TestPINOnlyIfRefused(t *testing.T) {
	c := config(softhsmtest.New(t))
	m := new(Meter)
	c.Wrap = m.Wrap
	m.Fail("Login", 1, p11.Error(p11.CKR_DEVICE_ERROR))
	if tok, err := Open(t.Context(), c); err == nil {
		_ = tok.Close()
		t.Fatal("logged in though C_Login failed")
	}
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if m.Count("Login") != 2 {
		t.Errorf("%d logins", m.Count("Login"))
	}
}
