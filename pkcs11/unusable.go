package pkcs11

import (
	"context"
	"errors"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

const (
	// refusals is how often the token must refuse a key, one time after another, before the key counts as unusable.
	refusals = 3
	// refusalPause is the pause before each use that may be refused.
	refusalPause = 100 * time.Millisecond
)

// Unusable reports whether the token refuses to use a key again and again, each time in a session of its own in which a
// new key works. A single refusal proves nothing: a library may give one wrong result. The error is that of the token
// if it does not show whether the key can be used.
func (t *Token) Unusable(ctx context.Context, id []byte, label string) (bool, error) {
	const op = "pkcs11.Unusable"
	ctx, cancel := t.limited(ctx)
	defer cancel()
	for range refusals {
		if err := t.pause(ctx, refusalPause); err != nil {
			return false, claviger.E(op, claviger.Unavailable, label, err)
		}
		err := t.doWithKey(ctx, op, label, func(l *login, used p11.SessionHandle) error {
			return t.inOwnSession(l, used, func(s p11.SessionHandle) error {
				if err := t.tryNewKey(s); damageOf(err) > none {
					return err
				} else if err != nil {
					return claviger.Errorf(op, claviger.Unavailable, label, "the token refuses a new key too: %w", err)
				}
				name := keyName{string(id), label}
				l.handles.Delete(name)
				out, err := t.encrypt(l, s, keyUse{name: name}, append(makeInput(blockSize), checkBlock...))
				clear(out)
				return err
			})
		})
		if !errors.Is(err, ErrRefused) {
			return false, err
		}
	}
	return true, nil
}
