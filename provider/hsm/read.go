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

// EncryptBlocks encrypts blocks in the HSM. A version is verified by its check
// value before its first use, and after each time that the token was away.
func (p *Provider) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	const op = "hsm.EncryptBlocks"
	if err := p.ready(op, version); err != nil {
		return err
	}
	e, err := p.entry(ctx, version)
	if err != nil {
		return err
	}
	began := time.Since(start)
	if err := p.encrypt(ctx, op, e, blocks); err != nil {
		p.seen.broke(ctx, version, began, err)
		return err
	}
	p.seen.worked(e, began)
	return nil
}

func (p *Provider) encrypt(ctx context.Context, op string, e *entry, blocks []byte) error {
	if err := p.verify(ctx, e); err != nil {
		return p.gone(ctx, op, e, err)
	}
	err := p.tok.EncryptBlocks(ctx, e.id, e.name, blocks)
	if errors.Is(err, pkcs11.ErrSeveral) { // a login since the verification has forgotten which one is meant
		if err = p.verify(ctx, e); err == nil {
			err = p.tok.EncryptBlocks(ctx, e.id, e.name, blocks)
		}
	}
	if err != nil {
		return p.gone(ctx, op, e, err)
	}
	// The call itself may have brought a lost token back, and then have used a key
	// that nobody had looked at since.
	if err := p.verify(ctx, e); err != nil {
		return p.gone(ctx, op, e, err)
	}
	return nil
}

// gone looks after a key that the token does not hold: deleted by another
// process on the same store, or lost.
func (p *Provider) gone(ctx context.Context, op string, e *entry, err error) error {
	if err == nil || !claviger.Is(err, claviger.KeyNotFound) {
		return err
	}
	p.versions.Delete(e.name)
	if _, _, serr := p.store.ByVersion(ctx, e.name); claviger.Is(serr, claviger.VersionNotFound) {
		p.refused.Delete(e.name)
		return serr
	}
	p.refused.Store(e.name, struct{}{})
	// Another node's HSM may well hold it.
	if errors.Is(err, fs.ErrPermission) { // it may be among the files that the error names
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
		return nil, p.missing(ctx, "hsm.entry", version, err)
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
	id, err := objectID("hsm.entry", name, v.Object)
	if err != nil {
		return nil, err
	}
	return &entry{key: m.Name, name: name, id: id, bits: m.BitLength, check: v.Check}, nil
}

// objectID decodes a CKA_ID as the metastore holds it.
func objectID(op, version, object string) ([]byte, error) {
	id, err := hex.DecodeString(object)
	if err != nil || len(id) == 0 {
		return nil, claviger.Errorf(op, claviger.Internal, version, "the metastore holds the CKA_ID %q, which is "+
			"not hexadecimal", object)
	}
	return id, nil
}

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	if err := p.ready("hsm.Keys", ""); err != nil {
		return nil, err
	}
	return p.store.Names(ctx)
}

// Metadata returns one entry per name. A name that the store has lost is an error where
// it alone is asked for; among others it is nil, so that one lost key does not shut the
// lists of all the others.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	if err := p.ready("hsm.Metadata", ""); err != nil {
		return nil, err
	}
	keys, err := p.store.Get(ctx, names...)
	if err != nil {
		return nil, err
	}
	if len(names) == 1 && keys[0] == nil {
		if err := p.ifLost(ctx, "hsm.Metadata", names[0]); err != nil {
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
		return nil, p.ifLost(ctx, "hsm.Versions", key)
	}
	return versionsOf(k), nil
}

// Describe is Versions, with the objects that hold the keys.
func (p *Provider) Describe(ctx context.Context, key string) ([]provider.VersionFacts, error) {
	if err := p.ready("hsm.Describe", key); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, p.ifLost(ctx, "hsm.Describe", key)
	}
	facts := make([]provider.VersionFacts, len(k.List))
	for i, v := range k.List {
		name := claviger.VersionName(k.Name, v.ID)
		facts[i] = provider.VersionFacts{Name: name, Created: v.Created, Label: name, ID: v.Object}
	}
	return facts, nil
}

// key returns a key of the store, nil where there is none.
func (p *Provider) key(ctx context.Context, name string) (*metastore.Key, error) {
	keys, err := p.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

func versionsOf(k *metastore.Key) []claviger.KeyVersion {
	vs := make([]claviger.KeyVersion, len(k.List))
	of := shared(&k.Metadata)
	for i, v := range k.List {
		vs[i] = claviger.KeyVersion{Key: k.Name, Name: claviger.VersionName(k.Name, v.ID), BitLength: k.BitLength,
			Of: of}
	}
	return vs
}

// shared is a key's metadata as KeyVersion.Of holds it.
func shared(m *claviger.Metadata) *claviger.Metadata {
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
		return claviger.KeyVersion{}, p.missing(ctx, "hsm.Version", version, err)
	}
	return claviger.KeyVersion{Key: m.Name, Name: version, BitLength: m.BitLength, Of: shared(m)}, nil
}

func tokenName(i pkcs11.TokenInfo) string { return fmt.Sprintf("%q (serial %s)", i.Label, i.Serial) }
