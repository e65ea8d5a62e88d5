package pkcs11

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// MinPairBits and MaxPairBits are the smallest and the largest size of an RSA pair, in bits.
const (
	MinPairBits = 2048
	MaxPairBits = 4096
)

// PairInfo describes an RSA pair. Its fields are read from the private key on the token.
type PairInfo struct {
	ID     []byte // CKA_ID of both halves
	Label  string // CKA_LABEL of the private key
	Public *rsa.PublicKey
	// The token's attributes for the uses of the private key. Extractable is true if the token does not report it.
	Sensitive, Extractable, NeverExtractable, Local, Decrypt, Unwrap, Sign bool

	neverKnown, localKnown bool // whether the token reports NeverExtractable and Local
}

// pairName names a private key in login.handles, beside the keyNames of AES keys.
type pairName keyName

// GeneratePair makes an RSA pair of that number of bits. Its private key can only decrypt, and can never leave the
// token. The error is of kind KeyExists if the token has an RSA key with that id.
func (t *Token) GeneratePair(ctx context.Context, id []byte, label string, bits int) error {
	const op = "pkcs11.GeneratePair"
	if bits < MinPairBits || bits > MaxPairBits || bits%1024 != 0 {
		return claviger.Errorf(op, claviger.Invalid, label, "an RSA pair of %d bits cannot be made; it must have "+
			"2048, 3072 or 4096", bits)
	}
	if len(id) == 0 {
		return claviger.Errorf(op, claviger.Internal, label, "a pair without a CKA_ID could not be told from others")
	}
	tried := false
	err := t.do(ctx, op, func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		found, err := t.findPrivate(s, id, nil)
		if err != nil {
			return err
		}
		if tried && len(found) == 1 {
			// See GenerateKey: the first try made it.
			ours, err := t.findPrivate(s, id, &label)
			if err != nil {
				return err
			}
			if len(ours) == 1 {
				return t.checkNewPair(s, ours[0], id, label, bits)
			}
		}
		public, err := t.findPublic(s, id)
		if err != nil {
			return err
		}
		if tried && len(found) == 0 && len(public) == 1 {
			// The library ended when the first try had made one half of the pair.
			half := &target{name: "the public key of " + label, match: publicMatch(id), limit: 1}
			if err := t.destroyObjects(s, half); err != nil {
				return err
			}
			public = nil
		}
		if len(found)+len(public) > 0 {
			return claviger.Errorf(op, claviger.KeyExists, label,
				"there is an RSA key with CKA_ID %x on the token already", id)
		}
		tried = true
		private, err := t.makePair(s, id, label, bits)
		if errors.Is(err, p11.Error(p11.CKR_DEVICE_MEMORY)) {
			return claviger.Errorf(op, claviger.Unavailable, label, "the token has no room for another pair: %w",
				judged{err})
		}
		if err != nil {
			return err
		}
		return t.checkNewPair(s, private, id, label, bits)
	})
	if err == nil {
		t.pairs.seen.Store(true)
	}
	return err
}

// makePair makes a pair with the attributes that the token takes, and returns the handle of its private key.
func (t *Token) makePair(s p11.SessionHandle, id []byte, label string, bits int) (private p11.ObjectHandle, err error) {
	err = t.withOptional(func(optional []*p11.Attribute) (err error) {
		publicAttrs, privateAttrs := publicTemplate(id, label, bits), privateTemplate(id, label)
		for _, a := range optional {
			switch a.Type {
			case p11.CKA_VERIFY, p11.CKA_WRAP:
				publicAttrs = append(publicAttrs, a)
			default:
				privateAttrs = append(privateAttrs, a)
			}
		}
		_, private, err = t.b.GenerateKeyPair(s,
			[]*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}, publicAttrs, privateAttrs)
		return err
	}, p11.CKA_VERIFY, p11.CKA_WRAP, p11.CKA_SIGN, p11.CKA_UNWRAP)
	return private, err
}

func publicTemplate(id []byte, label string, bits int) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_ID, id),
		p11.NewAttribute(p11.CKA_LABEL, label),
		p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_MODULUS_BITS, bits),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), // 65537
		p11.NewAttribute(p11.CKA_ENCRYPT, true),
	}
}

func privateTemplate(id []byte, label string) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_ID, id),
		p11.NewAttribute(p11.CKA_LABEL, label),
		p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_DECRYPT, true),
	}
}

