// Package memory is a provider that keeps its keys in the process's memory. It
// is what tests and demos stand on; nothing of it outlives Close.
package memory

import (
	"context"
	"crypto/aes"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// Config says how a memory provider behaves. The zero value shows its material,
// takes material, and numbers its versions as the HSM provider does: no number is
// used twice for a name.
type Config struct {
	// URI names the provider in messages; "memory:" where it is empty.
	URI string
	// SequentialIDs: versions are key@0, key@1, ... as a Java keystore's, also those
	// of a key that was made anew.
	SequentialIDs bool
	// OpaqueIDs: versions have random ids, as a Key Trustee KMS's.
	OpaqueIDs bool
	// SoftDelete: Delete keeps a key until it is purged.
	SoftDelete bool
	// Sealed: behaves as an HSM does. Material is neither shown nor taken.
	Sealed bool
}

// Provider is a provider.Provider, a BlockEncrypter and an Importer.
type Provider struct {
	cfg Config

	importing sync.Mutex // one import at a time; taken before mu

	mu       sync.RWMutex
	closed   bool
	keys     map[string]*key
	versions map[string]*version // by full name, half-made ones included
	half     map[string]*key     // imports that were begun, by key name
	deleted  []*key              // softly, longest deleted first
	next     map[string]int      // the next number of a version, by key name; stays when the key goes
}

type key struct {
	meta     claviger.Metadata
	versions []*version // oldest first
	since    time.Time  // of its deletion
}

type version struct {
	of       *key
	name     string
	bits     int
	material secret.Bytes
	visible  bool // false while the import that made it is not committed, and while its key is deleted
}

var (
	_ provider.Provider       = (*Provider)(nil)
	_ provider.BlockEncrypter = (*Provider)(nil)
	_ provider.Pinned         = (*Provider)(nil)
	_ provider.Conditional    = (*Provider)(nil)
	_ provider.Importer       = (*Provider)(nil)
	_ provider.Health         = (*Provider)(nil)
	_ provider.SoftDeleter    = (*Provider)(nil)
)

// New makes an empty provider.
func New(cfg Config) *Provider {
	if cfg.URI == "" {
		cfg.URI = "memory:"
	}
	return &Provider{cfg: cfg, keys: map[string]*key{}, versions: map[string]*version{}, half: map[string]*key{}, next: map[string]int{}}
}

// Scheme is the registry's line for URIs "memory:".
func Scheme() provider.Scheme {
	return provider.Scheme{Name: "memory", Open: func(_ context.Context, uri string, _ provider.Env) (provider.Provider, error) {
		return New(Config{URI: uri}), nil
	}}
}

// URI names the provider.
func (p *Provider) URI() string { return p.cfg.URI }

// Close wipes all keys.
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.versions {
		v.material.Wipe()
	}
	for _, k := range p.deleted {
		p.wipe(k)
	}
	p.closed = true
	clear(p.keys)
	clear(p.versions)
	clear(p.half)
	p.deleted = nil
	return nil
}

// ready is what every method asks first. Needs the lock.
func (p *Provider) ready(ctx context.Context, op, about string) error {
	if p.closed {
		return claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, about, err)
	}
	return nil
}

// Check never finds anything wrong before Close.
func (p *Provider) Check(ctx context.Context) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.ready(ctx, "memory.Check", "")
}

// Objects returns how many key versions are held, those of imports that were
// begun and not finished included.
func (p *Provider) Objects() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.versions)
}

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, "memory.Keys", ""); err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(p.keys)), nil
}

// Metadata returns one entry per name.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, "memory.Metadata", ""); err != nil {
		return nil, err
	}
	out := make([]*claviger.Metadata, len(names))
	for i, name := range names {
		if k := p.keys[name]; k != nil {
			out[i] = k.metadata()
		}
	}
	return out, nil
}

// metadata is the key's metadata as it is now; the caller's own.
func (k *key) metadata() *claviger.Metadata {
	m := copyMetadata(k.meta)
	m.Versions = k.count()
	return &m
}

