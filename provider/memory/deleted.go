package memory

import (
	"context"
	"slices"

	"claviger"
	"claviger/provider"
)

// Deleted returns the keys that were deleted softly.
func (p *Provider) Deleted(ctx context.Context) ([]provider.Deleted, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, "memory.Deleted", ""); err != nil {
		return nil, err
	}
	list := make([]provider.Deleted, len(p.deleted))
	for i, k := range p.deleted {
		d := provider.Deleted{Metadata: copyMetadata(k.meta), Since: k.since}
		d.Versions = k.count()
		for _, v := range k.versions {
			d.List = append(d.List, v.name)
		}
		list[i] = d
	}
	return list, nil
}

// Undelete brings back the key of that name that was deleted last.
func (p *Provider) Undelete(ctx context.Context, name string) error {
	const op = "memory.Undelete"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	for i, k := range slices.Backward(p.deleted) {
		if k.meta.Name != name {
			continue
		}
		if p.keys[name] != nil {
			return claviger.E(op, claviger.KeyExists, name, nil)
		}
		if p.half[name] != nil {
			return claviger.Errorf(op, claviger.Unavailable, name, "an import of the key was begun and must be finished first")
		}
		// With sequential ids the versions of several deleted keys have the same names.
		for _, v := range k.versions {
			v.visible = true
			p.versions[v.name] = v
		}
		p.keys[name] = k
		p.deleted = slices.Delete(p.deleted, i, i+1)
		return nil
	}
	return claviger.E(op, claviger.KeyNotFound, name, nil)
}

// Purge wipes all deleted keys of that name.
func (p *Provider) Purge(ctx context.Context, name string) error {
	const op = "memory.Purge"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	before := len(p.deleted)
	p.deleted = slices.DeleteFunc(p.deleted, func(k *key) bool {
		if k.meta.Name == name {
			p.wipe(k)
		}
		return k.meta.Name == name
	})
	if len(p.deleted) == before {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	return nil
}
