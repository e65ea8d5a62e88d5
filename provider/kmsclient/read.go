package kmsclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"claviger"
	"claviger/kmswire"
)

// The operations that the table texts uses.
const (
	opCreate    = "kmsclient.Create"
	opRoll      = "kmsclient.Roll"
	opDelete    = "kmsclient.Delete"
	opUnwrap    = "kmsclient.Unwrap"
	opReencrypt = "kmsclient.Reencrypt"
)

// escape escapes a name for a path as Java's URLEncoder does, except for the space. Java sends a space as '+'. A KMS
// does not decode that, so the request would be about another key.
func escape(name string) string {
	return strings.NewReplacer("+", "%20", "~", "%7E", "%2A", "*").Replace(url.QueryEscape(name))
}

func keyPath(key, sub string) string { return "/v1/key/" + escape(key) + sub }

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	const op = "kmsclient.Keys"
	body, err := p.do(ctx, request{op: op, method: http.MethodGet, path: "/v1/keys/names", safe: true,
		status: http.StatusOK, limit: maxBody})
	if err != nil {
		return nil, err
	}
	return read(op, "", body, kmswire.ReadNames)
}

// maxNames bounds the names in one URL, in escaped bytes, as Hadoop's client does (getKeysMetadata).
const maxNames = 1500

