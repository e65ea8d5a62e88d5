package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// PrivateKeyName names a private key of a token. Each field that is set must match, and exactly one key may match.
type PrivateKeyName struct {
	Label string // CKA_LABEL
	ID    []byte // CKA_ID
}

// String names the key for messages.
func (n PrivateKeyName) String() string {
	var parts []string
	if n.Label != "" {
		parts = append(parts, fmt.Sprintf("label %q", n.Label))
	}
	if len(n.ID) > 0 {
		parts = append(parts, fmt.Sprintf("CKA_ID %x", n.ID))
	}
	return strings.Join(parts, " and ")
}

// signerName is the name of a signing key in the map login.handles, which also has the keyNames of AES keys.
type signerName keyName

func (n PrivateKeyName) cached() signerName { return signerName{string(n.ID), n.Label} }

// match has the attributes by which the private key is searched.
func (n PrivateKeyName) match() []*p11.Attribute {
	list := allPrivateKeys()
	if n.Label != "" {
		list = append(list, p11.NewAttribute(p11.CKA_LABEL, n.Label))
	}
	if len(n.ID) > 0 {
		list = append(list, p11.NewAttribute(p11.CKA_ID, n.ID))
	}
	return list
}

// allPrivateKeys has the attributes that every private key has.
func allPrivateKeys() []*p11.Attribute {
	return []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY)}
}

// SigningKey describes a private key that signs.
type SigningKey struct {
	ID    []byte // CKA_ID
	Label string // CKA_LABEL
	Kind  string // of the public key, see KindOf
	// Public is an *rsa.PublicKey or an *ecdsa.PublicKey. The public key of an ECDSA key comes from the
	// public key object with the same CKA_ID. A user without the PIN can replace that object. Public is nil if there is
	// no such object.
	Public crypto.PublicKey
	// The token's attributes for the uses of the key. Extractable is true if the token does not report it.
	Sensitive, Extractable, Sign bool
}

// KindOf returns the kind of a public key, such as "RSA of 2048 bits" or "ECDSA on P-256".
func KindOf(public crypto.PublicKey) string {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA of %d bits", public.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA on " + public.Curve.Params().Name
	}
	return fmt.Sprintf("of another kind (%T)", public)
}

// SigningKey returns the key of that name. The error is of kind KeyNotFound if no key has that name.
func (t *Token) SigningKey(ctx context.Context, name PrivateKeyName) (SigningKey, error) {
	var k SigningKey
	err := t.do(ctx, "pkcs11.SigningKey", func(l *login, s p11.SessionHandle) error {
		l.handles.Delete(name.cached())
		key, err := t.signingHandle(l, s, name)
		if err == nil {
			k, err = t.describeSigningKey(s, key)
		}
		return err
	})
	if err != nil {
		return SigningKey{}, err // without the result, as in Find
	}
	return k, nil
}

// signingHandle returns the object handle of the one private key of that name, as handle does for AES keys.
func (t *Token) signingHandle(l *login, s p11.SessionHandle, name PrivateKeyName) (p11.ObjectHandle, error) {
	const op = "pkcs11.signingHandle"
	if v, ok := l.handles.Load(name.cached()); ok {
		h, _ := v.(p11.ObjectHandle)
		return h, nil
	}
	defer t.objects()()
	found, err := t.search(s, name.match())
	switch {
	case err != nil:
		return 0, err
	case len(found) == 0:
		return 0, t.markEmpty(s, &t.signers, claviger.Errorf(op, claviger.KeyNotFound, "",
			"the token %s holds no private key with %v", l.found, name))
	case len(found) > 1:
		return 0, claviger.Errorf(op, claviger.Invalid, "", "%d private keys on the token %s have %v, so "+
			"none of them is used: name the right key by its id too, or destroy or relabel the others", len(found),
			l.found, name)
	}
	t.signers.seen.Store(true)
	l.handles.Store(name.cached(), found[0])
	return found[0], nil
}