// checkNewPair destroys a new pair whose attributes differ from the request, and returns an error.
func (t *Token) checkNewPair(s p11.SessionHandle, private p11.ObjectHandle, id []byte, label string, bits int) error {
	k, err := t.describePair(s, private)
	if err == nil && (k.Public.N.BitLen() != bits || !bytes.Equal(k.ID, id) || !k.Sensitive || k.Extractable ||
		!k.Decrypt || k.Sign || k.Unwrap ||
		k.neverKnown && !k.NeverExtractable || k.localKnown && !k.Local) {
		err = fmt.Errorf("the token made pair %s with %d bits, sensitive=%t, extractable=%t, never extractable=%t, "+
			"local=%t, decrypt=%t, unwrap=%t, sign=%t, which is not what was asked for; it was destroyed again: "+
			"check the policies of the partition",
			label, k.Public.N.BitLen(), k.Sensitive, k.Extractable, k.NeverExtractable, k.Local, k.Decrypt,
			k.Unwrap, k.Sign)
	}
	if err == nil {
		return nil
	}
	// The handles may be those of other objects by now, so the pair is searched by its id.
	return errors.Join(err,
		t.destroyObjects(s, &target{name: "the private key of " + label, match: privateMatch(id, &label), limit: 1}),
		t.destroyObjects(s, &target{name: "the public key of " + label, match: publicMatch(id), limit: allObjects}))
}

// FindPair returns the pair whose private key has that CKA_ID, or nil if there is none. If there are several, it
// returns an error.
func (t *Token) FindPair(ctx context.Context, id []byte) (*PairInfo, error) {
	var info *PairInfo
	err := t.do(ctx, "pkcs11.FindPair", func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		info = nil
		found, err := t.findPrivate(s, id, nil)
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			if err := t.markEmpty(s, &t.pairs, errNoneShown); errors.As(err, new(emptyToken)) {
				return err
			}
			return nil
		case len(found) > 1:
			return fmt.Errorf("%d RSA private keys on the token have CKA_ID %x; destroy or relabel the wrong one "+
				"with the HSM's own tool", len(found), id)
		}
		k, err := t.describePair(s, found[0])
		if err == nil && !bytes.Equal(k.ID, id) { // the handle is that of another pair by now, see read.go
			err = claviger.Errorf("pkcs11.FindPair", claviger.Unavailable, "", "the handles of objects on the token "+
				"have changed; try again when the HSM is steady: the pair with CKA_ID %x was found, and %x was read",
				id, k.ID)
		}
		t.pairs.seen.Store(true)
		info = &k
		return err
	})
	if err != nil {
		return nil, err // without the result, as in Find
	}
	return info, nil
}

// DestroyPair destroys both keys of the pair with that id and label, for ever. If there is none, it returns nil.
func (t *Token) DestroyPair(ctx context.Context, id []byte, label string) error {
	private := &target{name: "the private key of " + label, match: privateMatch(id, &label), limit: 1}
	public := &target{name: "the public key of " + label, match: publicMatch(id), limit: allObjects}
	return t.do(ctx, "pkcs11.DestroyPair", func(l *login, s p11.SessionHandle) error {
		defer t.objects()()
		l.handles.Delete(pairName{string(id), label})
		found, err := t.findPrivate(s, id, &label)
		if err != nil {
			return err
		}
		if len(found) == 0 && !private.destroyed {
			return t.afterDestroy(s, &t.pairs, private.count)
		}
		if len(found) > 1 {
			return fmt.Errorf("%d RSA private keys on the token have CKA_ID %x and label %q; none was destroyed",
				len(found), id, label)
		}
		// The private key is destroyed last: after an error, a repetition finds it and destroys what is left.
		if err := t.destroyObjects(s, public); err != nil {
			return err
		}
		if err := t.destroyObjects(s, private); err != nil {
			return err
		}
		return t.afterDestroy(s, &t.pairs, private.count)
	})
}

// findPrivate returns the handles of RSA private keys with that id. A nil label matches all labels.
func (t *Token) findPrivate(s p11.SessionHandle, id []byte, label *string) ([]p11.ObjectHandle, error) {
	return t.search(s, privateMatch(id, label))
}

// allPairs has the attributes that every private RSA key has.
func allPairs() []*p11.Attribute { return privateMatch(nil, nil) }

// privateMatch has the attributes by which findPrivate searches. A nil id matches all ids.
func privateMatch(id []byte, label *string) []*p11.Attribute {
	template := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
	}
	if id != nil {
		template = append(template, p11.NewAttribute(p11.CKA_ID, id))
	}
	if label != nil {
		template = append(template, p11.NewAttribute(p11.CKA_LABEL, *label))
	}
	return template
}

func (t *Token) findPublic(s p11.SessionHandle, id []byte) ([]p11.ObjectHandle, error) {
	return t.search(s, publicMatch(id))
}

// publicMatch has the attributes by which findPublic searches.
func publicMatch(id []byte) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_ID, id),
	}
}

