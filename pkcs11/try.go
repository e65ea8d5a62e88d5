package pkcs11

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
)

// Try opens a token, makes a key as a server does, encrypts with it, and destroys it again. So an administrator
// learns of a policy that refuses one of these steps before the first key is created.
func Try(ctx context.Context, cfg Config) (TokenInfo, error) {
	tok, err := Open(ctx, cfg)
	if err != nil {
		return TokenInfo{}, err
	}
	info := tok.Info()
	if cfg.Standby != nil && cfg.Module == cfg.Standby.Module && cfg.Standby.names(&info) {
		return info, errors.Join(fmt.Errorf("token %q (serial %s, slot %d) is the first token itself; the line "+
			"standby of the keystore file must name another token, which has copies of its keys", info.Label,
			info.Serial, info.Slot), tok.Close())
	}
	return info, errors.Join(TryKey(ctx, tok), tok.Close())
}

// names reports whether the configuration names this token of its library.
func (c *Config) names(t *TokenInfo) bool {
	return (c.Slot == nil || *c.Slot == t.Slot) && (c.TokenLabel == "" || c.TokenLabel == t.Label) &&
		(c.Serial == "" || c.Serial == t.Serial)
}

// KeyMaker is a token that makes keys.
type KeyMaker interface {
	GenerateKey(ctx context.Context, id []byte, label string, bits int) error
	CheckValue(ctx context.Context, id []byte, label string) ([]byte, error)
	Destroy(ctx context.Context, id []byte, label string) error
}

// TryKey makes a key as a server does, encrypts with it, and destroys it again.
func TryKey(ctx context.Context, t KeyMaker) error {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // it never fails
	label := fmt.Sprintf("claviger try %x", id)
	const bits = 256
	if err := t.GenerateKey(ctx, id, label, bits); err != nil {
		return fmt.Errorf("the token makes no key of the kind that is needed (AES, %d bits, not extractable, "+
			"to encrypt alone): %w", bits, err)
	}
	_, err := t.CheckValue(ctx, id, label)
	if err != nil {
		err = fmt.Errorf("the token made a key and does not encrypt with it: %w", err)
	}
	if failed := t.Destroy(ctx, id, label); failed != nil {
		err = errors.Join(err, fmt.Errorf("the key that was made to try the token could not be destroyed; destroy the "+
			"key %q with the HSM's own tool: %w", label, failed))
	}
	return err
}
