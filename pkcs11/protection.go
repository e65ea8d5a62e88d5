package pkcs11

import (
	"context"
	"fmt"

	p11 "github.com/miekg/pkcs11"
)

// Protection says how a token protects a key, and which uses of the key it allows, as the token reports it. A nil field
// means that the token does not report the attribute.
type Protection struct {
	Bits             int   `json:"bits"`             // CKA_VALUE_LEN; 0: not reported
	Local            *bool `json:"local"`            // made on the token
	Private          *bool `json:"private"`          // only a login shows it
	Sensitive        *bool `json:"sensitive"`        // its value is never shown
	AlwaysSensitive  *bool `json:"alwaysSensitive"`  // since it was made
	Extractable      *bool `json:"extractable"`      // another key may wrap it
	NeverExtractable *bool `json:"neverExtractable"` // since it was made
	Modifiable       *bool `json:"modifiable"`
	Encrypt          *bool `json:"encrypt"`
	Decrypt          *bool `json:"decrypt"`
	Sign             *bool `json:"sign"`
	Verify           *bool `json:"verify"`
	Wrap             *bool `json:"wrap"`
	Unwrap           *bool `json:"unwrap"`
	Derive           *bool `json:"derive"`
	// Mechanism made the key (CKA_KEY_GEN_MECHANISM), such as CKM_AES_KEY_GEN; "" if the token does not report it.
	Mechanism string `json:"keyGenMechanism"`
}

// flags returns the attributes that are yes or no.
func (p *Protection) flags() map[uint]**bool {
	return map[uint]**bool{p11.CKA_LOCAL: &p.Local, p11.CKA_PRIVATE: &p.Private, p11.CKA_SENSITIVE: &p.Sensitive,
		p11.CKA_ALWAYS_SENSITIVE: &p.AlwaysSensitive, p11.CKA_EXTRACTABLE: &p.Extractable,
		p11.CKA_NEVER_EXTRACTABLE: &p.NeverExtractable, p11.CKA_MODIFIABLE: &p.Modifiable,
		p11.CKA_ENCRYPT: &p.Encrypt, p11.CKA_DECRYPT: &p.Decrypt, p11.CKA_SIGN: &p.Sign, p11.CKA_VERIFY: &p.Verify,
		p11.CKA_WRAP: &p.Wrap, p11.CKA_UNWRAP: &p.Unwrap, p11.CKA_DERIVE: &p.Derive}
}

// protectionAttributes are the attributes of a Protection. A fixed order gives each run the same calls.
var protectionAttributes = []uint{p11.CKA_VALUE_LEN, p11.CKA_LOCAL, p11.CKA_PRIVATE, p11.CKA_SENSITIVE,
	p11.CKA_ALWAYS_SENSITIVE, p11.CKA_EXTRACTABLE, p11.CKA_NEVER_EXTRACTABLE, p11.CKA_MODIFIABLE, p11.CKA_ENCRYPT,
	p11.CKA_DECRYPT, p11.CKA_SIGN, p11.CKA_VERIFY, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_DERIVE,
	p11.CKA_KEY_GEN_MECHANISM}

// Protection returns what the token reports of each key with that id and label. There is more than one if the HSM's
// backup was restored onto the keys that it was made from.
func (t *Token) Protection(ctx context.Context, id []byte, label string) ([]Protection, error) {
	var list []Protection
	err := t.do(ctx, "pkcs11.Protection", func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		list = nil
		found, err := t.readObjects(ctx, s, keyTemplate(id, &label), protectionAttributes...)
		for _, attrs := range found {
			list = append(list, protectionOf(attrs))
		}
		return err
	})
	if err != nil {
		return nil, err // without the result, as in Find
	}
	return list, nil
}

// protectionOf reads attributes. An attribute without a value is one that the token does not report.
func protectionOf(attrs []*p11.Attribute) Protection {
	var p Protection
	flags := p.flags()
	for _, a := range attrs {
		if len(a.Value) == 0 {
			continue
		}
		number := ulong(a.Value)
		switch flag := flags[a.Type]; {
		case flag != nil:
			yes := a.Value[0] != 0
			*flag = &yes
		case a.Type == p11.CKA_VALUE_LEN:
			p.Bits = int(number) * 8 //nolint:gosec // the length of an AES key
		case a.Type == p11.CKA_KEY_GEN_MECHANISM && number == p11.CKM_AES_KEY_GEN:
			p.Mechanism = "CKM_AES_KEY_GEN"
		case a.Type == p11.CKA_KEY_GEN_MECHANISM && number != unavailable:
			p.Mechanism = fmt.Sprintf("%#x", number)
		}
	}
	return p
}
