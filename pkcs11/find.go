package pkcs11

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// TokenInfo describes an open token.
type TokenInfo struct {
	Label        string  `json:"label"`
	Serial       string  `json:"serial"`
	Manufacturer string  `json:"manufacturer"`
	Model        string  `json:"model"`
	Firmware     string  `json:"firmware"`
	Slot         uint    `json:"slot"`
	Profile      Profile `json:"profile"`
	Mechanism    string  `json:"mechanism"` // opens EDEKs
	MaxSessions  int     `json:"maxSessions"`
	MaxData      int     `json:"maxData"` // largest number of bytes for one C_Encrypt, by the profile
	// FreePrivateMemory is the token's free memory for keys, in bytes; 0 if the token does not report it.
	FreePrivateMemory uint `json:"freePrivateMemory"`
}

// Flags of CK_TOKEN_INFO.
const (
	flagTokenInitialized = 0x00000400
	flagPINCountLow      = 0x00010000
	flagPINFinalTry      = 0x00020000
	flagPINLocked        = 0x00040000
	flagPINInitialized   = 0x00000008
)

// unavailable is CK_UNAVAILABLE_INFORMATION.
const unavailable = ^uint(0)

// candidate is a token in a slot.
type candidate struct {
	slot uint
	info p11.TokenInfo
}

func (c candidate) String() string {
	return fmt.Sprintf("%q (serial %s, slot %d)", strings.TrimSpace(c.info.Label),
		strings.TrimSpace(c.info.SerialNumber), c.slot)
}

// notShown marks an error which means that the library does not show the token.
type notShown struct{ error }

func (e notShown) Unwrap() error { return e.error }

// blankToken marks an error which means that a token is not initialised.
type blankToken struct{ error }

func (e blankToken) Unwrap() error { return e.error }

// findToken returns the one token that the configuration names. If there is none, it checks whether file rights
// hide the token from this user.
func findToken(b Boundary, c *Config) (candidate, error) {
	found, err := searchToken(b, c)
	if err != nil {
		if fault := softHSMFault(c); fault != nil {
			return candidate{}, notShown{fmt.Errorf("%s is not shown by %s: %w", c.wanted(), c.Module, fault)}
		}
	}
	return found, err
}

func searchToken(b Boundary, c *Config) (candidate, error) {
	slots, err := b.GetSlotList(true)
	if err != nil {
		return candidate{}, fmt.Errorf("asking PKCS#11 module %s for its slots: %w", c.Module, err)
	}
	var fit, all []candidate
	var blank []string
	silent := map[uint]error{}
	for _, slot := range slots {
		info, err := b.GetTokenInfo(slot)
		if err != nil {
			silent[slot] = err // the token is being removed, or the reader is broken
			continue
		}
		t := candidate{slot, info}
		if info.Flags&flagTokenInitialized == 0 {
			blank = append(blank, fmt.Sprint(slot))
			if c.Slot != nil && *c.Slot == slot {
				return candidate{}, notShown{blankToken{fmt.Errorf("the token in slot %d of %s is not initialised%s, "+
					"initialise it with the HSM's own tool (SoftHSM: softhsm2-util --init-token --slot %d "+
					"--label LABEL), then name it by its label", slot, c.Module, c.settingsHint(), slot)}}
			}
			continue
		}
		all = append(all, t)
		if c.Slot != nil && *c.Slot != slot || c.TokenLabel != "" && strings.TrimSpace(info.Label) != c.TokenLabel ||
			c.Serial != "" && strings.TrimSpace(info.SerialNumber) != c.Serial {
			continue
		}
		fit = append(fit, t)
	}
	if len(fit) > 1 && c.used != "" { // another token got the label while this process runs
		if i := slices.IndexFunc(fit, func(t candidate) bool { return t.info.SerialNumber == c.used }); i >= 0 {
			return fit[i], nil
		}
	}
	byName(fit) // the order of slots may change whenever a library is loaded
	byName(all)
	switch len(fit) {
	case 0:
		return candidate{}, noneFits(b, c, slots, silent, all, blank)
	case 1:
		return fit[0], nil
	}
	return candidate{}, fmt.Errorf("%d tokens of %s fit %s: %s; name the right one by its serial number: "+
		"--serial in place of --token, or serial = ... in place of token = ... in the keystore file, which a server "+
		"reads at its start", len(fit), c.Module, c.wanted(), list(fit))
}

