package kmsclient

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/secret"
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
			return nil, claviger.Errorf(op, claviger.Internal, names[i], "KMS %s: the entry of another key, %q", p.uri, m.Name)
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
	body, err := p.do(ctx, request{op: op, key: key, method: http.MethodGet, path: keyPath(key, "/_versions"), safe: true,
		status: http.StatusOK, most: entries(maxVersions, key)})
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
func (p *Provider) version(ctx context.Context, r request, key string, missing claviger.Kind) (claviger.KeyVersion,
	error) {
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

// Create makes a key.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	var none claviger.KeyVersion
	if p.ctx.Err() != nil {
		return none, closedError(opCreate, spec.Name)
	}
	// Asked here, because Hadoop's KMS puts a default in the place of a 0.
	if err := provider.CheckSpec(opCreate, spec); err != nil {
		return none, err
	}
	in := kmswire.AppendCreate(nil, kmswire.Create{Name: spec.Name, Cipher: spec.Cipher, Length: spec.BitLength,
		Description: spec.Description, Attributes: spec.Attributes, Material: spec.Material})
	defer clear(in)
	body, err := p.do(ctx, request{op: opCreate, key: spec.Name, method: http.MethodPost, path: "/v1/keys", body: in,
		status: http.StatusCreated})
	if err != nil {
		return none, err
	}
	defer clear(body)
	v, err := read(opCreate, spec.Name, body, kmswire.ReadKeyVersion)
	if err != nil {
		return none, err
	}
	return checkVersion(opCreate, spec.Name, v, spec.BitLength)
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	var none claviger.KeyVersion
	if p.ctx.Err() != nil {
		return none, closedError(opRoll, key)
	}
	if key == "" {
		return none, claviger.E(opRoll, claviger.KeyNotFound, key, nil)
	}
	// The answer tells the length only to who may see the material; and after the
	// rollover nothing may fail any more.
	bits, err := p.bitLength(ctx, opRoll, key)
	if err != nil {
		return none, err
	}
	if material != nil {
		if err := provider.CheckMaterial(opRoll, key, bits, material); err != nil {
			return none, err
		}
	}
	in := kmswire.AppendRoll(nil, material)
	defer clear(in)
	body, err := p.do(ctx, request{op: opRoll, key: key, method: http.MethodPost, path: keyPath(key, ""), body: in,
		status: http.StatusOK})
	if err != nil {
		return none, err
	}
	defer clear(body)
	p.invalidate(ctx, key)
	v, err := read(opRoll, key, body, kmswire.ReadKeyVersion)
	if err != nil {
		return none, err
	}
	return checkVersion(opRoll, key, v, bits)
}

// Delete ends a key.
func (p *Provider) Delete(ctx context.Context, key string) error {
	if p.ctx.Err() != nil {
		return closedError(opDelete, key)
	}
	if key == "" {
		return claviger.E(opDelete, claviger.KeyNotFound, key, nil)
	}
	if _, err := p.do(ctx, request{op: opDelete, key: key, method: http.MethodDelete, path: keyPath(key, ""),
		status: http.StatusOK, noBody: true}); err != nil {
		return err
	}
	p.invalidate(ctx, key)
	return nil
}

// invalidateTimeout bounds how long a host that is away holds up a rollover.
const invalidateTimeout = 5 * time.Second

// invalidate has each host forget what it has cached of a key, as Hadoop's
// client does after a rollover and a deletion. A host that cannot be told will
// know by itself when its caches expire; the key has been changed all the same,
// and so that is no error.
func (p *Provider) invalidate(ctx context.Context, key string) {
	if len(p.hosts) == 1 {
		return // the host that did it has forgotten by itself
	}
	ctx, cancel := context.WithTimeout(ctx, invalidateTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	var wg sync.WaitGroup
	for _, h := range p.hosts {
		wg.Go(func() {
			r := request{op: "kmsclient.invalidate", key: key, method: http.MethodPost, path: keyPath(key, "/_invalidatecache"),
				status: http.StatusOK, noBody: true}
			if _, f := p.attempt(ctx, h, r); f != nil {
				p.opt.Log.Warn("KMS host may serve the key's old versions until its caches expire", "host", h.base, "key", key,
					"err", f.err)
			}
		})
	}
	wg.Wait()
}