// curves has the curves of ECDSA in TLS, by their CKA_EC_PARAMS.
var curves = []struct {
	curve elliptic.Curve
	oid   asn1.ObjectIdentifier // of RFC 5480, section 2.1.1.1
}{
	{elliptic.P256(), asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}},
	{elliptic.P384(), asn1.ObjectIdentifier{1, 3, 132, 0, 34}},
	{elliptic.P521(), asn1.ObjectIdentifier{1, 3, 132, 0, 35}},
}

// describeSigningKey reads the attributes of a private key.
func (t *Token) describeSigningKey(s p11.SessionHandle, o p11.ObjectHandle) (SigningKey, error) {
	k := SigningKey{Extractable: true}
	attrs, err := t.attributes(s, o, p11.CKA_ID, p11.CKA_LABEL, p11.CKA_KEY_TYPE, p11.CKA_SENSITIVE,
		p11.CKA_EXTRACTABLE, p11.CKA_SIGN)
	if err != nil {
		return k, err
	}
	keyType := ^uint(0) // not reported; 0 is CKK_RSA
	for _, a := range attrs {
		known := len(a.Value) > 0
		yes := known && a.Value[0] != 0
		switch a.Type {
		case p11.CKA_ID:
			k.ID = bytes.Clone(a.Value)
		case p11.CKA_LABEL:
			k.Label = string(a.Value)
		case p11.CKA_KEY_TYPE:
			if known {
				keyType = ulong(a.Value)
			}
		case p11.CKA_SENSITIVE:
			k.Sensitive = yes
		case p11.CKA_EXTRACTABLE:
			k.Extractable = yes || !known
		case p11.CKA_SIGN:
			k.Sign = yes
		}
	}
	switch keyType {
	case p11.CKK_RSA:
		pair, err := t.describePair(s, o)
		if err != nil {
			return k, err
		}
		k.Public, k.Kind = pair.Public, KindOf(pair.Public)
		return k, nil
	case p11.CKK_EC:
		return k, t.describeECDSA(s, o, &k)
	}
	return k, claviger.Errorf("pkcs11.SigningKey", claviger.Invalid, k.Label, "a private key of type %#x cannot be "+
		"used; it must be RSA, or ECDSA on P-256, P-384 or P-521", keyType)
}

// describeECDSA sets the kind and the public key of an ECDSA key.
func (t *Token) describeECDSA(s p11.SessionHandle, o p11.ObjectHandle, k *SigningKey) error {
	attrs, err := t.attributes(s, o, p11.CKA_EC_PARAMS)
	if err == nil && len(attrs) == 0 {
		err = fmt.Errorf("the token does not show the curve of the private key %q", k.Label)
	}
	if err != nil {
		return err
	}
	for _, c := range curves {
		if params, _ := asn1.Marshal(c.oid); bytes.Equal(params, attrs[0].Value) {
			k.Kind = KindOf(&ecdsa.PublicKey{Curve: c.curve})
			k.Public, err = t.publicPoint(s, c.curve, k.ID)
			return err
		}
	}
	return claviger.Errorf("pkcs11.SigningKey", claviger.Invalid, k.Label, "the curve %x (CKA_EC_PARAMS) of a private "+
		"key cannot be used; it must be P-256, P-384 or P-521", attrs[0].Value)
}

// publicPoint reads the public key with that id. It returns nil if there is not exactly one.
func (t *Token) publicPoint(s p11.SessionHandle, curve elliptic.Curve, id []byte) (crypto.PublicKey, error) {
	if len(id) == 0 {
		return nil, nil
	}
	found, err := t.search(s, ecPublicMatch(id))
	if err != nil || len(found) != 1 {
		return nil, err
	}
	attrs, err := t.attributes(s, found[0], p11.CKA_EC_POINT)
	if err != nil || len(attrs) == 0 {
		return nil, err
	}
	point := attrs[0].Value // an OCTET STRING, or, against the standard, its content alone
	var content []byte
	if rest, err := asn1.Unmarshal(point, &content); err == nil && len(rest) == 0 {
		point = content
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, nil //nolint:nilerr // the certificate shows the public key; this one is for messages
	}
	return public, nil
}

func ecPublicMatch(id []byte) []*p11.Attribute {
	return []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_EC), p11.NewAttribute(p11.CKA_ID, id)}
}