// describePair reads a private key's attributes. It reads the public key from the private object too, because a user
// without the PIN may replace the public object, but not the private one.
func (t *Token) describePair(s p11.SessionHandle, o p11.ObjectHandle) (PairInfo, error) {
	attrs, err := t.attributes(s, o, p11.CKA_ID, p11.CKA_LABEL, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT,
		p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE,
		p11.CKA_NEVER_EXTRACTABLE, p11.CKA_LOCAL, p11.CKA_DECRYPT, p11.CKA_UNWRAP, p11.CKA_SIGN)
	if err != nil {
		return PairInfo{}, err
	}
	k := PairInfo{Extractable: true}
	var modulus, exponent []byte
	for _, a := range attrs {
		known := len(a.Value) > 0
		yes := known && a.Value[0] != 0
		switch a.Type {
		case p11.CKA_ID:
			k.ID = bytes.Clone(a.Value)
		case p11.CKA_LABEL:
			k.Label = string(a.Value)
		case p11.CKA_MODULUS:
			modulus = a.Value
		case p11.CKA_PUBLIC_EXPONENT:
			exponent = a.Value
		case p11.CKA_SENSITIVE:
			k.Sensitive = yes
		case p11.CKA_EXTRACTABLE:
			k.Extractable = yes || !known
		case p11.CKA_NEVER_EXTRACTABLE:
			k.NeverExtractable, k.neverKnown = yes, known
		case p11.CKA_LOCAL:
			k.Local, k.localKnown = yes, known
		case p11.CKA_DECRYPT:
			k.Decrypt = yes
		case p11.CKA_UNWRAP:
			k.Unwrap = yes
		case p11.CKA_SIGN:
			k.Sign = yes
		}
	}
	if len(exponent) == 0 { // a token need not store it with the private key
		if exponent, err = t.publicExponent(s, k.ID, modulus); err != nil {
			return PairInfo{}, err
		}
	}
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if n.BitLen() < MinPairBits || n.BitLen() > MaxPairBits || e.BitLen() > 31 || e.Int64() < 3 {
		return PairInfo{}, fmt.Errorf("the RSA key with CKA_ID %x and label %q has a modulus of %d bits and the "+
			"public exponent %v; it must have %d to %d bits and an exponent from 3 to 2^31-1",
			k.ID, k.Label, n.BitLen(), e, MinPairBits, MaxPairBits)
	}
	k.Public = &rsa.PublicKey{N: n, E: int(e.Int64())}
	return k, nil
}

// publicExponent reads the exponent from the public key, which must have the same modulus.
func (t *Token) publicExponent(s p11.SessionHandle, id, modulus []byte) ([]byte, error) {
	public, err := t.findPublic(s, id)
	if err != nil {
		return nil, err
	}
	for _, o := range public {
		attrs, err := t.b.GetAttributeValue(s, o, []*p11.Attribute{p11.NewAttribute(p11.CKA_MODULUS, nil),
			p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, nil)})
		if err != nil {
			return nil, err
		}
		if len(attrs) == 2 && new(big.Int).SetBytes(attrs[0].Value).Cmp(new(big.Int).SetBytes(modulus)) == 0 {
			return attrs[1].Value, nil
		}
	}
	return nil, fmt.Errorf("the token does not show the public half of the RSA key with CKA_ID %x", id)
}

// doWithPair does the same as do, with the handle of a private key. After an error it forgets the handle, which may be
// the cause, unless the operation has judged the result. If the handle is that of another object after the error, the
// error says nothing about the key: then doWithPair searches the key again, and calls f again.
func (t *Token) doWithPair(ctx context.Context, op string, id []byte, label string,
	f func(p11.SessionHandle, p11.ObjectHandle) error) error {
	match := privateMatch(id, &label)
	return t.do(ctx, op, func(l *login, s p11.SessionHandle) error {
		for try := 1; ; try++ {
			key, err := t.pairHandle(l, s, id, label)
			if err != nil {
				return err
			}
			if err = f(s, key); err == nil {
				return nil
			}
			var other error
			if damageOf(err) == none || wrongObject(err) {
				if other = t.shows(s, key, match); !errors.Is(other, errOtherObject) && !isOneOf(other,
					p11.CKR_OBJECT_HANDLE_INVALID) {
					other = nil
				}
			}
			if !settled(err) || other != nil {
				l.handles.CompareAndDelete(pairName{string(id), label}, key)
			}
			switch {
			case other == nil:
				return err
			case try == destroyTries:
				return claviger.Errorf(op, claviger.Unavailable, label, "the handles of objects on the token change "+
					"all the time; try again when the HSM is steady: %w (%w)", other, err)
			}
			t.log.Warn("the handle of a key is the handle of another object; the key is searched again", "label", label,
				"err", err)
		}
	})
}

// pairHandle returns the private key's object handle, as handle does for AES keys.
func (t *Token) pairHandle(l *login, s p11.SessionHandle, id []byte, label string) (p11.ObjectHandle, error) {
	name := pairName{string(id), label}
	if v, ok := l.handles.Load(name); ok {
		h, _ := v.(p11.ObjectHandle)
		return h, nil
	}
	defer t.objects()()
	found, err := t.findPrivate(s, id, &label)
	if err != nil {
		return 0, err
	}
	switch len(found) {
	case 0:
		return 0, t.markEmpty(s, &t.pairs, claviger.Errorf("pkcs11.pair", claviger.KeyNotFound, label, "the token "+
			"holds no RSA private key with CKA_ID %s and label %q", hex.EncodeToString(id), label))
	case 1:
		t.pairs.seen.Store(true)
		l.handles.Store(name, found[0])
		return found[0], nil
	}
	return 0, fmt.Errorf("%d RSA private keys on the token have CKA_ID %x and label %q; none is used until only the "+
		"right one is left", len(found), id, label)
}
