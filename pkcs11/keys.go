package pkcs11

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// checkBlock is the block that makes a key's check value. An EDEK's IV leads to this counter block only by choice.
// Even then 8 bytes of a hash of the encrypted block reveal nothing about that block.
const checkBlock = "claviger check 1"

// checkSize is the length of a check value in bytes.
const checkSize = 8

// listLimit is the callLimit of List, which makes two calls for each key. A token may hold thousands of keys.
const listLimit = 10 * time.Minute

// KeyInfo describes an AES key on the token.
type KeyInfo struct {
	ID    []byte // CKA_ID
	Label string // CKA_LABEL
	Bits  int
	// The token's attributes for the uses of the key. Extractable is true if the token does not report it.
	Sensitive, Extractable, NeverExtractable, Local, Encrypt, Decrypt bool

	neverKnown, localKnown bool // whether the token reports NeverExtractable and Local
}

// WasOutside reports whether the token says that the key was made elsewhere, or was extractable at some time. A copy
// from a backup of the HSM may be such a key, too. Not every token reports these attributes.
func (k KeyInfo) WasOutside() bool {
	return k.neverKnown && !k.NeverExtractable || k.localKnown && !k.Local
}

// objects locks the token's list of objects for a call that changes or searches it, if the profile needs that. A
// search of SoftHSM also reads a file that C_GenerateKey is writing in another session. The result is two objects
// for one key, or an object that does not work, or CKR_GENERAL_ERROR (seen with 2.6.1; TestConcurrentGenerate). Calls
// that use keys take no lock.
func (t *Token) objects() (unlock func()) {
	if !profiles[t.cfg.Profile].oneObjectCall {
		return func() {}
	}
	t.module.objects.Lock()
	return t.module.objects.Unlock
}

// GenerateKey makes an AES key of that number of bits. The key can only encrypt, and can never leave the token. The
// error is of kind KeyExists if the token has a key with that id.
func (t *Token) GenerateKey(ctx context.Context, id []byte, label string, bits int) error {
	const op = "pkcs11.GenerateKey"
	tried := false
	err := t.do(ctx, op, func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		found, err := t.find(s, id, nil)
		if err != nil {
			return err
		}
		if tried && len(found) == 1 {
			// The id was free before the first try, so the first try made this key, although the library
			// returned an error.
			ours, err := t.find(s, id, &label)
			if err != nil {
				return err
			}
			if len(ours) == 1 {
				return t.checkNewKey(s, ours[0], id, label, bits)
			}
		}
		if len(found) > 0 {
			return claviger.Errorf(op, claviger.KeyExists, label, "there is a key with CKA_ID %x on the token already",
				id)
		}
		template := []*p11.Attribute{
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
			p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
			p11.NewAttribute(p11.CKA_VALUE_LEN, bits/8),
			p11.NewAttribute(p11.CKA_ID, id),
			p11.NewAttribute(p11.CKA_LABEL, label),
			p11.NewAttribute(p11.CKA_TOKEN, true),
			p11.NewAttribute(p11.CKA_PRIVATE, true),
			p11.NewAttribute(p11.CKA_SENSITIVE, true),
			p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
			p11.NewAttribute(p11.CKA_ENCRYPT, true),
			p11.NewAttribute(p11.CKA_DECRYPT, false),
		}
		tried = true
		var object p11.ObjectHandle
		err = t.withOptional(func(optional []*p11.Attribute) (err error) {
			object, err = t.b.GenerateKey(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)},
				slices.Concat(template, optional))
			return err
		}, otherUses...)
		if errors.Is(err, p11.Error(p11.CKR_DEVICE_MEMORY)) {
			return claviger.Errorf(op, claviger.Unavailable, label, "the token has no room for another key: %w",
				judged{err})
		}
		if err != nil {
			return err
		}
		return t.checkNewKey(s, object, id, label, bits)
	})
	if err == nil {
		t.aesKeys.seen.Store(true)
	}
	return err
}

