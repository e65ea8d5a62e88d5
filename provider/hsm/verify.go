package hsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"claviger"
	"claviger/pkcs11"
)

// verify compares a version's check value with the value in the store, once in each epoch.
func (p *Provider) verify(ctx context.Context, e *entry) error {
	if e.verified.Load() == p.epoch.Load()+1 {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	epoch := p.epoch.Load() + 1
	if e.verified.Load() == epoch {
		return nil
	}
	got, err := p.checkValue(ctx, e)
	if claviger.Is(err, claviger.Internal) { // for example SoftHSM, with a damaged object file
		err = claviger.E("hsm.verify", claviger.Unavailable, e.name,
			unusable{fmt.Errorf("the key on token %s does not work: %w", tokenName(p.tok.Info()), err)})
	}
	if err != nil {
		if isUnusable(err) {
			p.refused.Store(e.name, struct{}{})
		}
		return err
	}
	if !bytes.Equal(got, e.check) {
		p.refused.Store(e.name, struct{}{})
		// Kind Unavailable, because the HSM of another node may hold the right key.
		return claviger.Errorf("hsm.verify", claviger.Unavailable, e.name,
			"%w: the key on token %s has the check value %x, the metastore says %x, so it is another key of the "+
				"same name; it is not used", errMismatch, tokenName(p.tok.Info()), got, e.check)
	}
	e.verified.Store(epoch)
	p.refused.Delete(e.name)
	return nil
}

// checkValue asks the token for the check value of a version's key. If the token holds several keys of that name,
// checkValue chooses the key with the check value that the metastore has.
func (p *Provider) checkValue(ctx context.Context, e *entry) ([]byte, error) {
	got, err := p.tok.CheckValue(ctx, e.id, e.name)
	if !errors.Is(err, pkcs11.ErrSeveral) {
		return got, err
	}
	err = p.tok.Choose(ctx, e.id, e.name, e.check)
	if errors.Is(err, pkcs11.ErrSeveral) {
		return nil, claviger.Errorf("hsm.checkValue", claviger.Unavailable, e.name, "%w: %w", errMismatch, err)
	}
	if err != nil {
		return nil, err
	}
	p.log.Warn("the token holds several keys of one id and label; the one with the right check value is used",
		"version", e.name, "id", hex.EncodeToString(e.id))
	return p.tok.CheckValue(ctx, e.id, e.name)
}
