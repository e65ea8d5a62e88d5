package memory

import (
	"context"
	"crypto/aes"
	"maps"
	"slices"

	"claviger"
)

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.ready(ctx, "memory.Keys", ""); err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(p.keys)), nil
}

// Metadata returns one entry for each name.
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

// metadata returns a copy of the key's metadata.
func (k *key) metadata() *claviger.Metadata {
	m := copyMetadata(k.meta)
	m.Versions = k.count()
	return &m
}

// copyMetadata returns a copy that shares no memory with m.
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

// show returns v with its key's metadata, and with its material unless the provider is sealed.
func (p *Provider) show(v *version) claviger.KeyVersion { return p.showOf(v, v.of.metadata()) }

// showOf is show with given metadata.
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

// EncryptBlocksOf encrypts with the version's material, if the name still belongs to that version. With sequential ids
// the name may belong to another key by now.
func (p *Provider) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return p.encrypt(ctx, v.Name, &v, blocks)
}

// encrypt encrypts under the version of that name. If only is not nil, it must be that version.
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