// copyMetadata makes a copy that shares nothing with m.
func copyMetadata(m claviger.Metadata) claviger.Metadata {
	if m.Description != nil {
		d := *m.Description
		m.Description = &d
	}
	attributes := make(map[string]string, len(m.Attributes))
	maps.Copy(attributes, m.Attributes)
	m.Attributes = attributes
	return m
}

func (p *Provider) show(v *version) claviger.KeyVersion { return p.showOf(v, v.of.metadata()) }

func (p *Provider) showOf(v *version, of *claviger.Metadata) claviger.KeyVersion {
	kv := claviger.KeyVersion{Key: of.Name, Name: v.name, BitLength: v.bits, Of: of}
	if !p.cfg.Sealed {
		kv.Material = slices.Clone(v.material)
	}
	return kv
}

func (p *Provider) showAll(list []*version) []claviger.KeyVersion {
	out := make([]claviger.KeyVersion, len(list))
	for i, v := range list {
		if i == 0 {
			out[i] = p.show(v)
			continue
		}
		out[i] = p.showOf(v, out[0].Of)
	}
	return out
}

// Versions returns a key's versions, oldest first.
func (p *Provider) Versions(ctx context.Context, name string) ([]claviger.KeyVersion, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, "memory.Versions", name); err != nil {
		return nil, err
	}
	k := p.keys[name]
	if k == nil {
		return []claviger.KeyVersion{}, nil
	}
	return p.showAll(k.versions), nil
}

// Current returns a key's newest version.
func (p *Provider) Current(ctx context.Context, name string) (claviger.KeyVersion, error) {
	const op = "memory.Current"
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, op, name); err != nil {
		return claviger.KeyVersion{}, err
	}
	k := p.keys[name]
	if k == nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	return p.show(k.versions[len(k.versions)-1]), nil
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, name string) (claviger.KeyVersion, error) {
	const op = "memory.Version"
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, op, name); err != nil {
		return claviger.KeyVersion{}, err
	}
	v := p.versions[name]
	if v == nil || !v.visible {
		return claviger.KeyVersion{}, claviger.E(op, claviger.VersionNotFound, name, nil)
	}
	return p.show(v), nil
}

// EncryptBlocks encrypts with the version's material.
func (p *Provider) EncryptBlocks(ctx context.Context, name string, blocks []byte) error {
	return p.encrypt(ctx, name, nil, blocks)
}

// EncryptBlocksOf encrypts with the version's material, if it still is that
// version. With sequential ids the name may be another key's by now.
func (p *Provider) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return p.encrypt(ctx, v.Name, &v, blocks)
}

// encrypt encrypts under the version of that name; only, if not nil, is the
// version that it must be.
func (p *Provider) encrypt(ctx context.Context, name string, only *claviger.KeyVersion, blocks []byte) error {
	const op = "memory.EncryptBlocks"
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	v := p.versions[name]
	if v == nil || !v.visible {
		return claviger.E(op, claviger.VersionNotFound, name, nil)
	}
	if only != nil && p.cfg.SequentialIDs && !p.cfg.Sealed && !only.Material.Equal(v.material) {
		return claviger.E(op, claviger.VersionNotFound, name, nil)
	}
	if len(blocks)%aes.BlockSize != 0 {
		return claviger.Errorf(op, claviger.Internal, name, "%d bytes are not whole blocks", len(blocks))
	}
	c, err := aes.NewCipher(v.material)
	if err != nil {
		return claviger.E(op, claviger.Internal, name, err)
	}
	for ; len(blocks) > 0; blocks = blocks[aes.BlockSize:] {
		c.Encrypt(blocks, blocks)
	}
	return nil
}

