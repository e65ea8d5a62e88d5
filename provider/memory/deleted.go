package memory

import (
	"context"
	"slices"

	"claviger"
	"claviger/provider"
)

// Deleted returns the deleted keys.
func (p *Provider) Deleted(ctx context.Context, names ...string) ([]provider.Deleted, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, "memory.Deleted", ""); err != nil {
		return nil, err
	}
	list := []provider.Deleted{}
	for _, k := range p.deleted {
		if len(names) > 0 && !slices.Contains(names, k.meta.Name) {
			continue
		}
		d := provider.Deleted{Metadata: copyMetadata(k.meta), Since: k.since}
		d.Versions = k.count()
		for _, v := range k.versions {
			d.List = append(d.List, v.name)
		}
		list = append(list, d)
	}
	return list, nil
}

// has reports whether k is a key of that name with one of these versions.
func (k *key) has(name string, versions ...string) bool {
	return k.meta.Name == name && slices.ContainsFunc(k.versions,
		func(v *version) bool { return slices.Contains(versions, v.name) })
}

// Undelete brings back the deleted key that has the version. With sequential ids several deleted keys may have a
// version of that name; then Undelete brings back the key that was deleted last.
func (p *Provider) Undelete(ctx context.Context, name, version string) error {
	const op = "memory.Undelete"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	for i, k := range slices.Backward(p.deleted) {
		if !k.has(name, version) {
			continue
		}
		if p.keys[name] != nil {
			return claviger.E(op, claviger.KeyExists, name, nil)
		}
		if p.unfinished[name] != nil {
			return claviger.Errorf(op, claviger.Unavailable, name, "an import of the key must be finished first")
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

// Purge wipes the deleted keys that have this name and one of the versions.
func (p *Provider) Purge(ctx context.Context, name string, versions ...string) error {
	const op = "memory.Purge"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	before := len(p.deleted)
	p.deleted = slices.DeleteFunc(p.deleted, func(k *key) bool {
		purge := k.has(name, versions...)
		if purge {
			p.wipe(k)
		}
		return purge
	})
	if len(p.deleted) == before {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	return nil
}
