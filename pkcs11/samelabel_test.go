package pkcs11

import (
	"testing"

	p11 "github.com/miekg/pkcs11"
)

// twoOfOneLabel shows two tokens of one label.
type twoOfOneLabel struct{ Boundary }

func (twoOfOneLabel) GetSlotList(bool) ([]uint, error) { return []uint{1, 2}, nil }

func (twoOfOneLabel) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	return p11.TokenInfo{Label: "kms", SerialNumber: string(rune('0' + slot)), Flags: flagTokenInitialized}, nil
}

// TestSameLabel: of two tokens of one label, a process goes on with the token that it has used.
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
