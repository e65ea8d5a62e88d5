package kmsclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"claviger"
	"claviger/kmswire"
)

// Operations on deleted keys, which Key Trustee KMS and claviger have beside
// Hadoop's. They are no provider.SoftDeleter on purpose: a KMS before another one
// must not hand on a purge under its own name.
const (
	opDeleted  = "kmsclient.DeletedKeys"
	opUndelete = "kmsclient.Undelete"
	opPurge    = "kmsclient.Purge"
)

// DeletedKeys returns the keys that can be undeleted. A KMS that isn't claviger
// has no such list: kind Internal.
func (p *Provider) DeletedKeys(ctx context.Context) ([]kmswire.DeletedKey, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(opDeleted, "")
	}
	body, err := p.do(ctx, request{op: opDeleted, method: http.MethodGet, path: "/v1/trustee/keys/deleted", status: http.StatusOK, safe: true})
	if err != nil {
		return nil, err
	}
	var list []kmswire.DeletedKey
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, claviger.Errorf(opDeleted, claviger.Internal, "", "KMS %s: the list of deleted keys: %w", p.uri, err)
	}
	return list, nil
}

// Undelete brings back the key of that name that was deleted last. Kinds
// KeyNotFound, KeyExists, Denied, KeyDenied.
func (p *Provider) Undelete(ctx context.Context, key string) error {
	return p.trusteeOp(ctx, opUndelete, kmswire.OpUndelete, key)
}

// Purge ends the deleted keys of that name for ever. Kinds KeyNotFound, Denied,
// KeyDenied; Invalid where they were used of late.
func (p *Provider) Purge(ctx context.Context, key string) error {
	return p.trusteeOp(ctx, opPurge, kmswire.OpPurge, key)
}

func (p *Provider) trusteeOp(ctx context.Context, op, value, key string) error {
	if p.ctx.Err() != nil {
		return closedError(op, key)
	}
	if key == "" {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	r := request{op: op, key: key, method: http.MethodPost, path: "/v1/trustee/key/" + escape(key), query: url.Values{"trusteeOp": {value}}, status: http.StatusOK, noBody: true}
	if _, err := p.do(ctx, r); err != nil {
		return err
	}
	p.invalidate(ctx, key)
	return nil
}
