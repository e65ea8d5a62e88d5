package hsm

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
)

// EncryptBlocks encrypts blocks in the HSM. Each result is verified by the version's check value.
func (p *Provider) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	const op = "hsm.EncryptBlocks"
	if err := p.ready(op, version); err != nil {
		return err
	}
	e, err := p.entry(ctx, version)
	if err != nil {
		return err
	}
	if err := p.needsToken(ctx, op); err != nil && p.standby == nil {
		return err
	}
	began := time.Since(processStart)
	if err := p.encrypt(ctx, op, e, blocks); err != nil {
		p.encryptions.recordFailure(ctx, version, began, err)
		return err
	}
	p.encryptions.recordSuccess(e, began)
	return nil
}

// encryptFirst encrypts with the first token.
func (p *Provider) encryptFirst(ctx context.Context, op string, e *entry, blocks []byte) error {
	if err := p.needsToken(ctx, op); err != nil {
		return err
	}
	if len(e.check) == 0 { // without a check value, nothing could verify the token's result
		return p.refuse(e, nil)
	}
	epoch := p.epoch.Load() + 1
	err := p.withChoice(ctx, e, func() error { return p.tok.EncryptBlocks(ctx, e.id, e.name, e.check, blocks) })
	if err = p.judge(e, epoch, err); err != nil {
		return p.missingOnToken(ctx, op, e, err)
	}
	return nil
}

// missingOnToken returns the error for a key that the token does not hold: another process on the same store has
// deleted it, or it is lost. It returns other errors as they are.
func (p *Provider) missingOnToken(ctx context.Context, op string, e *entry, err error) error {
	if err == nil || !claviger.Is(err, claviger.KeyNotFound) {
		return err
	}
	p.versions.Delete(e.name)
	if _, _, serr := p.store.ByVersion(ctx, e.name); claviger.Is(serr, claviger.VersionNotFound) {
		p.refused.Delete(e.name)
		return serr
	}
	p.refused.Store(e.name, struct{}{})
	// Kind Unavailable, because the HSM of another node may hold it.
	if errors.Is(err, fs.ErrPermission) { // the key may be in a file that the process may not read; the error names it
		return claviger.E(op, claviger.Unavailable, e.name, unusable{err})
	}
	return claviger.E(op, claviger.Unavailable, e.name, unusable{fmt.Errorf("%w; the metastore knows it: is this "+
		"the right token, and was it restored whole?", err)})
}

// entry returns a version's entry, from the cache or the store.
func (p *Provider) entry(ctx context.Context, version string) (*entry, error) {
	if v, ok := p.versions.Load(version); ok {
		e, _ := v.(*entry)
		return e, nil
	}
	m, v, err := p.store.ByVersion(ctx, version)
	if err != nil {
		return nil, p.missingInStore(ctx, "hsm.entry", version, err)
	}
	e, err := newEntry(m, v)
	if err != nil {
		return nil, err
	}
	actual, _ := p.versions.LoadOrStore(version, e)
	e, _ = actual.(*entry)
	return e, nil
}

func newEntry(m *claviger.Metadata, v metastore.Version) (*entry, error) {
	name := claviger.VersionName(m.Name, v.ID)
	id, err := decodeID("hsm.entry", name, v.Object)
	if err != nil {
		return nil, err
	}
	return &entry{key: m.Name, name: name, id: id, bits: m.BitLength, check: v.Check}, nil
}

// decodeID decodes a CKA_ID of the metastore.
func decodeID(op, version, object string) ([]byte, error) {
	id, err := hex.DecodeString(object)
	if err != nil || len(id) == 0 {
		return nil, claviger.Errorf(op, claviger.Internal, version, "the metastore holds the CKA_ID %q, which is "+
			"not hexadecimal", object)
	}
	return id, nil
}

// Keys returns the names of all keys.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	if err := p.ready("hsm.Keys", ""); err != nil {
		return nil, err
	}
	return p.store.Names(ctx)
}

// Metadata returns one entry for each name. If one name is requested, and the store has lost that key, it fails.
// Among several names the entry of a lost key is nil, so that one lost key does not break a list of many.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	if err := p.ready("hsm.Metadata", ""); err != nil {
		return nil, err
	}
	keys, err := p.store.Get(ctx, names...)
	if err != nil {
		return nil, err
	}
	if len(names) == 1 && keys[0] == nil {
		if err := p.errorIfLost(ctx, "hsm.Metadata", names[0]); err != nil {
			return nil, err
		}
	}
	list := make([]*claviger.Metadata, len(keys))
	for i, k := range keys {
		if k != nil {
			m := k.Metadata
			m.Attributes = maps.Clone(m.Attributes)
			if m.Attributes == nil {
				m.Attributes = map[string]string{}
			}
			list[i] = &m
		}
	}
	return list, nil
}

// Versions returns all versions of a key.
func (p *Provider) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	if err := p.ready("hsm.Versions", key); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, p.errorIfLost(ctx, "hsm.Versions", key)
	}
	return versionsOf(k), nil
}

// Describe returns all versions of a key with their objects on the token.
func (p *Provider) Describe(ctx context.Context, key string) ([]provider.VersionFacts, error) {
	if err := p.ready("hsm.Describe", key); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, p.errorIfLost(ctx, "hsm.Describe", key)
	}
	facts := make([]provider.VersionFacts, len(k.List))
	for i, v := range k.List {
		name := claviger.VersionName(k.Name, v.ID)
		facts[i] = provider.VersionFacts{Name: name, Created: v.Created, Label: name, ID: v.Object}
	}
	return facts, nil
}

// key returns a key of the store, or nil if there is none.
func (p *Provider) key(ctx context.Context, name string) (*metastore.Key, error) {
	keys, err := p.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

func versionsOf(k *metastore.Key) []claviger.KeyVersion {
	vs := make([]claviger.KeyVersion, len(k.List))
	of := sharedMetadata(&k.Metadata)
	for i, v := range k.List {
		vs[i] = claviger.KeyVersion{Key: k.Name, Name: claviger.VersionName(k.Name, v.ID), BitLength: k.BitLength,
			Of: of}
	}
	return vs
}

// sharedMetadata copies a key's metadata for KeyVersion.Of.
func sharedMetadata(m *claviger.Metadata) *claviger.Metadata {
	of := *m
	if of.Attributes == nil {
		of.Attributes = map[string]string{}
	}
	return &of
}

// Current returns a key's newest version.
func (p *Provider) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	vs, err := p.Versions(ctx, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if len(vs) == 0 {
		return claviger.KeyVersion{}, claviger.E("hsm.Current", claviger.KeyNotFound, key, nil)
	}
	return vs[len(vs)-1], nil
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	if err := p.ready("hsm.Version", version); err != nil {
		return claviger.KeyVersion{}, err
	}
	m, _, err := p.store.ByVersion(ctx, version)
	if err != nil {
		return claviger.KeyVersion{}, p.missingInStore(ctx, "hsm.Version", version, err)
	}
	return claviger.KeyVersion{Key: m.Name, Name: version, BitLength: m.BitLength, Of: sharedMetadata(m)}, nil
}

func tokenName(i pkcs11.TokenInfo) string { return fmt.Sprintf("%q (serial %s)", i.Label, i.Serial) }
