package pkcs11

import (
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
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
	tok.aesKeys.seen.Store(true) // as if another process had destroyed the key
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

// staleSearches shows no object while it is stale, until it is initialised again, as SoftHSM does with a token that was
// away.
type staleSearches struct {
	Boundary
	stale *atomic.Bool
}

func (l staleSearches) Initialize(o ...p11.InitializeOption) error {
	l.stale.Store(false)
	return l.Boundary.Initialize(o...)
}

func (l staleSearches) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	found, more, err := l.Boundary.FindObjects(s, limit)
	if l.stale.Load() {
		return nil, false, err
	}
	return found, more, err
}

// openStale opens a token whose library can be made stale.
func openStale(t *testing.T) (*Token, *atomic.Bool) {
	t.Helper()
	stale := new(atomic.Bool)
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return staleSearches{b, stale} }
	tok := openBare(t, c)
	return tok, stale
}

// TestStaleLibrary: if a library shows no object any more, no key and no pair counts as lost or as destroyed before the
// library was started again, also after other keys were destroyed.
func TestStaleLibrary(t *testing.T) {
	tok, stale := openStale(t)
	ctx := t.Context()
	id, label, k := storePair(t, tok)
	sealed := seal(t, k.Public, secret.Bytes("x"))
	for n := range byte(4) {
		generate(t, tok, n, 256)
		if err := encryptWith(t, tok, n); err != nil {
			t.Fatal(err)
		}
	}
	destroy := func(n byte) error { return tok.Destroy(ctx, []byte{1, 2, 3, n}, fmt.Sprintf("k@%d", n)) }
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"a destruction", func() error { return destroy(0) }},
		{"a use after a destruction", func() error { return encryptWith(t, tok, 1) }},
		{"a list", func() error {
			list, err := tok.List(ctx)
			if err == nil && len(list) != 3 {
				err = fmt.Errorf("%d keys", len(list))
			}
			return err
		}},
		{"a pair", func() error { _, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, sealed); return err }},
		{"a search for a pair", func() error {
			k, err := tok.FindPair(ctx, id)
			if err == nil && k == nil {
				err = errors.New("no pair")
			}
			return err
		}},
		{"a destruction of a pair", func() error { return tok.DestroyPair(ctx, id, label) }},
	} {
		tok.mu.Lock()
		tok.emptied.pause = 0 // the starts before are long ago
		tok.mu.Unlock()
		tok.retire(tok.login) // so that no handle is known
		stale.Store(true)
		eventually(t, func() error {
			if err := c.call(); claviger.Is(err, claviger.Unavailable) {
				return err // the pause between two starts of the library
			} else if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			return nil
		})
	}
	stale.Store(false) // as it is by now, so that the search shows what was really destroyed
	for label, match := range map[string][]*p11.Attribute{
		"k@0": keyTemplate([]byte{1, 2, 3, 0}, nil), "pair": privateMatch(id, nil), "public": publicMatch(id)} {
		err := tok.do(ctx, "test", func(_ *login, s p11.SessionHandle) error {
			found, err := tok.search(s, match)
			if len(found) > 0 {
				t.Errorf("%s is still there", label)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestLastKeyDestroyed: a token whose last key this process has destroyed is empty, and the library is not started
// again for that.
func TestLastKeyDestroyed(t *testing.T) {
	tok, m := open(t)
	ctx, pair := t.Context(), []byte{9}
	importPair(t, tok, pair, "pair")
	if _, err := tok.FindPair(ctx, pair); err != nil {
		t.Fatal(err)
	}
	generate(t, tok, 1, 256)
	if err := encryptWith(t, tok, 1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tok.Destroy(ctx, []byte{1, 2, 3, 1}, "k@1"); err != nil {
			t.Error(err)
		}
		if list, err := tok.List(ctx); err != nil || len(list) > 0 {
			t.Errorf("%v, %v", list, err)
		}
		if err := encryptWith(t, tok, 1); !claviger.Is(err, claviger.KeyNotFound) {
			t.Error(err)
		}
		if err := tok.DestroyPair(ctx, pair, "pair"); err != nil {
			t.Error(err)
		}
		if k, err := tok.FindPair(ctx, pair); err != nil || k != nil {
			t.Errorf("%v, %v", k, err)
		}
	}
	if n := m.Count("Initialize"); n != 0 {
		t.Errorf("the library was started %d times", n)
	}
}

// TestStaleForMany: many callers at once find no key in a stale library. No call reports its key as lost.
func TestStaleForMany(t *testing.T) {
	tok, stale := openStale(t)
	for n := range byte(8) {
		generate(t, tok, n, 256)
		if err := encryptWith(t, tok, n); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		stale.Store(true)
		tok.retire(tok.login)
		var wg sync.WaitGroup
		for n := range byte(8) {
			wg.Go(func() {
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
					err := encryptWith(t, tok, n)
					if err == nil {
						return
					}
					if !claviger.Is(err, claviger.Unavailable) || time.Now().After(end) {
						t.Errorf("key %d: %v", n, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}
