package hsm

import (
	"bytes"
	"context"

	"claviger"
	"claviger/metastore"
)

// holdsCurrent asks the token to encrypt with the key's current version, and compares
// the check value. A token without that version is not the token of the other nodes:
// a version made on it would be acknowledged, and exist there alone. The answer of an
// earlier verification does not count, for the token may have changed since.
func (p *Provider) holdsCurrent(ctx context.Context, op string, k *metastore.Key) error {
	if len(k.List) == 0 {
		return nil
	}
	e, err := newEntry(&k.Metadata, k.List[len(k.List)-1])
	if err != nil {
		return err
	}
	got, err := p.checkValue(ctx, e)
	if err == nil && !bytes.Equal(got, e.check) {
		err = errMismatch
	}
	if err == nil {
		return nil
	}
	if !unfit(err) {
		return err
	}
	p.refused.Store(e.name, struct{}{})
	return claviger.Errorf(op, claviger.Unavailable, k.Name,
		"token %s of this node does not hold the current version %s as metastore %s knows it, so a new version made here would be missing on the other nodes; nothing was made: %w; roll at another node, and synchronise this node's HSM with theirs",
		tokenName(p.tok.Info()), e.name, p.store.URI(), err)
}