// Create makes a key.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	const op = "memory.Create"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, spec.Name); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.takes(op, spec.Name, spec.Material); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := provider.CheckSpec(op, spec); err != nil {
		return claviger.KeyVersion{}, err
	}
	if p.keys[spec.Name] != nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyExists, spec.Name, nil)
	}
	if p.half[spec.Name] != nil {
		return claviger.KeyVersion{}, claviger.Errorf(op, claviger.Unavailable, spec.Name, "an import of the key was begun and must be finished first")
	}
	k := &key{meta: copyMetadata(claviger.Metadata{
		Name: spec.Name, Cipher: spec.Cipher, BitLength: spec.BitLength,
		Description: spec.Description, Attributes: spec.Attributes,
		Created: time.Now().Truncate(time.Millisecond),
	})}
	p.next[spec.Name] = max(p.next[spec.Name], spec.First)
	v := p.grow(k, spec.Material)
	v.visible = true
	p.keys[spec.Name] = k
	return p.show(v), nil
}

func (p *Provider) takes(op, name string, material secret.Bytes) error {
	if p.cfg.Sealed && material != nil {
		return claviger.Errorf(op, claviger.Unsupported, name, "this provider makes its key material itself and takes none")
	}
	return nil
}

// grow adds a version, not visible yet. Needs the lock.
func (p *Provider) grow(k *key, material secret.Bytes) *version {
	v := &version{of: k, bits: k.meta.BitLength}
	if material == nil {
		v.material = make(secret.Bytes, v.bits/8)
		_, _ = rand.Read(v.material) // never fails: crypto/rand
	} else {
		v.material = slices.Clone(material)
	}
	v.name = claviger.VersionName(k.meta.Name, p.id(k))
	k.versions = append(k.versions, v)
	p.versions[v.name] = v
	return v
}

// id makes the id of a key's next version. Needs the lock.
func (p *Provider) id(k *key) string {
	switch {
	case p.cfg.SequentialIDs:
		return strconv.Itoa(len(k.versions))
	case p.cfg.OpaqueIDs:
		random := make([]byte, 16)
		_, _ = rand.Read(random)
		return hex.EncodeToString(random)
	}
	n := p.next[k.meta.Name]
	p.next[k.meta.Name]++
	return strconv.Itoa(n)
}

// number returns the number of a version's name, -1 for an opaque one.
func number(version string) int {
	if n, ok := claviger.VersionNumber(version); ok {
		return n
	}
	return -1
}

// count returns what the metadata says of a key's versions.
func (k *key) count() int {
	newest := k.versions[len(k.versions)-1].name
	return claviger.CountVersions(newest[len(k.meta.Name)+1:], len(k.versions))
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, name string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, name, material, provider.Anyway)
}

// RollIf is Roll where may allows it.
func (p *Provider) RollIf(ctx context.Context, name string, material secret.Bytes, may func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	const op = "memory.Roll"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.takes(op, name, material); err != nil {
		return claviger.KeyVersion{}, err
	}
	k := p.keys[name]
	if k == nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	if err := may(k.metadata()); err != nil {
		return claviger.KeyVersion{}, err
	}
	if material != nil {
		if err := provider.CheckMaterial(op, name, k.meta.BitLength, material); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	v := p.grow(k, material)
	v.visible = true
	return p.show(v), nil
}

// Delete wipes a key, or keeps it out of sight.
func (p *Provider) Delete(ctx context.Context, name string) error {
	return p.DeleteIf(ctx, name, provider.Anyway)
}

// DeleteIf is Delete where may allows it.
func (p *Provider) DeleteIf(ctx context.Context, name string, may func(*claviger.Metadata) error) error {
	const op = "memory.Delete"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	k := p.keys[name]
	if k == nil {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	if err := may(k.metadata()); err != nil {
		return err
	}
	delete(p.keys, name)
	if p.cfg.SoftDelete {
		for _, v := range k.versions {
			v.visible = false
		}
		k.since = time.Now().Truncate(time.Millisecond)
		p.deleted = append(p.deleted, k)
		return nil
	}
	p.wipe(k)
	return nil
}

// wipe ends a key's versions. Needs the lock.
func (p *Provider) wipe(k *key) {
	for _, v := range k.versions {
		v.material.Wipe()
		if p.versions[v.name] == v { // with sequential ids, a newer key's may have the name
			delete(p.versions, v.name)
		}
	}
}
