package pkcs11

import (
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// Profile names the special traits of a manufacturer's tokens. With the zero value, the manufacturer's name in the
// token's information decides the profile.
type Profile string

// The profiles.
const (
	Luna    Profile = "luna"    // Thales (SafeNet) Luna
	NCipher Profile = "ncipher" // Entrust (nCipher, Thales) nShield
	SoftHSM Profile = "softhsm" // SoftHSM2
	// CloudHSM is AWS CloudHSM with Client SDK 5. A token's information does not show it for certain, so the
	// configuration must name it.
	CloudHSM Profile = "cloudhsm"
	Generic  Profile = "generic" // any other PKCS#11 token
)

// Profiles lists the names, for messages and completion.
func Profiles() []Profile { return []Profile{Luna, NCipher, SoftHSM, CloudHSM, Generic} }

// traits are the values of a profile.
type traits struct {
	// mechanisms are tried in this order. All give the same blocks; they differ in the
	// number of calls, see mechanismEncrypt. CKM_AES_CTR is none of them: no call of it can have the check block.
	mechanisms []uint
	// sessions is the largest number of calls at the same time, if the configuration sets none. More callers wait
	// in this package, where they can give up; inside the vendor's library they could not.
	sessions int
	// dataLimit is the largest number of bytes for one C_Encrypt. Manufacturers do not publish their limits. If a
	// token returns CKR_DATA_LEN_RANGE, the limit is halved for a while. Each limit here is
	// enough for 1,000 EDEKs of 256-bit DEKs (32,000 bytes).
	dataLimit int
	// inFlight is the number of calls with one key at the same time, while a call takes less than callSpacing. A
	// second call hides the round trip to a network HSM. Requests that arrive meanwhile share the next call. With
	// more calls at the same time, fewer requests would share a call.
	inFlight int
	// modifiable means that the template sets CKA_MODIFIABLE to false. Then even a user with the PIN cannot change
	// the label of a key.
	modifiable bool
	// oneObjectCall means that calls which make, destroy or search objects run one at a time, see Token.objects.
	oneObjectCall bool
	// busy are results by which the HSM may say that it is busy, see busy.go.
	busy []uint
	// manufacturers are prefixes of the manufacturer's name in CK_TOKEN_INFO, in lower case.
	manufacturers []string
}

var profiles = map[Profile]traits{
	// Luna's client has its best throughput at about 30 threads for each appliance.
	Luna: {
		mechanisms: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC}, sessions: 30, inFlight: 2,
		dataLimit:  32 << 10,
		modifiable: true, manufacturers: []string{"safenet", "thales", "gemalto"},
	},
	NCipher: {
		mechanisms: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC}, sessions: 16, inFlight: 2,
		dataLimit:  32 << 10,
		modifiable: true, manufacturers: []string{"ncipher", "entrust"},
	},
	// SoftHSM does all work under one lock. More sessions give no more calls, and cost nothing: measurements with 32
	// keys gave the same CPU time for a call with 4 sessions and with 33. More sessions help if a network is
	// between SoftHSM and this process.
	SoftHSM: {
		mechanisms: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC}, sessions: 30, inFlight: 1,
		dataLimit:     1 << 20,
		oneObjectCall: true, manufacturers: []string{"softhsm"},
	},
	// AWS' manual names CKR_FUNCTION_FAILED for an HSM that throttles. AWS' list of known issues names CKR_DEVICE_ERROR
	// of C_GetAttributeValue.
	CloudHSM: {
		mechanisms: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC}, sessions: 8, inFlight: 2,
		dataLimit:  32 << 10,
		modifiable: true, busy: []uint{p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR},
	},
	Generic: {
		mechanisms: []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC}, sessions: 8, inFlight: 2,
		dataLimit:  32 << 10,
		modifiable: true,
	},
}

// profileOf returns the profile for a manufacturer's name in a token's information.
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
	default:
		return "CKM_AES_CBC"
	}
}
