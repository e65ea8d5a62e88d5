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

// The operations that the texts of errors are told apart by.
const (
	opCreate    = "kmsclient.Create"
	opRoll      = "kmsclient.Roll"
	opDelete    = "kmsclient.Delete"
	opUnwrap    = "kmsclient.Unwrap"
	opReencrypt = "kmsclient.Reencrypt"
)

// escape writes a name as a part of a path: as Java's URLEncoder, except for
// the space. Java sends that as '+', which a KMS does not turn back: the request
// would go to another key.
func escape(name string) string {
	return strings.NewReplacer("+", "%20", "~", "%7E", "%2A", "*").Replace(url.QueryEscape(name))
}

func keyPath(key, sub string) string { return "/v1/key/" + escape(key) + sub }

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	const op = "kmsclient.Keys"
	body, err := p.do(ctx, request{op: op, method: http.MethodGet, path: "/v1/keys/names", safe: true,
		status: http.StatusOK, most: maxBody})
	if err != nil {
		return nil, err
	}
	return read(op, "", body, kmswire.ReadNames)
}

// maxNames bounds the names in one URL, as Hadoop's client does (getKeysMetadata):
// so many bytes, escaped.
const maxNames = 1500

// Metadata returns one entry per name, by as many requests as the length of the
// names takes. An error about one of several names does not say which: ask for each
// by itself then.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	const op = "kmsclient.Metadata"
	if p.ctx.Err() != nil {
		return nil, closedError(op, "")
	}
	out := make([]*claviger.Metadata, len(names))
	var ask []string
	var place []int
	size := 0
	flush := func() error {
		list, err := p.metadata(ctx, ask)
		if err != nil {
			return err
		}
		for i, m := range list {
			out[place[i]] = m
		}
		ask, place, size = nil, nil, 0
		return nil
	}
	for i, name := range names {
		if name == "" {
			continue // no key has that name, and a KMS refuses it in some places
		}
		n := len(url.QueryEscape(name))
		if size+n > maxNames {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		ask, place, size = append(ask, name), append(place, i), size+n
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// metadata is one request. A single name that the KMS answers oddly for is looked
// up in its list of names.
func (p *Provider) metadata(ctx context.Context, names []string) ([]*claviger.Metadata, error) {
	const op = "kmsclient.Metadata"
	if len(names) == 0 {
		return nil, nil
	}
	list, err := p.askMetadata(ctx, op, names)
	if err != nil && len(names) == 1 && odd(err) && p.unlisted(ctx, names[0]) {
		return []*claviger.Metadata{nil}, nil
	}
	return list, err
}

func (p *Provider) askMetadata(ctx context.Context, op string, names []string) ([]*claviger.Metadata, error) {
	r := request{op: op, method: http.MethodGet, path: "/v1/keys/metadata", query: url.Values{"key": names}, safe: true,
		status: http.StatusOK, most: min(maxBody, int64(len(names))*smallBody)}
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
		return nil, claviger.Errorf(op, claviger.Internal, r.key, "KMS %s: %d entries for %d keys", p.uri, len(list),
			len(names))
	}
	for i, m := range list {
		if m != nil && m.Name != names[i] {
			return nil, claviger.Errorf(op, claviger.Internal, names[i], "KMS %s: the entry of another key, %q", p.uri,
				m.Name)
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
		safe: true, status: http.StatusOK, most: entries(maxVersions, key)})
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
		// A KMS over a Java keystore answers the name of a key here with 500.
		return claviger.KeyVersion{}, claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	return p.version(ctx, request{op: op, key: version, path: "/v1/keyversion/" + escape(version)}, key,
		claviger.VersionNotFound)
}

// version makes a request for one version of key; missing is the kind of an
// empty answer.
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

// bitLength asks for the length of a key, which the JSON of a version tells by
// its material only.
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

// Describe tells of the key of that name and of the deleted ones of that name that
// the user may undelete or purge. Kinds KeyNotFound, Denied, KeyDenied; Unsupported
// where the KMS isn't claviger.
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
