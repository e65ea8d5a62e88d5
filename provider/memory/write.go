package memory

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// Import makes a key with given metadata. The versions of an interrupted import stay, invisible, for the next Import
// of that key. step may call the provider, except for Import.
func (p *Provider) Import(ctx context.Context, m claviger.Metadata, n, first int,
	step func(string) error) ([]claviger.KeyVersion, error) {
	const op = "memory.Import"
	if err := provider.CheckImport(op, m.Name, n, first); err != nil {
		return nil, err
	}
	if err := provider.CheckSpec(op, provider.Spec{Name: m.Name, Cipher: m.Cipher,
		BitLength: m.BitLength}); err != nil {
		return nil, err
	}
	p.importing.Lock()
	defer p.importing.Unlock()

	// do makes one step with p.mu held, and then calls step without p.mu.
	do := func(name string, f func() error) error {
		p.mu.Lock()
		err := p.ready(ctx, op, m.Name)
		if err == nil {
			err = f()
		}
		p.mu.Unlock()
		if err != nil || step == nil {
			return err
		}
		if err := step(name); err != nil {
			return claviger.Errorf(op, claviger.KindOf(err), m.Name, "import interrupted after %q: %w", name, err)
		}
		return nil
	}

	var k *key
	err := do("intent", func() (err error) { k, err = p.begin(op, m, n, first); return err })
	for i := 0; err == nil && i < n; i++ {
		if i < len(k.versions) {
			continue // an earlier call made it
		}
		err = do(fmt.Sprintf("generated %d of %d", i+1, n), func() error {
			p.addVersion(k, nil)
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	var versions []claviger.KeyVersion
	err = do("committed", func() error { versions = p.commit(k); return nil })
	if err != nil {
		return nil, err
	}
	return versions, nil
}

// begin returns the invisible key of an import. It keeps the versions of an interrupted import that the import of n
// versions from first on can use. p.mu must be held.
func (p *Provider) begin(op string, m claviger.Metadata, n, first int) (*key, error) {
	if p.keys[m.Name] != nil {
		return nil, claviger.E(op, claviger.KeyExists, m.Name, nil)
	}
	k := p.unfinished[m.Name]
	if k == nil {
		k = &key{}
		p.unfinished[m.Name] = k
	}
	if k.meta.BitLength != m.BitLength || len(k.versions) > 0 && number(k.versions[0].name) < first {
		p.shorten(k, 0)
	}
	p.next[m.Name] = max(p.next[m.Name], first)
	p.shorten(k, n)
	k.meta = copyMetadata(m) // use the latest metadata: the source may have changed
	return k, nil
}

// commit makes an imported key visible, and returns its versions. p.mu must be held.
func (p *Provider) commit(k *key) []claviger.KeyVersion {
	for _, v := range k.versions {
		v.visible = true
	}
	p.keys[k.meta.Name] = k
	delete(p.unfinished, k.meta.Name)
	return p.showAll(k.versions)
}

// shorten removes the versions after the first n of an unfinished key. p.mu must be held.
func (p *Provider) shorten(k *key, n int) {
	for _, v := range k.versions[min(n, len(k.versions)):] {
		v.material.Wipe()
		delete(p.versions, v.name)
	}
	k.versions = k.versions[:min(n, len(k.versions))]
}

// Create makes a key.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	const op = "memory.Create"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, spec.Name); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.checkSealed(op, spec.Name, spec.Material); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := provider.CheckSpec(op, spec); err != nil {
		return claviger.KeyVersion{}, err
	}
	if p.keys[spec.Name] != nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyExists, spec.Name, nil)
	}
	if p.unfinished[spec.Name] != nil {
		return claviger.KeyVersion{}, claviger.Errorf(op, claviger.Unavailable, spec.Name,
			"an import of the key must be finished first")
	}
	k := &key{meta: copyMetadata(claviger.Metadata{
		Name: spec.Name, Cipher: spec.Cipher, BitLength: spec.BitLength,
		Description: spec.Description, Attributes: spec.Attributes,
		Created: time.Now().Truncate(time.Millisecond),
	})}
	p.next[spec.Name] = max(p.next[spec.Name], spec.First)
	v := p.addVersion(k, spec.Material)
	v.visible = true
	p.keys[spec.Name] = k
	return p.show(v), nil
}

// checkSealed refuses given material if the provider is sealed.
func (p *Provider) checkSealed(op, name string, material secret.Bytes) error {
	if p.cfg.Sealed && material != nil {
		return claviger.Errorf(op, claviger.Unsupported, name, "this provider makes its key material itself, and does "+
			"not accept given material")
	}
	return nil
}

// addVersion adds an invisible version. p.mu must be held.
func (p *Provider) addVersion(k *key, material secret.Bytes) *version {
	v := &version{of: k, bits: k.meta.BitLength}
	if material == nil {
		v.material = make(secret.Bytes, v.bits/8)
		_, _ = rand.Read(v.material) // Read never fails
	} else {
		v.material = slices.Clone(material)
	}
	v.name = claviger.VersionName(k.meta.Name, p.id(k))
	k.versions = append(k.versions, v)
	p.versions[v.name] = v
	return v
}

// id returns the id of a key's next version. p.mu must be held.
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

// number returns the number of a version, and -1 for a random id.
func number(version string) int {
	if n, ok := claviger.VersionNumber(version); ok {
		return n
	}
	return -1
}

// count returns Metadata.Versions of a key.
func (k *key) count() int {
	newest := k.versions[len(k.versions)-1].name
	return claviger.CountVersions(newest[len(k.meta.Name)+1:], len(k.versions))
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, name string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, name, material, provider.AllowAll)
}

// RollIf is Roll, but only if allow returns nil.
func (p *Provider) RollIf(ctx context.Context, name string, material secret.Bytes,
	allow func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	const op = "memory.Roll"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.checkSealed(op, name, material); err != nil {
		return claviger.KeyVersion{}, err
	}
	k := p.keys[name]
	if k == nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	if err := allow(k.metadata()); err != nil {
		return claviger.KeyVersion{}, err
	}
	if material != nil {
		if err := provider.CheckMaterial(op, name, k.meta.BitLength, material); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	v := p.addVersion(k, material)
	v.visible = true
	return p.show(v), nil
}

// Delete wipes a key, or hides it.
func (p *Provider) Delete(ctx context.Context, name string) error {
	return p.DeleteIf(ctx, name, provider.AllowAll)
}

// DeleteIf is Delete, but only if allow returns nil.
func (p *Provider) DeleteIf(ctx context.Context, name string, allow func(*claviger.Metadata) error) error {
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
	if err := allow(k.metadata()); err != nil {
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

// wipe wipes a key's versions. p.mu must be held.
func (p *Provider) wipe(k *key) {
	for _, v := range k.versions {
		v.material.Wipe()
		if p.versions[v.name] == v { // with sequential ids, a version of a newer key may have the name
			delete(p.versions, v.name)
		}
	}
}