// checkNewKey destroys a new key whose attributes differ from the request, and returns an error. A policy of the HSM
// may have overruled the template. If the handle is another object's by now, checkNewKey searches the new key by its
// id.
func (t *Token) checkNewKey(s p11.SessionHandle, object p11.ObjectHandle, id []byte, label string, bits int) error {
	match := keyTemplate(id, &label)
	err := t.shows(s, object, match)
	if errors.Is(err, errOtherObject) || isOneOf(err, p11.CKR_OBJECT_HANDLE_INVALID) {
		var found []p11.ObjectHandle
		if found, err = t.search(s, match); err != nil {
			return err
		}
		if len(found) != 1 {
			return claviger.Errorf("pkcs11.GenerateKey", claviger.Unavailable, label, "the token made a key, and "+
				"shows %d keys with its CKA_ID %x and label instead of one", len(found), id)
		}
		object = found[0]
	}
	var k KeyInfo
	if err == nil {
		var attrs []*p11.Attribute
		attrs, err = t.attributes(s, object, infoAttributes...)
		k = keyInfo(attrs)
	}
	if err == nil {
		err = t.checkNoOtherUse(s, object)
	}
	if err == nil { // what was read was read of the new key
		if err = t.shows(s, object, match); errors.Is(err, errOtherObject) {
			err = claviger.E("pkcs11.GenerateKey", claviger.Unavailable, label, err)
		}
	}
	if err == nil && (k.Bits != bits || !k.Sensitive || k.Extractable || !k.Encrypt || k.Decrypt ||
		k.WasOutside()) {
		err = fmt.Errorf("the token made key %s with %d bits, sensitive=%t, extractable=%t, never extractable=%t, "+
			"local=%t, encrypt=%t, decrypt=%t, which is not what was asked for; it was destroyed again: check the "+
			"policies of the partition",
			label, k.Bits, k.Sensitive, k.Extractable, k.NeverExtractable, k.Local, k.Encrypt, k.Decrypt)
	}
	if err != nil {
		return errors.Join(err, t.destroyObjects(s, &target{name: "key " + label, match: match, limit: 1}))
	}
	return nil
}

// ErrSeveral means that a token holds several keys with one id, or with one id and label. There are two causes: an
// HSM's backup was restored onto the keys it was made from, or two processes did the same step at once and the token
// showed neither of them the other's key.
var ErrSeveral = errors.New("several keys")

// severalKeys is an ErrSeveral that names the id and the number of keys.
type severalKeys struct{ error }

func (severalKeys) Is(target error) bool { return target == ErrSeveral }

// Find returns the key with the given CKA_ID, or nil if there is none. If there are several, the error is
// ErrSeveral.
func (t *Token) Find(ctx context.Context, id []byte) (*KeyInfo, error) {
	var info *KeyInfo
	err := t.do(ctx, "pkcs11.Find", func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		info = nil
		found, err := t.readObjects(ctx, s, keyTemplate(id, nil), infoAttributes...)
		switch {
		case err != nil || len(found) == 0:
			return err
		case len(found) > 1:
			return severalKeys{fmt.Errorf("%d keys on the token have CKA_ID %x; destroy or relabel the wrong one "+
				"with the HSM's own tool", len(found), id)}
		}
		k := keyInfo(found[0])
		info = &k
		return nil
	})
	if err != nil {
		return nil, err // without the result: a call that outlived ctx may still write info
	}
	return info, nil
}

// FindLabel returns the AES keys with exactly that CKA_LABEL, whatever their ids.
func (t *Token) FindLabel(ctx context.Context, label string) ([]KeyInfo, error) {
	return t.list(ctx, "pkcs11.FindLabel", &label)
}

// StartDate returns the CKA_START_DATE of a key. It is the zero time if the token stores none, or if there is not
// exactly one such key.
func (t *Token) StartDate(ctx context.Context, id []byte, label string) (time.Time, error) {
	var day time.Time
	err := t.do(ctx, "pkcs11.StartDate", func(_ *login, s p11.SessionHandle) error {
		defer t.objects()()
		day = time.Time{}
		found, err := t.readObjects(ctx, s, keyTemplate(id, &label), p11.CKA_START_DATE)
		if err != nil || len(found) != 1 {
			return err
		}
		for _, a := range found[0] {
			if a.Type != p11.CKA_START_DATE {
				continue
			}
			if d, err := time.Parse("20060102", string(a.Value)); err == nil { // CK_DATE is 8 ASCII digits
				day = d
			}
		}
		return nil
	})
	if err != nil {
		return time.Time{}, err // without the result, as in Find
	}
	return day, nil
}

// List returns all AES keys of the token.
func (t *Token) List(ctx context.Context) ([]KeyInfo, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, listLimit)
		defer cancel()
	}
	return t.list(ctx, "pkcs11.List", nil)
}

