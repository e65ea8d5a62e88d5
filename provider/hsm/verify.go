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
	if err == nil && !bytes.Equal(got, e.check) {
		return p.refuse(e, got)
	}
	return p.judge(e, epoch, err)
}

// isVerified reports whether a version was verified in this epoch.
func (p *Provider) isVerified(version string) bool {
	v, _ := p.versions.Load(version)
	e, ok := v.(*entry)
	return ok && e.verified.Load() == p.epoch.Load()+1
}

// judge explains err, the result of the token's work with a version that began in that epoch, and records whether the
// token has the version. epoch is 1 + the number that p.epoch had.
func (p *Provider) judge(e *entry, epoch uint64, err error) error {
	known := e.verified.Load() == epoch
	if got, ok := pkcs11.CheckValueOf(err); ok {
		return p.refuse(e, got)
	}
	// For example SoftHSM refuses to use a damaged object file.
	if (errors.Is(err, pkcs11.ErrRefused) || errors.Is(err, pkcs11.ErrSeveral)) && !known {
		err = claviger.E("hsm.verify", claviger.Unavailable, e.name,
			unusable{fmt.Errorf("the key on token %s does not work: %w", tokenName(p.tok.Info()), err)})
	}
	switch {
	case err == nil && !known:
		e.verified.Store(epoch)
		p.refused.Delete(e.name)
	case err != nil && isUnusable(err):
		p.refused.Store(e.name, struct{}{})
	}
	if err != nil && (isUnusable(err) || errors.Is(err, pkcs11.ErrRefused)) {
		e.lease.end()
	}
	return err
}

// refuse records that the token holds another key under a version's name, with the check value got, and returns the
// error. The error is of kind Unavailable, because the HSM of another node may hold the right key.
func (p *Provider) refuse(e *entry, got []byte) error {
	e.verified.Store(0)
	e.lease.end()
	p.refused.Store(e.name, struct{}{})
	return claviger.Errorf("hsm.verify", claviger.Unavailable, e.name,
		"%w: the key on token %s has the check value %x, the metastore says %x, so it is another key of the "+
			"same name; it is not used", errMismatch, tokenName(p.tok.Info()), got, e.check)
}

// checkValue asks the token for the check value of a version's key. If the token holds several keys of that name,
// checkValue chooses the key with the check value that the metastore has.
func (p *Provider) checkValue(ctx context.Context, e *entry) ([]byte, error) {
	if len(e.check) == 0 {
		return p.tok.CheckValue(ctx, e.id, e.name)
	}
	// The token searches the key again before it believes that its check value is another one.
	err := p.withChoice(ctx, e, func() error { return p.tok.Prove(ctx, e.id, e.name, e.check) })
	if got, ok := pkcs11.CheckValueOf(err); ok {
		return got, nil
	}
	return e.check, err
}

// withChoice makes a call with a version's key. If the token holds several keys of that id and label, it chooses one
// and makes the call again.
func (p *Provider) withChoice(ctx context.Context, e *entry, call func() error) error {
	return p.withChoiceOn(ctx, p.tok, e, call)
}

// withChoiceOn is withChoice for a token that may be the standby.
func (p *Provider) withChoiceOn(ctx context.Context, tok token, e *entry, call func() error) error {
	err := call()
	if errors.Is(err, pkcs11.ErrSeveral) {
		if err = p.choose(ctx, tok, e); err == nil {
			err = call()
		}
	}
	return err
}

// choose makes a token use the key with the version's check value, if it holds several keys of that id and label.
func (p *Provider) choose(ctx context.Context, tok token, e *entry) error {
	err := tok.Choose(ctx, e.id, e.name, e.check)
	switch {
	case errors.Is(err, pkcs11.ErrSeveral):
		return claviger.Errorf("hsm.choose", claviger.Unavailable, e.name, "%w: %w", errMismatch, err)
	case err == nil:
		p.log.Warn("the token holds several keys of one id and label; the one with the right check value is used",
			"token", tokenName(tok.Info()), "version", e.name, "id", hex.EncodeToString(e.id))
	}
	return err
}
