package keytrustee

import (
	"context"
	"crypto/aes"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/provider"
	"claviger/trustee"
)

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	const op = "keytrustee.Keys"
	if err := p.ready(ctx, op, ""); err != nil {
		return nil, err
	}
	names := []string{}
	err := p.list(ctx, keyPrefix, false, func(d *trustee.Deposit) {
		names = append(names, strings.TrimPrefix(d.Label, keyPrefix))
	})
	if err != nil {
		return nil, boxError(op, "", err)
	}
	return names, nil
}

// Metadata returns one entry for each name; nil for a name without a key.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	const op = "keytrustee.Metadata"
	if err := p.ready(ctx, op, ""); err != nil {
		return nil, err
	}
	list := make([]*claviger.Metadata, len(names))
	err := each(ctx, len(names), func(ctx context.Context, i int) error {
		k, err := p.key(ctx, op, names[i])
		if err == nil && k != nil {
			m := k.metadata()
			list[i] = &m
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// each calls f with the numbers 0 to n-1. The constant parallel is the largest number of calls at the same time.
func each(ctx context.Context, n int, f func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return f(ctx, i) })
	}
	return group.Wait()
}

// Versions returns a key's versions, oldest first.
func (p *Provider) Versions(ctx context.Context, name string) ([]claviger.KeyVersion, error) {
	const op = "keytrustee.Versions"
	if err := p.ready(ctx, op, name); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, op, name)
	if err != nil || k == nil {
		return []claviger.KeyVersion{}, err
	}
	list := make([]claviger.KeyVersion, len(k.Versions))
	err = each(ctx, len(list), func(ctx context.Context, i int) (err error) {
		list[i], err = p.fetch(ctx, op, k, k.Versions[i])
		return err
	})
	if err != nil {
		for _, v := range list {
			v.Material.Wipe()
		}
		return nil, err
	}
	return list, nil
}

// Current returns a key's newest version.
func (p *Provider) Current(ctx context.Context, name string) (claviger.KeyVersion, error) {
	const op = "keytrustee.Current"
	if err := p.ready(ctx, op, name); err != nil {
		return claviger.KeyVersion{}, err
	}
	k, err := p.key(ctx, op, name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if k == nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	return p.fetch(ctx, op, k, k.Versions[len(k.Versions)-1])
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	const op = "keytrustee.Version"
	if err := p.ready(ctx, op, version); err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.version(ctx, op, version)
}

// version is Version without the check by ready.
func (p *Provider) version(ctx context.Context, op, version string) (claviger.KeyVersion, error) {
	name, ok := claviger.KeyOfVersion(version)
	if !ok {
		return claviger.KeyVersion{}, claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	k, err := p.key(ctx, op, name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if k == nil {
		return claviger.KeyVersion{}, p.absent(ctx, op, name, version, nil)
	}
	ref, ok := k.find(version)
	if !ok {
		return claviger.KeyVersion{}, p.absent(ctx, op, name, version, k)
	}
	return p.fetch(ctx, op, k, ref)
}

// EncryptBlocks encrypts with the version's material. It fetches the material if it is not in memory.
func (p *Provider) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	const op = "keytrustee.EncryptBlocks"
	if err := p.ready(ctx, op, version); err != nil {
		return err
	}
	if len(blocks)%aes.BlockSize != 0 {
		return claviger.Errorf(op, claviger.Internal, version, "%d bytes are not whole blocks", len(blocks))
	}
	c := p.kept.block(version)
	if c == nil {
		v, err := p.version(ctx, op, version)
		if err != nil {
			return err
		}
		defer v.Material.Wipe()
		if c, err = aes.NewCipher(v.Material); err != nil {
			return claviger.E(op, claviger.Internal, version, err)
		}
	}
	for ; len(blocks) > 0; blocks = blocks[aes.BlockSize:] {
		c.Encrypt(blocks, blocks)
	}
	return nil
}

// Deleted returns the soft-deleted keys, in the order of their deletion.
func (p *Provider) Deleted(ctx context.Context, names ...string) ([]provider.Deleted, error) {
	const op = "keytrustee.Deleted"
	if err := p.ready(ctx, op, ""); err != nil {
		return nil, err
	}
	var docs []*keyDoc
	if len(names) == 0 {
		names = []string{""} // all
	} else {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" || checkName(n) != nil })
	}
	for _, name := range names {
		found, err := p.deletedDocs(ctx, op, name)
		if err != nil {
			return nil, err
		}
		docs = append(docs, found...)
	}
	slices.SortStableFunc(docs, func(a, b *keyDoc) int { return deletedAt(a).Compare(deletedAt(b)) })
	list := make([]provider.Deleted, len(docs))
	for i, k := range docs {
		list[i] = provider.Deleted{Metadata: k.metadata(), Since: deletedAt(k)}
		for _, v := range k.Versions {
			list[i].List = append(list[i].List, v.Name)
		}
	}
	return list, nil
}

// deletedDocs returns the documents of deleted keys of that name ("" for all), in the order of their deletion.
func (p *Provider) deletedDocs(ctx context.Context, op, name string) ([]*keyDoc, error) {
	prefix := deletedPrefix
	if name != "" {
		prefix += name + "/"
	}
	type entry struct{ label, name string }
	var entries []entry
	err := p.list(ctx, prefix, false, func(d *trustee.Deposit) {
		if key := deletedKeyOf(d.Label); key != "" && (name == "" || key == name) {
			entries = append(entries, entry{d.Label, key})
		}
	})
	if err != nil {
		return nil, boxError(op, name, err)
	}
	docs := make([]*keyDoc, len(entries))
	err = each(ctx, len(entries), func(ctx context.Context, i int) (err error) {
		docs[i], err = p.doc(ctx, op, entries[i].label, entries[i].name)
		return err
	})
	if err != nil {
		return nil, err
	}
	docs = slices.DeleteFunc(docs, func(k *keyDoc) bool { return k == nil }) // nil: purged in the meantime
	slices.SortStableFunc(docs, func(a, b *keyDoc) int { return deletedAt(a).Compare(deletedAt(b)) })
	return docs, nil
}

// deletedKeyOf returns the name of the key in a label deleted/<name>/<id>, or "" for any other label.
func deletedKeyOf(label string) string {
	if kind, name := trustee.KeyOfLabel(label); kind == deletedPrefix {
		return name
	}
	return ""
}
