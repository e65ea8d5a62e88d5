package pkcs11

import (
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// Profile names what is peculiar to a maker's tokens. The zero value is chosen
// by the manufacturer's name that the token tells.
type Profile string

// The profiles.
const (
	Luna    Profile = "luna"    // Thales (SafeNet) Luna
	NCipher Profile = "ncipher" // Entrust (nCipher, Thales) nShield
	SoftHSM Profile = "softhsm" // SoftHSM2
	Generic Profile = "generic" // any other PKCS#11 token
)

// Profiles lists the names, for messages and completion.
func Profiles() []Profile { return []Profile{Luna, NCipher, SoftHSM, Generic} }

// traits are what a profile stands for.
type traits struct {
	// ladder: mechanisms in the order in which they are tried. All give the same
	// blocks; they differ in how many calls it takes, see encrypt.go.
	ladder []uint
	// sessions: how many calls may be under way at a time, where the
	// configuration does not say. Beyond it callers queue here, where they can
	// give up, and not inside the vendor's library, where they cannot.
	sessions int
	// dataLimit: bytes for one C_Encrypt. Makers do not publish theirs; where a
	// token answers CKR_DATA_LEN_RANGE we halve ours for as long as it is open.
	// All of these hold 1,000 EDEKs of 256-bit DEKs (32,000 bytes).
	dataLimit int
	// inFlight is how many calls with one key may be under way at once. The second
	// hides the way to a network HSM and back; those who come while both are away
	// are gathered for the next. More would only make the batches smaller.
	inFlight int
	// modifiable says whether the template names CKA_MODIFIABLE false, which
	// stops even the holder of the PIN from relabelling a key.
	modifiable bool
	// oneObjectCall says that objects are made, destroyed and searched for one at a
	// time, see Token.objects.
	oneObjectCall bool
	// manufacturers: how the manufacturer's name in CK_TOKEN_INFO begins.
	manufacturers []string
}

var profiles = map[Profile]traits{
	// Luna's client has its best throughput at some 30 threads an appliance.
	Luna: {
		ladder: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CTR, p11.CKM_AES_CBC}, sessions: 30, inFlight: 2, dataLimit: 32 << 10,
		modifiable: true, manufacturers: []string{"safenet", "thales", "gemalto"},
	},
	// nShield's library has long known CBC and only later CTR.
	NCipher: {
		ladder: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC, p11.CKM_AES_CTR}, sessions: 16, inFlight: 2, dataLimit: 32 << 10,
		modifiable: true, manufacturers: []string{"ncipher", "entrust"},
	},
	// SoftHSM works under one lock: more sessions only wait longer (measured: the
	// same calls per second with 1 and with 32).
	SoftHSM: {
		ladder: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CTR, p11.CKM_AES_CBC}, sessions: 4, inFlight: 1, dataLimit: 1 << 20,
		oneObjectCall: true, manufacturers: []string{"softhsm"},
	},
	Generic: {
		ladder: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CTR, p11.CKM_AES_CBC}, sessions: 8, inFlight: 2, dataLimit: 32 << 10,
		modifiable: true,
	},
}

// profileOf chooses a profile by the manufacturer's name of a token.
func profileOf(manufacturer string) Profile {
	m := strings.ToLower(manufacturer)
	for _, p := range Profiles() {
		for _, prefix := range profiles[p].manufacturers {
			if strings.HasPrefix(m, prefix) {
				return p
			}
		}
	}
	return Generic
}

func mechanismName(m uint) string {
	switch m {
	case p11.CKM_AES_ECB:
		return "CKM_AES_ECB"
	case p11.CKM_AES_CTR:
		return "CKM_AES_CTR"
	default:
		return "CKM_AES_CBC"
	}
}
