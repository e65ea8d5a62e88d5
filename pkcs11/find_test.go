package pkcs11

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// slotsOnly is a library that shows these tokens, each in the slot of its index.
type slotsOnly struct {
	Boundary
	tokens []p11.TokenInfo
	empty  uint  // slots after those of the tokens, without a token
	failed error // of C_GetSlotList
}

func (s slotsOnly) GetSlotList(present bool) (list []uint, err error) {
	n := uint(len(s.tokens))
	if !present {
		n += s.empty
	}
	for i := range n {
		list = append(list, i)
	}
	return list, s.failed
}

// GetTokenInfo fails for a token of the label "broken".
func (s slotsOnly) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info := s.tokens[slot]
	if info.Label == "broken" {
		return p11.TokenInfo{}, p11.Error(p11.CKR_DEVICE_REMOVED)
	}
	return info, nil
}

func shownToken(label, serial string) p11.TokenInfo {
	return p11.TokenInfo{Label: fmt.Sprintf("%-32s", label), SerialNumber: serial + "  ", Flags: flagTokenInitialized}
}

// TestFindToken: each of label, serial number and slot must match if it is set. The error for several tokens or none
// lists them in the order of their names.
func TestFindToken(t *testing.T) {
	blank := p11.TokenInfo{SerialNumber: "9"}
	several := []p11.TokenInfo{shownToken("kms", "2"), {Label: "broken"}, blank, shownToken("old", "3"),
		shownToken("kms", "1")}
	slot := func(n uint) *uint { return &n }
	for _, c := range []struct {
		name   string
		tokens []p11.TokenInfo
		by     Config
		slot   uint   // of the token
		want   string // part of the error; "" for none
		many   bool   // the error is that several tokens fit; other errors are a notShown
	}{
		{"serial number", several, Config{Serial: "1"}, 4, "", false},
		{"label", several, Config{TokenLabel: "old"}, 3, "", false},
		{"slot", several, Config{Slot: slot(3)}, 3, "", false},
		{"label and serial number", several, Config{TokenLabel: "kms", Serial: "2"}, 0, "", false},
		{"serial number of another label", several, Config{TokenLabel: "old", Serial: "2"}, 0,
			`fits token "old", serial 2 now; there are: "kms" (serial 1, slot 4), "kms" (serial 2, slot 0), "old" (`,
			false},
		{"slot of another label", several, Config{TokenLabel: "kms", Slot: slot(3)}, 0, `fits token "kms", slot 3;`,
			false},
		{"several", several, Config{TokenLabel: "kms"}, 0,
			`2 tokens of /m.so fit token "kms": "kms" (serial 1, slot 4), "kms" (serial 2, slot 0); name`, true},
		{"any of several", several, Config{}, 0, `3 tokens of /m.so fit "any token":`, true},
		{"any of one", several[2:4], Config{}, 1, "", false},
		{"blank slot", several, Config{Slot: slot(2)}, 0, "the token in slot 2 of /m.so is not initialised, as far",
			false},
		{"slot without a token", several, Config{Slot: slot(7)}, 0, "no token of /m.so fits slot 7;", false},
		{"slot beside a blank one", several[1:3], Config{Slot: slot(7)}, 0, "is initialised (empty: slot 1), as far",
			false},
		{"no token", several[1:2], Config{}, 0, "PKCS#11 module /m.so shows no token; is the HSM connected", false},
	} {
		c.by.Module = "/m.so"
		found, err := findToken(slotsOnly{tokens: c.tokens}, &c.by)
		var hidden notShown
		switch {
		case c.want == "" && (err != nil || found.slot != c.slot):
			t.Errorf("%s: slot %d, %v; want slot %d", c.name, found.slot, err, c.slot)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) ||
			errors.As(err, &hidden) == c.many):
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	failed := p11.Error(p11.CKR_DEVICE_ERROR)
	if _, err := findToken(slotsOnly{failed: failed}, &Config{Module: "/m.so"}); !errors.Is(err, failed) ||
		!strings.Contains(err.Error(), "asking PKCS#11 module /m.so for its slots") {
		t.Error(err)
	}
}

