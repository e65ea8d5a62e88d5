package pkcs11

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// TestTokenAwayAndBack: the folder of SoftHSM's tokens is moved away while a server runs, and back. Meanwhile no key
// counts as lost. Afterwards calls work within seconds, although the library that ran at first shows an empty token.
func TestTokenAwayAndBack(t *testing.T) {
	for _, mode := range []WorkerMode{WorkerNo, WorkerYes} {
		t.Run(string(mode), func(t *testing.T) {
			made := softhsmtest.New(t)
			c := config(made)
			c.Worker = mode
			tok, _ := openAs(t, c)
			generate(t, tok, 1, 256)
			if err := encryptWith(t, tok, 1); err != nil {
				t.Fatal(err)
			}
			tokens := filepath.Join(filepath.Dir(made.PINFile), "tokens")
			move := func(from, to string) {
				if err := os.Rename(from, to); err != nil {
					t.Fatal(err)
				}
			}
			move(tokens, tokens+".away")
			if err := os.Mkdir(tokens, 0o700); err != nil {
				t.Fatal(err)
			}
			said := ""
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if list, err := tok.List(t.Context()); err == nil && len(list) == 0 {
					t.Fatal("the keys count as lost")
				}
				err := encryptWith(t, tok, 1)
				if claviger.Is(err, claviger.KeyNotFound) {
					t.Fatalf("the key counts as lost: %v", err)
				}
				if err != nil {
					said += err.Error() + "\n"
				}
			}
			if !strings.Contains(said, "the token may be away") || strings.Contains(said, "--init-token") {
				t.Errorf("the errors do not say that the token may be away: %s", said)
			}
			if err := os.RemoveAll(tokens); err != nil {
				t.Fatal(err)
			}
			move(tokens+".away", tokens)
			begun := time.Now()
			eventually(t, func() error { return encryptWith(t, tok, 1) })
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("the token was used again after %v", took)
			}
		})
	}
}

// TestEmptyToken: a token that has lost all its keys costs a new start of the library once in a while, and each answer
// names the missing key.
func TestEmptyToken(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	if err := encryptWith(t, tok, 1); err != nil {
		t.Fatal(err)
	}
	if err := tok.Destroy(t.Context(), id, label); err != nil {
		t.Fatal(err)
	}
	tok.heldKeys.Store(true) // as if another process had destroyed the key
	m.Reset()
	for range 20 {
		if err := encryptWith(t, tok, 1); !claviger.Is(err, claviger.KeyNotFound) {
			t.Errorf("%v", err)
		}
		if list, err := tok.List(t.Context()); err != nil || len(list) > 0 {
			t.Errorf("%v %v", list, err)
		}
	}
	if n := m.Count("Initialize"); n < 1 || n > 4 {
		t.Errorf("the library was started %d times", n)
	}
}

// TestListedTokenEmptied: a token has held keys also if they were only listed. So a list that is empty later is not
// believed before the library was started again.
func TestListedTokenEmptied(t *testing.T) {
	c := config(softhsmtest.New(t))
	tok, m := openAs(t, c)
	other, _ := openAs(t, c)
	id, label := generate(t, other, 1, 256)
	if list, err := tok.List(t.Context()); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := other.Destroy(t.Context(), id, label); err != nil {
		t.Fatal(err)
	}
	m.Reset()
	if list, err := tok.List(t.Context()); err != nil || len(list) > 0 {
		t.Error(list, err)
	}
	if n := m.Count("Initialize"); n != 1 {
		t.Errorf("the library was started %d times, want 1", n)
	}
}