// noneFits returns the error if no token fits the configuration. slots are the slots with a token. silent has the
// errors of the slots whose token does not answer. all are the initialised tokens. blank are the slots whose token is
// not initialised.
func noneFits(b Boundary, c *Config, slots []uint, silent map[uint]error, all []candidate, blank []string) error {
	if len(all) > 0 || len(blank) > 0 {
		absent, err := absentTokens(b, c, slots, silent)
		if err != nil {
			return err
		}
		if absent != "" {
			shown := "none"
			if len(all) > 0 {
				shown = list(all)
			}
			return claviger.Unreachable(notShown{fmt.Errorf("no token of %s fits %s now; there are: %s; %s, so the "+
				"token may be there when the HSM answers", c.Module, c.wanted(), shown, absent)})
		}
	}
	switch {
	case len(all) == 0 && len(blank) > 0:
		return notShown{blankToken{fmt.Errorf("no token of %s is initialised (empty: slot %s)%s, "+
			"initialise one with the HSM's own tool (SoftHSM: softhsm2-util --init-token --free --label LABEL)",
			c.Module, strings.Join(blank, ", "), c.settingsHint())}}
	case len(all) == 0:
		return notShown{fmt.Errorf("PKCS#11 module %s %w; is the HSM connected, and its client "+
			"configured for this user?",
			c.Module, errNoTokenShown)}
	}
	seen := ""
	if isSoftHSM(c.Module) && os.Getenv("SOFTHSM2_CONF") == "" {
		seen = softHSMSeen()
	}
	return notShown{fmt.Errorf("no token of %s fits %s; there are: %s%s",
		c.Module, c.wanted(), list(all), seen)}
}

// absentTokens names the slots that may have the configured token when the HSM answers again: slots without a token,
// and slots whose token does not answer. It returns "" if there are none. If the configuration names a slot, only that
// slot counts.
func absentTokens(b Boundary, c *Config, slots []uint, silent map[uint]error) (string, error) {
	every, err := b.GetSlotList(false)
	if err != nil {
		return "", fmt.Errorf("asking PKCS#11 module %s for its slots: %w", c.Module, err)
	}
	var names []string
	for _, slot := range every {
		switch err, quiet := silent[slot]; {
		case c.Slot != nil && *c.Slot != slot:
		case quiet:
			names = append(names, fmt.Sprintf("the token in slot %d does not answer (%v)", slot, err))
		case !slices.Contains(slots, slot):
			names = append(names, fmt.Sprintf("slot %d holds no token", slot))
		}
	}
	return strings.Join(names, ", "), nil
}

// settingsHint returns a warning for messages: another user may see a token that this user does not see.
func (c *Config) settingsHint() string {
	if isSoftHSM(c.Module) {
		return softHSMSeen() + "; only where the server has none"
	}
	return ", as far as this user may see: the HSM's client may hide a token from a user without rights to its " +
		"settings. See what the HSM's tool shows as this user and as its administrator; only where both show none"
}

func byName(ts []candidate) {
	slices.SortFunc(ts, func(a, b candidate) int {
		return cmp.Or(strings.Compare(a.info.Label, b.info.Label),
			strings.Compare(a.info.SerialNumber, b.info.SerialNumber))
	})
}

func list(ts []candidate) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}

// wanted names the token of the configuration, for messages.
func (c *Config) wanted() string {
	var parts []string
	if c.TokenLabel != "" {
		parts = append(parts, fmt.Sprintf("token %q", c.TokenLabel))
	}
	if c.Serial != "" {
		parts = append(parts, "serial "+c.Serial)
	}
	if c.Slot != nil {
		parts = append(parts, fmt.Sprintf("slot %d", *c.Slot))
	}
	if len(parts) == 0 {
		return "\"any token\""
	}
	return strings.Join(parts, ", ")
}
