package hsm_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/pkcs11"
	"claviger/provider"
)

// TestStartBeforeSurvey: with many keys a start does not wait until the token is listed. Reads find their key
// meanwhile, also one that the store has lost. A creation waits for the list.
func TestStartBeforeSurvey(t *testing.T) {
	const keys = 1200
	path, listed := filepath.Join(t.TempDir(), "claviger.db"), make(chan struct{})
	fillMany(t, path, keys)
	tok := &manyToken{keys: keys, extra: map[string]pkcs11.KeyInfo{}}
	closeMany(t)(openMany(t, path, tok, slog.New(slog.DiscardHandler))) // binds store and token
	for i, label := range []string{"lost@0", "migrated@5"} {
		tok.extra[label] = pkcs11.KeyInfo{ID: idOfMany(keys+i, 0), Label: label, Bits: 256, Sensitive: true,
			Encrypt: true}
	}
	tok.before = func(ctx context.Context) {
		select {
		case <-listed:
		case <-ctx.Done():
		}
	}
	p, s := openMany(t, path, tok, slog.New(slog.DiscardHandler))
	last := nameOfMany(keys - 1)
	if m, err := p.Metadata(t.Context(), last); err != nil || m[0] == nil {
		t.Errorf("%v, %v", m, err)
	}
	if err := p.EncryptBlocks(t.Context(), last+"@0", make([]byte, 16)); err != nil {
		t.Error(err)
	}
	if m, err := p.Metadata(t.Context(), strings.ToUpper(last)); err != nil || m[0] != nil {
		t.Errorf("a name in other letters: %v, %v", m, err)
	}
	if _, err := p.Metadata(t.Context(), "lost"); !errors.Is(err, provider.ErrLost) {
		t.Errorf("a lost key: %v", err)
	}
	spec := provider.Spec{Name: "new", Cipher: claviger.DefaultCipher, BitLength: 256}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	if _, err := p.Create(short, spec); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a creation before the survey: %v", err)
	}
	cancel()
	close(listed)
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Error(err)
	}
	if err := p.CheckUnknown(t.Context()); err == nil || !strings.Contains(err.Error(), "migrated@5") {
		t.Errorf("after the survey: %v", err)
	}
	closeMany(t)(p, s)
}

// TestSurveyUnderWay: a start with many keys does not wait for a list that takes long, and readiness says that there is
// none yet.
func TestSurveyUnderWay(t *testing.T) {
	const keys = 1200
	path := filepath.Join(t.TempDir(), "claviger.db")
	fillMany(t, path, keys)
	synctest.Test(t, func(t *testing.T) {
		tok := &manyToken{keys: keys}
		closeMany(t)(openMany(t, path, tok, slog.New(slog.DiscardHandler)))
		tok.before = func(ctx context.Context) { <-ctx.Done() }
		began := time.Now()
		p, s := openMany(t, path, tok, slog.New(slog.DiscardHandler))
		if took := time.Since(began); took >= 5*time.Second {
			t.Errorf("the start took %v", took)
		}
		if err := p.CheckUnknown(t.Context()); err == nil || !strings.Contains(err.Error(), "first survey") {
			t.Errorf("%v", err)
		}
		closeMany(t)(p, s)
	})
}

// TestVerifyLater: all versions are verified after the start, also those of keys that are not on the first page: first
// the newest one of each key.
func TestVerifyLater(t *testing.T) {
	const keys = 200
	path := filepath.Join(t.TempDir(), "claviger.db")
	fillMany(t, path, keys)
	synctest.Test(t, func(t *testing.T) {
		tok := &manyToken{keys: keys}
		closeMany(t)(openMany(t, path, tok, slog.New(slog.DiscardHandler)))
		tok.before = func(ctx context.Context) { <-ctx.Done() } // no list shows what is lost
		tok.lost = map[string]bool{nameOfMany(150) + "@0": true, nameOfMany(199) + "@2": true}
		p, s := openMany(t, path, tok, slog.New(slog.DiscardHandler))
		refused := func(want ...string) {
			t.Helper()
			err := p.CheckKeys(t.Context())
			for _, v := range []string{nameOfMany(150) + "@0", nameOfMany(199) + "@2"} {
				named := err != nil && strings.Contains(err.Error(), v)
				if named != strings.Contains(strings.Join(want, " "), v) {
					t.Errorf("%s is refused: %v; the error is %v", v, named, err)
				}
			}
		}
		refused()                   // the start has waited 5 s for the list
		time.Sleep(5 * time.Second) // 50 ms for each of 136 newest versions
		refused(nameOfMany(199) + "@2")
		time.Sleep(30 * time.Second) // for 400 others
		refused(nameOfMany(199)+"@2", nameOfMany(150)+"@0")
		closeMany(t)(p, s)
	})
}
