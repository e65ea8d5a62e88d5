package pkcs11

import (
	"sync/atomic"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// twoOfOneLabel shows two tokens with the same label.
type twoOfOneLabel struct{ Boundary }

func (twoOfOneLabel) GetSlotList(bool) ([]uint, error) { return []uint{1, 2}, nil }

func (twoOfOneLabel) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	return p11.TokenInfo{Label: "kms", SerialNumber: string(rune('0' + slot)), Flags: flagTokenInitialized}, nil
}

// TestSameLabel: of two tokens with the same label, a process goes on with the token that it has used.
func TestSameLabel(t *testing.T) {
	c := Config{Module: "/a.so", TokenLabel: "kms", used: "2"}
	if found, err := searchToken(twoOfOneLabel{}, &c); err != nil || found.slot != 2 {
		t.Errorf("slot %d, %v", found.slot, err)
	}
	c.used = ""
	if _, err := searchToken(twoOfOneLabel{}, &c); err == nil {
		t.Error("one of two tokens was chosen")
	}
}

// twin is a library that shows a second token with the label of the first one.
type twin struct {
	Boundary
	label string
	shown *atomic.Bool
}

// twinSlot is the slot of the second token.
const twinSlot = 1 << 20

func (l twin) GetSlotList(present bool) ([]uint, error) {
	slots, err := l.Boundary.GetSlotList(present)
	if l.shown.Load() {
		slots = append([]uint{twinSlot}, slots...)
	}
	return slots, err
}

func (l twin) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	if slot != twinSlot {
		return l.Boundary.GetTokenInfo(slot)
	}
	return p11.TokenInfo{Label: l.label, SerialNumber: "0", Flags: flagTokenInitialized | flagPINInitialized}, nil
}

// TestSameLabelWhileRunning: another token gets the label of the token in use. The next login is at the token in use.
// A process that has used none of them refuses to choose.
func TestSameLabelWhileRunning(t *testing.T) {
	shown := new(atomic.Bool)
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return twin{b, c.TokenLabel, shown} }
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	generate(t, tok, 1, 256)
	shown.Store(true)
	for range 2 {
		tok.retire(tok.login)
		if err := encryptWith(t, tok, 1); err != nil {
			t.Error(err)
		}
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if tok, err := Open(t.Context(), c); err == nil {
		t.Errorf("token %s was chosen", tok.Info().Serial)
		_ = tok.Close()
	}
}