// Metadata returns one entry for each name. It sends several requests if the names do not fit into one URL. An error
// about one of several names does not say which name: call Metadata for each name alone then.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	const op = "kmsclient.Metadata"
	if p.ctx.Err() != nil {
		return nil, closedError(op, "")
	}
	out := make([]*claviger.Metadata, len(names))
	var batch []string
	var index []int // of each name of batch in names
	size := 0
	flush := func() error {
		list, err := p.metadata(ctx, batch)
		if err != nil {
			return err
		}
		for i, m := range list {
			out[index[i]] = m
		}
		batch, index, size = nil, nil, 0
		return nil
	}
	for i, name := range names {
		if name == "" {
			continue // no key has that name, and some requests with it fail
		}
		n := len(url.QueryEscape(name))
		if size+n > maxNames {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		batch, index, size = append(batch, name), append(index, i), size+n
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// metadata is Metadata in one request. If the answer about a single name is unexpected, it looks for the name in the
// list of names.
func (p *Provider) metadata(ctx context.Context, names []string) ([]*claviger.Metadata, error) {
	const op = "kmsclient.Metadata"
	if len(names) == 0 {
		return nil, nil
	}
	list, err := p.requestMetadata(ctx, op, names)
	if err != nil && len(names) == 1 && unexpectedAnswer(err) && p.unlisted(ctx, names[0]) {
		return []*claviger.Metadata{nil}, nil
	}
	return list, err
}

// requestMetadata sends the request of metadata.
func (p *Provider) requestMetadata(ctx context.Context, op string, names []string) ([]*claviger.Metadata, error) {
	r := request{op: op, method: http.MethodGet, path: "/v1/keys/metadata", query: url.Values{"key": names}, safe: true,
		status: http.StatusOK, limit: min(maxBody, int64(len(names))*smallBody)}
	if len(names) == 1 {
		r.key = names[0]
	}
	body, err := p.do(ctx, r)
	if err != nil {
		return nil, err
	}
	list, err := read(op, r.key, body, kmswire.ReadMetadataList)
	if err != nil {
		return nil, err
	}
	if len(list) != len(names) {
		return nil, claviger.Errorf(op, claviger.Internal, r.key, "KMS %s sent %d entries for %d keys", p.uri,
			len(list), len(names))
	}
	for i, m := range list {
		if m != nil && m.Name != names[i] {
			return nil, claviger.Errorf(op, claviger.Internal, names[i], "KMS %s sent the entry of another key, %q",
				p.uri, m.Name)
		}
	}
	return list, nil
}

// Versions returns a key's versions, oldest first.
func (p *Provider) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	const op = "kmsclient.Versions"
	if p.ctx.Err() != nil {
		return nil, closedError(op, key)
	}
	if key == "" {
		return []claviger.KeyVersion{}, nil
	}
	body, err := p.do(ctx, request{op: op, key: key, method: http.MethodGet, path: keyPath(key, "/_versions"),
		safe: true, status: http.StatusOK, limit: entries(maxVersions, key)})
	defer clear(body)
	var list []claviger.KeyVersion
	if err == nil {
		list, err = read(op, key, body, kmswire.ReadKeyVersions)
	}
	if err = p.confirm(ctx, err, op, key, key, claviger.KeyNotFound); err != nil {
		if claviger.Is(err, claviger.KeyNotFound) {
			return []claviger.KeyVersion{}, nil
		}
		return nil, err
	}
	bits := 0
	for i := range list {
		if bits == 0 && list[i].Material == nil {
			if bits, err = p.bitLength(ctx, op, key); err != nil {
				return nil, err
			}
		}
		if list[i], err = checkVersion(op, key, &list[i], bits); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Current returns a key's newest version.
func (p *Provider) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	const op = "kmsclient.Current"
	if p.ctx.Err() != nil {
		return claviger.KeyVersion{}, closedError(op, key)
	}
	if key == "" {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return p.version(ctx, request{op: op, key: key, path: keyPath(key, "/_currentversion")}, key, claviger.KeyNotFound)
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	const op = "kmsclient.Version"
	if p.ctx.Err() != nil {
		return claviger.KeyVersion{}, closedError(op, version)
	}
	key, ok := claviger.KeyOfVersion(version)
	if !ok {
		// Send no request: a KMS with a Java keystore would answer 500.
		return claviger.KeyVersion{}, claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	return p.version(ctx, request{op: op, key: version, path: "/v1/keyversion/" + escape(version)}, key,
		claviger.VersionNotFound)
}

// version sends a request for one version of key. missing is the kind of error for an empty answer.
func (p *Provider) version(ctx context.Context, r request, key string,
	missing claviger.Kind) (claviger.KeyVersion, error) {
	var none claviger.KeyVersion
	r.method, r.safe, r.status = http.MethodGet, true, http.StatusOK
	body, err := p.do(ctx, r)
	defer clear(body)
	var v *claviger.KeyVersion
	if err == nil {
		v, err = read(r.op, r.key, body, kmswire.ReadKeyVersion)
	}
	if err = p.confirm(ctx, err, r.op, r.key, key, missing); err != nil {
		return none, err
	}
	if v == nil {
		return none, claviger.E(r.op, missing, r.key, nil)
	}
	bits := 0
	if v.Material == nil {
		if bits, err = p.bitLength(ctx, r.op, key); err != nil {
			return none, err
		}
	}
	return checkVersion(r.op, key, v, bits)
}

// bitLength requests the length of a key. The JSON of a version has no length besides that of its material.
func (p *Provider) bitLength(ctx context.Context, op, key string) (int, error) {
	list, err := p.Metadata(ctx, key)
	if err != nil {
		return 0, err
	}
	if list[0] == nil {
		return 0, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return list[0].BitLength, nil
}

// Describe returns descriptions of the key of that name, and of the deleted keys of that name that the user may
// undelete or purge. Kinds KeyNotFound, Denied, KeyDenied; Unsupported if the KMS is not claviger.
func (p *Provider) Describe(ctx context.Context, key string) ([]kmswire.KeyDescription, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(opDescribe, key)
	}
	if key == "" {
		return nil, claviger.E(opDescribe, claviger.KeyNotFound, key, nil)
	}
	body, err := p.do(ctx, request{op: opDescribe, key: key, method: http.MethodGet, path: "/v1/trustee/key/" +
		escape(key), status: http.StatusOK, safe: true})
	if err != nil {
		return nil, err
	}
	var list []kmswire.KeyDescription
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, claviger.Errorf(opDescribe, claviger.Internal, key, "KMS %s: the description of the key: %w",
			p.uri, err)
	}
	return list, nil
}

// DescribeAny is Describe. If the KMS is not claviger, the description has no versions: such a KMS returns their names
// only with their material.
func (p *Provider) DescribeAny(ctx context.Context, key string) ([]kmswire.KeyDescription, error) {
	list, err := p.Describe(ctx, key)
	if !claviger.Is(err, claviger.Unsupported) {
		return list, err
	}
	ms, err := p.Metadata(ctx, key)
	if err != nil {
		return nil, err
	}
	m := ms[0]
	if m == nil {
		return nil, claviger.E("kmsclient.Metadata", claviger.KeyNotFound, key, nil)
	}
	return []kmswire.KeyDescription{{Name: m.Name, Provider: p.URI(), Cipher: m.Cipher, Length: m.BitLength,
		Description: m.Description, Attributes: m.Attributes, Created: m.Created.UnixMilli(),
		Versions: []kmswire.VersionDescription{}}}, nil
}
