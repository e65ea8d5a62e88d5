package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// ErrUnproved means that nothing shows which key has the check value that the token computed.
var ErrUnproved = errors.New("the check value of the key is not certain")

// CheckValue returns the key's check value: the first 8 bytes of the SHA-256 of an encrypted fixed block.
//
// Nothing proves that the token used the right key for this encryption, and later the check value proves all other
// encryptions. So CheckValue computes the value twice, in two sessions. Each time it searches the handle of the key,
// and reads the name of the object before and after the encryption. If the two values differ in each try, the error is
// ErrUnproved, of kind Unavailable.
func (t *Token) CheckValue(ctx context.Context, id []byte, label string) ([]byte, error) {
	const op = "pkcs11.CheckValue"
	const tries = 2
	var check []byte
	err := t.doWithKey(ctx, op, label, func(l *login, s p11.SessionHandle) error {
		name := keyName{string(id), label}
		var differ error
		for range tries {
			first, err := t.checkValue(l, s, name)
			if err != nil {
				return err
			}
			var second []byte
			err = t.inOwnSession(l, s, func(other p11.SessionHandle) (err error) {
				second, err = t.checkValue(l, other, name)
				return err
			})
			if err != nil {
				return err
			}
			if bytes.Equal(first, second) {
				check = first
				return nil
			}
			differ = fmt.Errorf("%w: the token gives key %q the check values %x and %x, so it used another key once: "+
				"handles of objects may have changed; try again when the HSM is steady", ErrUnproved, label, first,
				second)
			t.log.Warn("a key has two check values; they are computed again", "label", label, "err", differ)
		}
		return claviger.E(op, claviger.Unavailable, label, differ)
	})
	if err != nil {
		return nil, err // without the result, as in Find
	}
	return check, nil
}

// checkValue computes a check value once. It searches the key again if the handle is another object's before or after
// the encryption.
func (t *Token) checkValue(l *login, s p11.SessionHandle, name keyName) ([]byte, error) {
	match := keyTemplate([]byte(name.id), &name.label)
	for try := 1; ; try++ {
		l.handles.Delete(name)
		object, err := t.handle(l, s, name)
		if err != nil {
			return nil, err
		}
		check, err := t.checkValueOf(s, keyUse{name: name}, object, match)
		if err == nil {
			return check, nil
		}
		l.handles.CompareAndDelete(name, object) // the handle may be the cause
		other := errors.Is(err, errOtherObject)
		switch {
		case (other || wrongObject(err)) && try < destroyTries:
			t.log.Warn("the handle of a key is the handle of another object; the key is searched again", "label",
				name.label, "err", err)
		case other:
			return nil, claviger.Errorf("pkcs11.CheckValue", claviger.Unavailable, name.label,
				"the handles of objects on the token change all the time; try again when the HSM is steady: %w", err)
		default:
			return nil, err
		}
	}
}

// checkValueOf computes a check value with one handle, which must be that of the key before and after.
func (t *Token) checkValueOf(s p11.SessionHandle, use keyUse, object p11.ObjectHandle,
	match []*p11.Attribute) ([]byte, error) {
	if err := t.shows(s, object, match); err != nil {
		return nil, err
	}
	block, err := t.encryptParts(s, use, object, append(makeInput(blockSize), checkBlock...))
	if err != nil {
		return nil, err
	}
	defer clear(block)
	return checkOf(block), t.shows(s, object, match)
}