// TestTokenNotShown: if the configured token is not shown, it may be in a slot without a token or in one whose token
// does not answer, so it is away. Without such a slot, and if the configured slot is another one, its name is wrong.
func TestTokenNotShown(t *testing.T) {
	one := []p11.TokenInfo{shownToken("one", "1")}
	silent := append(one, p11.TokenInfo{Label: "broken"})
	blank := []p11.TokenInfo{{SerialNumber: "9"}}
	slot := func(n uint) *uint { return &n }
	for _, c := range []struct {
		name string
		lib  slotsOnly
		by   Config
		want string // part of the error of a token that is away; "" for a token that is not
	}{
		{"every slot has a token", slotsOnly{tokens: one}, Config{TokenLabel: "two"}, ""},
		{"a slot is empty", slotsOnly{tokens: one, empty: 1}, Config{TokenLabel: "two"},
			`fits token "two" now; there are: "one" (serial 1, slot 0); slot 1 holds no token, so`},
		{"the empty slot is another", slotsOnly{tokens: one, empty: 2}, Config{Slot: slot(3)}, ""},
		{"the slot is empty", slotsOnly{tokens: one, empty: 2}, Config{Slot: slot(2)}, "; slot 2 holds no token, so"},
		{"a token does not answer", slotsOnly{tokens: silent}, Config{Serial: "2"},
			"; the token in slot 1 does not answer (pkcs11: 0x32: CKR_DEVICE_REMOVED), so"},
		{"another token does not answer", slotsOnly{tokens: silent}, Config{TokenLabel: "two", Slot: slot(0)}, ""},
		{"only a blank token, and an empty slot", slotsOnly{tokens: blank, empty: 1}, Config{TokenLabel: "two"},
			"there are: none; slot 1 holds no token, so"},
		{"only a blank token", slotsOnly{tokens: blank}, Config{TokenLabel: "two"}, ""},
		{"no slot", slotsOnly{}, Config{TokenLabel: "two"}, "shows no token"},
		{"only an empty slot", slotsOnly{empty: 1}, Config{TokenLabel: "two"}, "shows no token"},
	} {
		c.by.Module = "/m.so"
		_, err := findToken(c.lib, &c.by)
		if err == nil || claviger.IsUnreachable(markAway(err)) != (c.want != "") ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	failing := slotsFailing{slotsOnly{tokens: one}}
	_, err := findToken(failing, &Config{Module: "/m.so", TokenLabel: "two"})
	if !claviger.IsUnreachable(markAway(err)) {
		t.Errorf("the list of all slots fails: %v", err)
	}
}

// slotsFailing fails to list the slots without a token.
type slotsFailing struct{ slotsOnly }

func (s slotsFailing) GetSlotList(present bool) ([]uint, error) {
	if !present {
		return nil, p11.Error(p11.CKR_DEVICE_ERROR)
	}
	return s.slotsOnly.GetSlotList(present)
}

// TestFindTokenOfSoftHSM: if SoftHSM does not show a token, the error names the fault of the token's files, and the
// settings that were read if no variable names them.
func TestFindTokenOfSoftHSM(t *testing.T) {
	tokens := tokenFiles(t)
	tokenOf(t, tokens, "1", "", "a.object")
	lib := slotsOnly{tokens: []p11.TokenInfo{shownToken("other", "2")}}
	by := &Config{Module: softHSMModule, TokenLabel: "kms"}
	var hidden notShown
	if _, err := findToken(lib, by); !errors.As(err, &hidden) ||
		!strings.Contains(err.Error(), `token "kms" is not shown by `+softHSMModule+`: the SoftHSM token in`) {
		t.Error(err)
	}
	if _, err := findToken(lib, &Config{Module: softHSMModule, TokenLabel: "other"}); err != nil {
		t.Errorf("the token that is shown: %v", err)
	}
	by.Serial = "3" // the damaged token has another serial number
	if _, err := findToken(lib, by); err == nil ||
		!strings.HasSuffix(err.Error(), `there are: "other" (serial 2, slot 0)`) {
		t.Error(err)
	}
	t.Setenv("HOME", "/none")
	t.Setenv("SOFTHSM2_CONF", "")
	if _, err := findToken(lib, by); err == nil || !strings.Contains(err.Error(), "SOFTHSM2_CONF is not set here") {
		t.Error(err)
	}
	by.Module = "/m.so"
	if _, err := findToken(lib, by); err == nil || !strings.HasSuffix(err.Error(), `(serial 2, slot 0)`) {
		t.Error(err)
	}
}

// TestProfileOf: the manufacturer's name decides the profile.
func TestProfileOf(t *testing.T) {
	for name, want := range map[string]Profile{
		"SafeNet": Luna, "Thales": Luna, "Gemalto": Luna, "nCipher Corp. Ltd": NCipher, "Entrust": NCipher,
		"SoftHSM project": SoftHSM, "Yubico (www.yubico.com)": Generic, "": Generic, "Not SafeNet": Generic,
	} {
		if got := profileOf(name); got != want {
			t.Errorf("%q is %s, want %s", name, got, want)
		}
	}
	for _, p := range Profiles() {
		if got, err := ParseProfile(strings.ToUpper(string(p))); got != p || err != nil {
			t.Errorf("%s: %s, %v", p, got, err)
		}
	}
	if len(Profiles()) != len(profiles) || !slices.Contains(Profiles(), Generic) {
		t.Errorf("the profiles are %v", Profiles())
	}
}
