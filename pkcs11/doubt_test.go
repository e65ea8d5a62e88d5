package pkcs11

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/filestamp"
)

// doubtfulToken is a token with a PIN file of its own. C_Login answers a wrong PIN with a code of the vendor's own.
func doubtfulToken(t *testing.T) (c Config, m *Meter) {
	t.Helper()
	c, file, right, m := wrongPIN(t)
	writePIN(t, file, right)
	c.PINFile = file
	c.Wrap = func(b Boundary) Boundary { return vendorsLogin{m.Wrap(b)} }
	return c, m
}

// vendorsLogin is a library with a code of its own for a wrong PIN.
type vendorsLogin struct{ Boundary }

func (l vendorsLogin) Login(s p11.SessionHandle, user uint, pin string) error {
	err := l.Boundary.Login(s, user, pin)
	if isOneOf(err, p11.CKR_PIN_INCORRECT) {
		return p11.Error(p11.CKR_VENDOR_DEFINED | 9)
	}
	return err
}

// flaglessToken hides the flags that show a wrong try, as the tokens of some vendors do.
type flaglessToken struct{ Boundary }

func (l flaglessToken) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info, err := l.Boundary.GetTokenInfo(slot)
	info.Flags &^= flagPINCountLow | flagPINFinalTry
	return info, err
}

// TestDoubtfulPIN: the PIN of a token is changed while a server runs, and the token has a code of its own for a wrong
// PIN. The server tries the PIN five times, with longer and longer pauses, and then not again, whatever is requested
// and however often the token is opened. It uses a corrected PIN at once, without a restart.
func TestDoubtfulPIN(t *testing.T) {
	c, m := doubtfulToken(t)
	wrap := c.Wrap
	c.Wrap = func(b Boundary) Boundary { return flaglessToken{wrap(b)} }
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tok.Close() })
	generate(t, tok, 1, 256)
	right, err := os.ReadFile(c.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	writePIN(t, c.PINFile, "87654321") // to the token, this is as if its PIN were changed
	tok.retire(tok.login)
	m.Reset()
	tries := func(want int, says string) {
		t.Helper()
		for range 3 {
			err := tok.Ping(t.Context())
			if !claviger.Is(err, claviger.Unavailable) {
				t.Error(err)
			}
			other, err := Open(t.Context(), c)
			if err == nil {
				_ = other.Close()
				t.Error("opened")
			} else if !strings.Contains(err.Error(), says) {
				t.Errorf("after %d logins: %v", want, err)
			}
		}
		if n := m.Count("Login"); n != want {
			t.Errorf("%d logins, want %d", n, want)
		}
	}
	for n := 1; n <= len(pausesOfDoubt); n++ {
		tries(n, "is not tried before ")
		endPauseOfLogins(tok)
	}
	last := len(pausesOfDoubt) + 1
	stopped := "5 logins in a row have failed in this way"
	tries(last, stopped)
	for range 3 {
		endPauseOfLogins(tok)
		tries(last, stopped)
	}
	if err := tok.Ping(t.Context()); !IsPINRefused(err) || !strings.Contains(err.Error(), c.PINFile) {
		t.Errorf("%v", err)
	}
	// The file is written again, with the same PIN: one more try.
	writePIN(t, c.PINFile, "87654321")
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(c.PINFile, later, later); err != nil {
		t.Fatal(err)
	}
	endPauseOfLogins(tok)
	eventually(t, func() error { // the library is started again first, which may have to wait
		_ = tok.Ping(t.Context())
		if n := m.Count("Login"); n != last+1 {
			return fmt.Errorf("%d logins, want %d", n, last+1)
		}
		return nil
	})
	tries(last+1, "6 logins in a row have failed in this way")
	writePIN(t, c.PINFile, string(right))
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if n := m.Count("Login"); n != last+2 {
		t.Errorf("%d logins, want %d", n, last+2)
	}
}

// TestFaultAtLoginGoesAway: after a fault with a vendor's code, which was no wrong PIN, the server logs in by itself,
// and the next such fault has the first pause again.
func TestFaultAtLoginGoesAway(t *testing.T) {
	tok, m := open(t)
	generate(t, tok, 1, 256)
	for range 2 {
		tok.retire(tok.login)
		m.Fail("Login", 3, p11.Error(p11.CKR_VENDOR_DEFINED|9))
		m.Reset()
		for n := 1; n <= 3; n++ {
			if err := tok.Ping(t.Context()); !claviger.Is(err, claviger.Unavailable) || m.Count("Login") != n {
				t.Errorf("%v after %d logins, want %d", err, m.Count("Login"), n)
			}
			endPauseOfLogins(tok)
		}
		eventually(t, func() error { return encryptWith(t, tok, 1) })
	}
}

// TestPausesOfDoubt: the first pauses are short, because the fault may go away, and all logins together are too few to
// lock a token.
func TestPausesOfDoubt(t *testing.T) {
	d := doubt{err: loginError{p11.Error(p11.CKR_VENDOR_DEFINED | 9)}}
	var none filestamp.Stamp
	for n, pause := range pausesOfDoubt {
		d.logins = n + 1
		d.last = time.Now().Add(time.Minute - pause)
		if err := d.holdsBack("", none); err == nil || IsPINRefused(err) || !MayBeWrongPIN(err) {
			t.Errorf("a minute before the end of pause %d: %v", n, err)
		}
		d.last = time.Now().Add(-pause)
		if err := d.holdsBack("", none); err != nil {
			t.Errorf("at the end of pause %d: %v", n, err)
		}
	}
	d.logins, d.last = len(pausesOfDoubt)+1, time.Time{}
	if err := d.holdsBack("environment variable X", none); !IsPINRefused(err) || d.logins >= 10 ||
		!strings.Contains(err.Error(), "start again with the right PIN") {
		t.Errorf("after the last pause: %v", err)
	}
}