// list describes the AES keys of the token, or those with a label.
func (t *Token) list(ctx context.Context, op string, label *string) ([]KeyInfo, error) {
	var list []KeyInfo
	err := t.do(ctx, op, func(l *login, s p11.SessionHandle) error {
		defer t.objects()()
		list = nil
		match := keyTemplate(nil, label)
		var again *login
		if label == nil { // each key that is missing from the list counts as lost
			again = l
		}
		found, err := t.searchTwice(again, s, match)
		if err != nil {
			return err
		}
		if len(found) == 0 && label == nil && t.aesKeys.seen.Load() {
			return emptyToken{errNoneShown}
		}
		keys, err := t.readFound(ctx, s, found, match, infoAttributes...)
		for _, attrs := range keys {
			list = append(list, keyInfo(attrs))
		}
		if len(list) > 0 {
			t.aesKeys.seen.Store(true)
		}
		return err
	})
	if err != nil {
		return nil, err // without the result, as in Find
	}
	return list, nil
}

// Destroy destroys the key with that id and label, and all copies of it, for ever. If there is none, it returns nil.
func (t *Token) Destroy(ctx context.Context, id []byte, label string) error {
	w := &target{name: fmt.Sprintf("key %q with CKA_ID %x", label, id), match: keyTemplate(id, &label),
		limit: allObjects}
	return t.do(ctx, "pkcs11.Destroy", func(l *login, s p11.SessionHandle) error {
		defer t.objects()()
		name := keyName{string(id), label}
		l.handles.Delete(name)
		t.gather.Delete(name)
		t.reduced.drop(name)
		t.maxData.drop(name)
		w.login = l
		if err := t.destroyObjects(s, w); err != nil {
			return err
		}
		return t.afterDestroy(s, &t.aesKeys, w.count)
	})
}

// Prove returns nil if the key has that check value, and ErrWrongKey if it has another one, also after it was searched
// again. Unlike EncryptBlocks it keeps nothing in memory for a key that is not used.
func (t *Token) Prove(ctx context.Context, id []byte, label string, check []byte) error {
	return t.doWithKey(ctx, "pkcs11.Prove", label, func(l *login, s p11.SessionHandle) error {
		in := append(makeInput(blockSize), checkBlock...)
		block, err := t.encrypt(l, s, keyUse{name: keyName{string(id), label}, check: string(check)}, in)
		clear(block)
		return err
	})
}

// checkOf makes a check value from the encrypted check block.
func checkOf(block []byte) []byte {
	sum := sha256.Sum256(block)
	return sum[:checkSize]
}

// Choose finds the key with a check value among several keys with one id and label. Calls use that key until the
// next login. If none of the keys has the check value, the error is ErrSeveral.
func (t *Token) Choose(ctx context.Context, id []byte, label string, check []byte) error {
	return t.doWithKey(ctx, "pkcs11.Choose", label, func(l *login, s p11.SessionHandle) error {
		unlock := t.objects()
		found, err := t.find(s, id, &label)
		unlock()
		if err != nil {
			return err
		}
		var failed error
		for _, o := range found {
			block, err := t.encryptBy(s, keyUse{name: keyName{string(id), label}}, o, []byte(checkBlock))
			if err == nil && bytes.Equal(checkOf(block), check) {
				l.handles.Store(keyName{string(id), label}, o)
				return nil
			}
			failed = errors.Join(failed, err)
		}
		if failed != nil {
			return failed
		}
		return severalKeys{fmt.Errorf("%d keys on the token have CKA_ID %x and label %q, and none of them the "+
			"check value %x", len(found), id, label, check)}
	})
}

// find returns the handles of AES keys of the token. A nil id matches all ids, and a nil label all labels. Keys of
// sessions, such as sessionKey makes, are not keys of the token, and may end at any moment.
func (t *Token) find(s p11.SessionHandle, id []byte, label *string) ([]p11.ObjectHandle, error) {
	return t.search(s, keyTemplate(id, label))
}

// allKeys has the attributes that each AES key of the token shows.
func allKeys() []*p11.Attribute { return keyTemplate(nil, nil) }

// keyTemplate has the attributes by which find searches. A nil id or label matches all.
func keyTemplate(id []byte, label *string) []*p11.Attribute {
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES), p11.NewAttribute(p11.CKA_TOKEN, true)}
	if id != nil {
		template = append(template, p11.NewAttribute(p11.CKA_ID, id))
	}
	if label != nil {
		template = append(template, p11.NewAttribute(p11.CKA_LABEL, *label))
	}
	return template
}

// search returns the handles of all objects that match the template.
func (t *Token) search(s p11.SessionHandle, template []*p11.Attribute) ([]p11.ObjectHandle, error) {
	return t.searchUntil(s, template, math.MaxInt)
}

