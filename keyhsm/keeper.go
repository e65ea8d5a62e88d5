package keyhsm

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"sync"

	"claviger"
	"claviger/pkcs11"
	"claviger/secret"
)

// ErrKeyGone is in the error of kind Invalid if the HSM key of a deposit is not on the token.
// Error.Key is the id of that key. The deposits that the key wrapped cannot be read until the token, or
// a backup of it, is available again.
var ErrKeyGone = errors.New("the HSM key is gone")

// Keeper wraps and unwraps deposits with a pair of an open token. Its methods may be called
// from many goroutines. It does not close the token.
type Keeper struct {
	token *pkcs11.Token
	id    []byte
	label string

	mu    sync.Mutex
	pair  *pair // nil: read it from the token before the next use
	reset int   // how often the session of the token was lost
}

// pair has the parts of the token's pair that Wrap needs.
type pair struct {
	public *rsa.PublicKey
	hash   crypto.Hash
}

// NewKeeper makes a keeper that wraps with the pair with the CKA_ID id, and unwraps with any pair of
// the token that has the same label. So older deposits stay readable after a change of pairs, until the
// older pair is destroyed. The keeper never uses keys with other labels, even if an envelope names such
// a key.
func NewKeeper(token *pkcs11.Token, id []byte, label string) *Keeper {
	k := &Keeper{token: token, id: id, label: label}
	token.OnReset(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.pair = nil
		k.reset++
	})
	return k
}

// KeyID returns the id of the pair that wraps new deposits.
func (k *Keeper) KeyID() string { return hex.EncodeToString(k.id) }

// Wrap wraps a deposit for its uuid. Before it returns, the token opens the data key once
// (one C_Decrypt). So Wrap never returns a deposit that the HSM cannot open, even if the pair
// is destroyed at that moment.
func (k *Keeper) Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error) {
	const op = "keyhsm.Wrap"
	if err := checkUUID(op, uuid); err != nil {
		return nil, err
	}
	if len(content) > MaxContent {
		return nil, claviger.Errorf(op, claviger.Invalid, uuid, "the deposit has %d bytes; at most %d are possible",
			len(content), MaxContent)
	}
	p, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	dataKey := make(secret.Bytes, dataKeySize)
	defer dataKey.Wipe()
	if _, err := rand.Read(dataKey); err != nil {
		return nil, claviger.E(op, claviger.Internal, uuid, err)
	}
	encrypted, err := pkcs11.EncryptOAEP(p.public, p.hash, dataKey)
	if err != nil {
		return nil, claviger.E(op, claviger.Internal, uuid, err)
	}
	opened, err := k.token.DecryptOAEP(ctx, k.id, k.label, p.hash, encrypted)
	if err != nil {
		return nil, k.explain(op, k.id, err)
	}
	defer opened.Wipe()
	if !opened.Equal(dataKey) {
		return nil, claviger.Errorf(op, claviger.Internal, uuid,
			"the HSM key %s decrypts a data key to other bytes than were encrypted", k.KeyID())
	}
	out, err := newEnvelope(p.hash, k.id, encrypted, dataKey, uuid, content)
	if err != nil {
		return nil, claviger.E(op, claviger.Internal, uuid, err)
	}
	return out, nil
}

// Unwrap returns the deposit that Wrap wrapped for uuid. It costs one C_Decrypt. The error is
// of kind Invalid if wrapped is damaged or belongs to another uuid, and also, with ErrKeyGone,
// if its HSM key is gone.
func (k *Keeper) Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error) {
	const op = "keyhsm.Unwrap"
	if err := checkUUID(op, uuid); err != nil {
		return nil, err
	}
	e, err := ParseEnvelope(wrapped)
	if err != nil {
		return nil, err
	}
	dataKey, err := k.token.DecryptOAEP(ctx, e.KeyID, k.label, e.Hash, e.DataKey)
	if err != nil {
		return nil, k.explain(op, e.KeyID, err)
	}
	defer dataKey.Wipe()
	content, err := e.open(dataKey, uuid)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, uuid,
			"the wrapped deposit is damaged, or belongs to another uuid")
	}
	return content, nil
}

// current returns the pair that wraps new deposits. It reads the pair from the token once per
// login.
func (k *Keeper) current(ctx context.Context) (*pair, error) {
	const op = "keyhsm.Keeper"
	k.mu.Lock()
	p, reset := k.pair, k.reset
	k.mu.Unlock()
	if p != nil {
		return p, nil
	}
	info, err := k.token.FindPair(ctx, k.id)
	if err != nil {
		return nil, err
	}
	if info == nil || info.Label != k.label {
		return nil, k.gone(op, k.id)
	}
	if info.Extractable || !info.Sensitive {
		return nil, claviger.Errorf(op, claviger.Invalid, k.KeyID(),
			"the HSM key could be read out of the token (sensitive=%t, extractable=%t), "+
				"so deposits wrapped by it would not depend on the HSM; make another with: claviger keyhsm setup",
			info.Sensitive, info.Extractable)
	}
	hash, err := k.token.ProbeOAEP(ctx, k.id, k.label)
	if err != nil {
		return nil, k.explain(op, k.id, err)
	}
	p = &pair{info.Public, hash}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reset == reset {
		k.pair = p
	}
	return p, nil
}

// explain turns the error of a missing key into one with ErrKeyGone.
func (k *Keeper) explain(op string, id []byte, err error) error {
	if claviger.Is(err, claviger.KeyNotFound) {
		return k.gone(op, id)
	}
	return err
}

func (k *Keeper) gone(op string, id []byte) error {
	return claviger.Errorf(op, claviger.Invalid, hex.EncodeToString(id),
		"%w: token %q holds no RSA private key with this CKA_ID and the label %q; "+
			"the key was destroyed, or this is another token; the deposits that it wrapped cannot be read without it",
		ErrKeyGone, k.token.Info().Label, k.label)
}
