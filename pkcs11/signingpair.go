package pkcs11

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// SigningKind is a kind of keys that sign.
type SigningKind string

// The kinds.
const (
	P256    SigningKind = "p256" // ECDSA
	P384    SigningKind = "p384"
	RSA2048 SigningKind = "rsa2048"
	RSA3072 SigningKind = "rsa3072"
	RSA4096 SigningKind = "rsa4096"
)

// signingKinds has the kinds, the preferred kind first.
var signingKinds = []SigningKind{P256, P384, RSA2048, RSA3072, RSA4096}

// SigningKindNames names the kinds, the preferred kind first.
func SigningKindNames() string {
	var names []string
	for _, k := range signingKinds {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// ParseSigningKind returns the kind of that name.
func ParseSigningKind(name string) (SigningKind, error) {
	if k := SigningKind(strings.ToLower(name)); slices.Contains(signingKinds, k) {
		return k, nil
	}
	return "", fmt.Errorf("%q is no kind of keys that sign; it must be one of %s", name, SigningKindNames())
}

// mechanism returns the mechanism that makes a pair of the kind, and the attributes that choose its curve or length.
func (k SigningKind) mechanism() (uint, []*p11.Attribute, error) {
	switch k {
	case P256, P384:
		oid := curves[0].oid
		if k == P384 {
			oid = curves[1].oid
		}
		params, err := asn1.Marshal(oid)
		return p11.CKM_EC_KEY_PAIR_GEN, []*p11.Attribute{p11.NewAttribute(p11.CKA_EC_PARAMS, params)}, err
	}
	bits := map[SigningKind]int{RSA2048: 2048, RSA3072: 3072, RSA4096: 4096}[k]
	return p11.CKM_RSA_PKCS_KEY_PAIR_GEN, []*p11.Attribute{p11.NewAttribute(p11.CKA_MODULUS_BITS, bits),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})}, nil // 65537
}

// GenerateSigningPair makes a pair whose private key can only sign, and can never leave the token. Both parts of the
// name must be set. The error is of kind KeyExists if the token has a private key with that label or that id.
func (t *Token) GenerateSigningPair(ctx context.Context, name PrivateKeyName, kind SigningKind) error {
	const op = "pkcs11.GenerateSigningPair"
	if _, err := ParseSigningKind(string(kind)); err != nil {
		return claviger.E(op, claviger.Invalid, "", err)
	}
	if name.Label == "" || len(name.ID) == 0 {
		return claviger.Errorf(op, claviger.Internal, name.Label, "a pair needs a label and an id")
	}
	tried := false
	return t.do(ctx, op, func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		if err := t.noneHas(s, name, tried); err != nil {
			return err
		}
		tried = true
		private, err := t.makeSigningPair(s, name, kind)
		if err != nil {
			return err
		}
		k, err := t.describeSigningKey(s, private)
		if err == nil && (!k.Sensitive || k.Extractable || !k.Sign) {
			err = fmt.Errorf("the token made the pair %q with sensitive=%t, extractable=%t, sign=%t, which is not "+
				"what was asked for; destroy the pair with the HSM's own tool, and check the policies of the partition",
				name.Label, k.Sensitive, k.Extractable, k.Sign)
		}
		return err
	})
}

// noneHas returns an error if the token has a private key with the label or the id of a new key. After a try that
// failed, the token may have made the key although the library returned an error.
func (t *Token) noneHas(s p11.SessionHandle, name PrivateKeyName, tried bool) error {
	for _, part := range []PrivateKeyName{{Label: name.Label}, {ID: name.ID}} {
		found, err := t.search(s, part.match())
		if err != nil {
			return err
		}
		if len(found) == 0 {
			continue
		}
		text := "there is a private key with %v on the token already"
		if tried {
			text = "the token failed when it made a pair, and there is a private key with %v now; destroy it with " +
				"the HSM's own tool, or use it"
		}
		return claviger.Errorf("pkcs11.GenerateSigningPair", claviger.KeyExists, "", text, part)
	}
	return nil
}

// makeSigningPair makes a pair with the optional attributes that the token accepts, and returns the handle of its
// private key.
func (t *Token) makeSigningPair(s p11.SessionHandle, name PrivateKeyName,
	kind SigningKind) (private p11.ObjectHandle, err error) {
	mechanism, size, err := kind.mechanism()
	if err != nil {
		return 0, err
	}
	common := []*p11.Attribute{p11.NewAttribute(p11.CKA_ID, name.ID), p11.NewAttribute(p11.CKA_LABEL, name.Label),
		p11.NewAttribute(p11.CKA_TOKEN, true)}
	err = t.withOptional(func(optional []*p11.Attribute) (err error) {
		public := append(append(size, common...), p11.NewAttribute(p11.CKA_VERIFY, true))
		secret := append(append([]*p11.Attribute{}, common...), p11.NewAttribute(p11.CKA_PRIVATE, true),
			p11.NewAttribute(p11.CKA_SENSITIVE, true), p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
			p11.NewAttribute(p11.CKA_SIGN, true))
		_, private, err = t.b.GenerateKeyPair(s, []*p11.Mechanism{p11.NewMechanism(mechanism, nil)}, public,
			append(secret, optional...))
		return err
	}, p11.CKA_UNWRAP)
	if errors.Is(err, p11.Error(p11.CKR_DEVICE_MEMORY)) {
		err = claviger.Errorf("pkcs11.GenerateSigningPair", claviger.Unavailable, name.Label, "the token has no room "+
			"for another pair: %w", judged{err})
	}
	return private, err
}