// searchUntil is search, but ends when it has found at least that number of objects.
func (t *Token) searchUntil(s p11.SessionHandle, template []*p11.Attribute, enough int) ([]p11.ObjectHandle, error) {
	before := t.module.loginsEnded.Load()
	if err := t.b.FindObjectsInit(s, template); err != nil {
		return nil, err
	}
	const page = 256
	var all []p11.ObjectHandle
	for {
		batch, _, err := t.b.FindObjects(s, page)
		if err != nil {
			return nil, errors.Join(err, t.b.FindObjectsFinal(s))
		}
		all = append(all, batch...)
		if len(batch) < page || len(all) >= enough {
			break
		}
	}
	if err := t.b.FindObjectsFinal(s); err != nil || len(all) > 0 {
		return all, err
	}
	if err := t.stillLoggedIn(s); err != nil {
		return nil, err
	}
	if t.module.loginsBegun.Load() != before {
		return nil, p11.Error(p11.CKR_USER_NOT_LOGGED_IN)
	}
	return nil, nil
}

// stillLoggedIn returns CKR_USER_NOT_LOGGED_IN if the session's login is lost. An empty search counts only if the login
// is there, and there was no other login since the search began: without a login the token shows no private object, and
// returns no error.
func (t *Token) stillLoggedIn(s p11.SessionHandle) error {
	info, err := t.b.GetSessionInfo(s)
	if err == nil && info.State != p11.CKS_RW_USER_FUNCTIONS {
		return p11.Error(p11.CKR_USER_NOT_LOGGED_IN)
	}
	return err
}

// infoAttributes are the attributes that keyInfo needs.
var infoAttributes = []uint{p11.CKA_ID, p11.CKA_LABEL, p11.CKA_VALUE_LEN, p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE,
	p11.CKA_NEVER_EXTRACTABLE, p11.CKA_LOCAL, p11.CKA_ENCRYPT, p11.CKA_DECRYPT}

// keyInfo describes a key by its attributes.
func keyInfo(attrs []*p11.Attribute) KeyInfo {
	k := KeyInfo{Extractable: true}
	for _, a := range attrs {
		known := len(a.Value) > 0
		yes := known && a.Value[0] != 0
		switch a.Type {
		case p11.CKA_ID:
			k.ID = bytes.Clone(a.Value)
		case p11.CKA_LABEL:
			k.Label = string(a.Value)
		case p11.CKA_VALUE_LEN:
			k.Bits = int(ulong(a.Value)) * 8 //nolint:gosec // the length of an AES key
		case p11.CKA_SENSITIVE:
			k.Sensitive = yes
		case p11.CKA_EXTRACTABLE:
			k.Extractable = yes || !known
		case p11.CKA_NEVER_EXTRACTABLE:
			k.NeverExtractable, k.neverKnown = yes, known
		case p11.CKA_LOCAL:
			k.Local, k.localKnown = yes, known
		case p11.CKA_ENCRYPT:
			k.Encrypt = yes
		case p11.CKA_DECRYPT:
			k.Decrypt = yes
		}
	}
	return k
}

// ulong reads a CK_ULONG, which is little-endian on all that Go and HSM clients share.
func ulong(value []byte) (n uint) {
	for i := len(value) - 1; i >= 0; i-- {
		n = n<<8 | uint(value[i])
	}
	return n
}

// notShown returns the error for a key that is missing, or that this user may not read.
func (t *Token) notShown(id []byte, label string) error {
	err := fmt.Errorf("the token holds no key with CKA_ID %s and label %q", hex.EncodeToString(id), label)
	if hidden := t.Hidden(); hidden != nil {
		return fmt.Errorf("%w that this user may read: %w", err, hidden)
	}
	return err
}

// handle returns the key's object handle, from the cache or by a search for its id and label. Exactly one key must
// match.
func (t *Token) handle(l *login, s p11.SessionHandle, name keyName) (p11.ObjectHandle, error) {
	id, label := []byte(name.id), name.label
	if v, ok := l.handles.Load(name); ok {
		h, _ := v.(p11.ObjectHandle)
		return h, nil
	}
	unlock := t.objects()
	found, err := t.searchTwice(l, s, keyTemplate(id, &label))
	unlock()
	if err != nil {
		return 0, err
	}
	switch len(found) {
	case 0:
		err := claviger.E("pkcs11.key", claviger.KeyNotFound, label, t.notShown(id, label))
		defer t.objects()()
		return 0, t.markEmpty(s, &t.aesKeys, err)
	case 1:
		t.aesKeys.seen.Store(true)
		l.handles.Store(name, found[0])
		return found[0], nil
	}
	return 0, severalKeys{fmt.Errorf("%d keys on the token have CKA_ID %x and label %q; none is used until only the "+
		"right one is left", len(found), id, label)}
}
