package hsm

import (
	"bytes"
	"context"
	"encoding/hex"

	"claviger"
	"claviger/metastore"
)

// holdsCurrent asks the token to encrypt with the key's current version, and compares the check value. If the token
// lacks that version, it is not the token of the other nodes: a new version would be acknowledged, and would exist on
// this token only. An earlier verification does not count, because the token may have changed since. A current version
// that an operator has given up does not prevent a roll; otherwise the key could never be used again.
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
	if !isUnusable(err) {
		return err
	}
	given, gerr := p.givenUp(ctx)
	if gerr != nil {
		return gerr
	}
	if given[hex.EncodeToString(e.id)] {
		return nil
	}
	p.refused.Store(e.name, struct{}{})
	return claviger.Errorf(op, claviger.Unavailable, k.Name,
		"token %s of this node does not hold the current version %s as metastore %s knows it, so a new version made "+
			"here might be missing on other nodes; nothing was made: %w; where another node's HSM holds it, roll "+
			"there and synchronise this node's HSM with it; otherwise %s, and the key can be rolled then",
		tokenName(p.tok.Info()), e.name, p.store.URI(), err, p.CureLost())
}
