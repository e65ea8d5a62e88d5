package memory

import (
	"context"
	"fmt"

	"claviger"
	"claviger/provider"
)

// Import makes a key after another's metadata. What an import that was broken
// off has made waits, invisible, for the next Import of that key. step may call
// the provider, except for Import.
func (p *Provider) Import(ctx context.Context, m claviger.Metadata, n, first int, step func(string) error) ([]claviger.KeyVersion, error) {
	const op = "memory.Import"
	if err := provider.CheckImport(op, m.Name, n, first); err != nil {
		return nil, err
	}
	if err := provider.CheckSpec(op, provider.Spec{Name: m.Name, Cipher: m.Cipher, BitLength: m.BitLength}); err != nil {
		return nil, err
	}
	p.importing.Lock()
	defer p.importing.Unlock()

	// do makes one step under the lock, and tells of it without.
	do := func(what string, f func() error) error {
		p.mu.Lock()
		err := p.ready(ctx, op, m.Name)
		if err == nil {
			err = f()
		}
		p.mu.Unlock()
		if err != nil || step == nil {
			return err
		}
		if err := step(what); err != nil {
			return claviger.Errorf(op, claviger.KindOf(err), m.Name, "import broken off after %q: %w", what, err)
		}
		return nil
	}

	var k *key
	err := do("intent", func() error {
		if p.keys[m.Name] != nil {
			return claviger.E(op, claviger.KeyExists, m.Name, nil)
		}
		if k = p.half[m.Name]; k == nil {
			k = &key{}
			p.half[m.Name] = k
		}
		if k.meta.BitLength != m.BitLength || len(k.versions) > 0 && number(k.versions[0].name) < first {
			p.shorten(k, 0)
		}
		p.next[m.Name] = max(p.next[m.Name], first)
		p.shorten(k, n)
		k.meta = copyMetadata(m) // of the latest call: the source may have changed
		return nil
	})
	for i := 0; err == nil && i < n; i++ {
		if i < len(k.versions) {
			continue // an earlier call made it
		}
		err = do(fmt.Sprintf("generated %d of %d", i+1, n), func() error {
			p.grow(k, nil)
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	var versions []claviger.KeyVersion
	err = do("committed", func() error {
		for _, v := range k.versions {
			v.visible = true
		}
		p.keys[m.Name] = k
		delete(p.half, m.Name)
		versions = p.showAll(k.versions)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return versions, nil
}

// shorten takes away the versions of a half-made key behind the first n. Needs
// the lock.
func (p *Provider) shorten(k *key, n int) {
	for _, v := range k.versions[min(n, len(k.versions)):] {
		v.material.Wipe()
		delete(p.versions, v.name)
	}
	k.versions = k.versions[:min(n, len(k.versions))]
}
