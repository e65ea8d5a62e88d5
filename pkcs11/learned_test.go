package pkcs11

import (
	"errors"
	"fmt"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// TestLearnedIsPruned: what was learned of keys that are not used again is forgotten, and what still counts is kept.
func TestLearnedIsPruned(t *testing.T) {
	var l learned[int]
	for n := range maxLearned {
		name := keyName{label: fmt.Sprint(n)}
		if first := l.set(name, n); first != (n == 0) {
			t.Errorf("first: %t at %d", first, n)
		}
		if n > 0 {
			l.byKey.Store(name, lesson[int]{n, time.Now()}) // as if learnedFor had passed
		}
	}
	l.set(keyName{label: "new"}, 7)
	if n := l.keys.Load(); n != 2 {
		t.Errorf("%d keys are remembered, want 2", n)
	}
	for label, want := range map[string]int{"0": 0, "new": 7} {
		if v, known, counts := l.get(keyName{label: label}); v != want || !known || !counts {
			t.Errorf("%s: %d, %t, %t", label, v, known, counts)
		}
		if last := l.drop(keyName{label: label}); last != (l.keys.Load() == 0) {
			t.Errorf("%s: last: %t", label, last)
		}
	}
}

// TestDataLimitOfOneKey: a key that the token refuses because of the length of the data, even for one block, does not
// make the calls with other keys smaller. A key that is destroyed leaves nothing behind.
func TestDataLimitOfOneKey(t *testing.T) {
	tok, m := openBroken(t, p11.CKR_DATA_LEN_RANGE, nil, "k@1")
	if err := encryptWith(t, tok, 1); !errors.Is(err, p11.Error(p11.CKR_DATA_LEN_RANGE)) {
		t.Error(err)
	}
	id := []byte{1, 2, 3, 1}
	if err := tok.EncryptBlocks(t.Context(), id, "k@1", nil, make([]byte, 4096)); err == nil {
		t.Error("the broken key encrypts")
	}
	m.Reset()
	if err := tok.EncryptBlocks(t.Context(), []byte{1, 2, 3, 2}, "k@2", nil, make([]byte, 4096)); err != nil ||
		m.Count("Encrypt") != 1 {
		t.Errorf("%d calls with another key: %v", m.Count("Encrypt"), err)
	}
	tok.reduced.set(keyName{string(id), "k@1"}, 1)
	err := tok.Destroy(t.Context(), id, "k@1")
	if limits, mechanisms := tok.maxData.keys.Load(), tok.reduced.keys.Load(); err != nil || limits+mechanisms != 0 {
		t.Errorf("limits of %d keys and mechanisms of %d are remembered: %v", limits, mechanisms, err)
	}
}
