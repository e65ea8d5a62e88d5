package pkcs11

import (
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/filestamp"
	"claviger/secret"
)

// TestRefusalEndsDoubt: once the token says that the PIN is wrong, the PIN is not in doubt any more. So after a change
// of its file it is tried at once.
func TestRefusalEndsDoubt(t *testing.T) {
	tried, wrong := newPINTrials(), loginError{p11.Error(p11.CKR_PIN_INCORRECT)}
	for i, c := range []struct {
		file    int64
		err     error
		doubted bool
	}{
		{1, loginError{p11.Error(p11.CKR_VENDOR_DEFINED | 9)}, false}, {1, wrong, true}, {2, wrong, false},
	} {
		called := false
		for range 2 { // the first try may return staleLibrary: the library must be started again
			of := trial{pin: secret.Bytes("1"), source: "a", started: time.Now(),
				file: filestamp.Stamp{ModTime: time.Unix(c.file, 0)}}
			_ = tried.try(t.Context(), of, func(doubted bool) (bool, error) {
				if called = true; doubted != c.doubted {
					t.Errorf("trial %d: in doubt: %t", i, doubted)
				}
				return false, c.err
			})
		}
		if !called {
			t.Errorf("trial %d was not made", i)
		}
		for _, d := range tried.doubts {
			d.last = time.Time{}
		}
	}
}

// TestEmptyTokenNotStarted: if the library cannot be started again for a token that shows no key, the operation fails.
// Blocks that were not encrypted are not returned as if they were.
func TestEmptyTokenNotStarted(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	if err := tok.Destroy(t.Context(), id, label); err != nil {
		t.Fatal(err)
	}
	tok.aesKeys.seen.Store(true) // as if another process had destroyed the key
	m.Fail("Initialize", 1000, p11.Error(p11.CKR_GENERAL_ERROR))
	defer m.Heal()
	if list, err := tok.List(t.Context()); !claviger.Is(err, claviger.Unavailable) || list != nil {
		t.Errorf("%v, %v", list, err)
	}
	tok.emptied = emptied{}
	if err := encryptWith(t, tok, 1); !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
}
