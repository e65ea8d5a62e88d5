package kmsclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"claviger"
	"claviger/kmswire"
)

// Operations that Key Trustee KMS and claviger have and Hadoop's KMS lacks. Provider is not a provider.SoftDeleter on
// purpose: a KMS in front of another KMS must not forward a purge under its own name.
const (
	opDeleted  = "kmsclient.DeletedKeys"
	opUndelete = "kmsclient.Undelete"
	opPurge    = "kmsclient.Purge"
	opDescribe = "kmsclient.Describe"
	opMigrate  = "kmsclient.Migrate"
)

// DeletedKeys returns the keys that can be undeleted. Kind Internal if the KMS has no such list.
func (p *Provider) DeletedKeys(ctx context.Context) ([]kmswire.DeletedKey, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(opDeleted, "")
	}
	body, err := p.do(ctx, request{op: opDeleted, method: http.MethodGet, path: "/v1/trustee/keys/deleted",
		status: http.StatusOK, safe: true, limit: maxBody})
	if err != nil {
		return nil, err
	}
	var list []kmswire.DeletedKey
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, claviger.Errorf(opDeleted, claviger.Internal, "", "KMS %s: the list of deleted keys: %w", p.uri,
			err)
	}
	return list, nil
}

// Undelete brings back the deleted key that has this name and the version with this full name. If version is "", it
// brings back the key that was deleted last, among those that the user may manage. Kinds KeyNotFound, KeyExists,
// Denied, KeyDenied.
func (p *Provider) Undelete(ctx context.Context, key, version string) error {
	value := kmswire.OpUndelete
	if version != "" {
		value = kmswire.OpUndeleteVersion
	}
	_, err := p.trusteeOp(ctx, opUndelete, value, key, version)
	return err
}

// Purge destroys the deleted key that has this name and the version with this full name. If version is "", it destroys
// all deleted keys of that name that the user may manage. Kinds KeyNotFound, Denied, KeyDenied; Invalid if the keys
// were used recently.
func (p *Provider) Purge(ctx context.Context, key, version string) error {
	value := kmswire.OpPurge
	if version != "" {
		value = kmswire.OpPurgeVersion
	}
	_, err := p.trusteeOp(ctx, opPurge, value, key, version)
	return err
}

// trusteeOp sends the operation value for the key, and returns the body of the answer.
func (p *Provider) trusteeOp(ctx context.Context, op, value, key, version string) ([]byte, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(op, key)
	}
	if key == "" {
		return nil, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	query := url.Values{"trusteeOp": {value}}
	if version != "" {
		query.Set(kmswire.ParamVersion, version)
	}
	r := request{op: op, key: key, method: http.MethodPost, path: "/v1/trustee/key/" + escape(key), query: query,
		status: http.StatusOK, noBody: value != kmswire.OpMigrate, limit: entries(maxVersions, key)}
	body, err := p.do(ctx, r)
	if err != nil {
		return nil, err
	}
	p.invalidate(ctx, key)
	return body, nil
}
