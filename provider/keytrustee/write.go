package keytrustee

import (
	"context"
	"crypto/rand"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
	"claviger/trustee"
)

// deletedAt returns the time when a deleted key was deleted.
func deletedAt(k *keyDoc) time.Time { return time.UnixMilli(k.Deleted) }

// depositVersion deposits a new version, and returns it with its material. No document names the version yet. given is
// its material; nil means random material.
func (p *Provider) depositVersion(ctx context.Context, op, name string, bits int,
	given secret.Bytes) (claviger.KeyVersion, versionRef, error) {
	material := slices.Clone(given)
	if material == nil {
		material = make(secret.Bytes, bits/8)
		_, _ = rand.Read(material) // Read never fails
	}
	v := claviger.KeyVersion{Key: name, Name: claviger.VersionName(name, newID()), BitLength: bits, Material: material}
	uuid, err := p.put(ctx, versionPrefix+v.Name, "", versionDoc{v.Name, material}, "")
	if err != nil {
		material.Wipe()
		return claviger.KeyVersion{}, versionRef{}, boxError(op, name, err)
	}
	return v, versionRef{v.Name, uuid}, nil
}

// drop removes a version that no document names. If drop fails, clean removes the version later.
func (p *Provider) drop(ctx context.Context, v *claviger.KeyVersion, ref versionRef) {
	v.Material.Wipe()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := p.cfg.Box.Delete(ctx, ref.UUID)
	if err == nil {
		err = p.cfg.Box.Purge(ctx, ref.UUID)
	}
	if err != nil {
		p.cfg.Log.Warn("could not remove an unused deposit; the next change of the key removes it", "version",
			ref.Name, "err", err)
	}
}

// refused reports whether err of a box means that nothing was changed. If the server did not answer, the change may
// have been made.
func refused(err error) bool {
	switch claviger.KindOf(err) {
	case claviger.KeyExists, claviger.KeyNotFound, claviger.Denied, claviger.Invalid:
		return true
	}
	return false
}

// Create makes a key.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	const op = "keytrustee.Create"
	none := claviger.KeyVersion{}
	if err := p.ready(ctx, op, spec.Name); err != nil {
		return none, err
	}
	if err := provider.CheckSpec(op, spec); err != nil {
		return none, err
	}
	if err := checkName(spec.Name); err != nil {
		return none, claviger.E(op, claviger.Invalid, spec.Name, err)
	}
	k, err := p.key(ctx, op, spec.Name)
	if err != nil {
		return none, err
	}
	if k != nil {
		return none, claviger.E(op, claviger.KeyExists, spec.Name, nil)
	}
	if err := p.checkChange(ctx, op, spec.Name); err != nil {
		return none, err
	}
	p.clean(ctx, spec.Name, nil)
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	v, ref, err := p.depositVersion(ctx, op, spec.Name, spec.BitLength, spec.Material)
	if err != nil {
		return none, err
	}
	k = &keyDoc{Name: spec.Name, Cipher: spec.Cipher, Length: spec.BitLength, Description: spec.Description,
		Attributes: maps.Clone(spec.Attributes), Created: p.cfg.Now().UnixMilli(), Versions: []versionRef{ref}}
	n := p.cfg.memory.begin()
	uuid, err := p.put(ctx, keyPrefix+spec.Name, "", k, "")
	if err != nil {
		if refused(err) {
			p.drop(ctx, &v, ref)
		}
		v.Material.Wipe()
		if claviger.Is(err, claviger.KeyExists) {
			return none, claviger.E(op, claviger.KeyExists, spec.Name, nil)
		}
		return none, boxError(op, spec.Name, err)
	}
	p.rememberPut(n, k, keyPrefix+spec.Name, uuid)
	p.keep(&v, k.Created)
	return v, nil
}

// keep keeps the material of a version in memory. made is the creation time of its key.
func (p *Provider) keep(v *claviger.KeyVersion, made int64) {
	p.seen.add(v.Name, made)
	if err := p.kept.keep(v.Name, v.Material); err != nil {
		p.cfg.Log.Error("could not keep a new version in memory", "version", v.Name, "err", err)
	}
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, name string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, name, material, provider.AllowAll)
}

// RollIf is Roll, but only if allow returns nil.
func (p *Provider) RollIf(ctx context.Context, name string, material secret.Bytes,
	allow func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	const op = "keytrustee.Roll"
	none := claviger.KeyVersion{}
	if err := p.ready(ctx, op, name); err != nil {
		return none, err
	}
	k, err := p.key(ctx, op, name)
	if err != nil {
		return none, err
	}
	if k == nil {
		return none, claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	if material != nil {
		if err := provider.CheckMaterial(op, name, k.Length, material); err != nil {
			return none, err
		}
	}
	if err := p.checkChange(ctx, op, name); err != nil {
		return none, err
	}
	p.clean(ctx, name, k)
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	v, ref, err := p.depositVersion(ctx, op, name, k.Length, material)
	if err != nil {
		return none, err
	}
	bits := k.Length
	var made int64
	err = p.replace(ctx, op, name, k, func(k *keyDoc) (string, error) {
		if k.Length != bits { // another host deleted the key, and made a new one
			return "", claviger.Errorf(op, claviger.KeyNotFound, name, "the key was deleted in the meantime")
		}
		m := k.metadata()
		if err := allow(&m); err != nil {
			return "", err
		}
		k.Versions = append(k.Versions, ref)
		made = k.Created
		return keyPrefix + name, nil
	})
	if err != nil {
		if refused(err) || claviger.Is(err, claviger.KeyDenied) {
			p.drop(ctx, &v, ref)
		}
		v.Material.Wipe()
		return none, err
	}
	p.keep(&v, made)
	return v, nil
}

// replace changes a key's document by compare and set. k is the document as it was last read, or nil. change changes
// the document and returns the label of its new deposit; replace calls it again if another host changed the key first.
// Kind KeyNotFound if there is no such key.
func (p *Provider) replace(ctx context.Context, op, name string, k *keyDoc,
	change func(*keyDoc) (string, error)) error {
	for range tries {
		if k == nil {
			var err error
			if k, err = p.key(ctx, op, name); err != nil {
				return err
			}
			if k == nil {
				return claviger.E(op, claviger.KeyNotFound, name, nil)
			}
		}
		label, err := change(k)
		if err != nil {
			return err
		}
		n := p.cfg.memory.begin()
		uuid, err := p.put(ctx, label, "", k, k.uuid)
		if err == nil {
			p.rememberPut(n, k, label, uuid)
			return nil
		}
		if !claviger.Is(err, claviger.KeyNotFound) {
			return boxError(op, name, err)
		}
		k = nil // another host changed the key first
		select {
		case <-ctx.Done():
			return claviger.E(op, claviger.Unavailable, name, ctx.Err())
		case <-time.After(mathrand.N(20 * time.Millisecond)): //nolint:gosec // so that two hosts do not collide again
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, name, "other hosts changed the key first in all %d attempts",
		tries)
}

// clean removes old versions of the key that no document names. Changes that were interrupted leave such versions. k is
// the key's document, or nil. If clean fails, the next change cleans.
func (p *Provider) clean(ctx context.Context, name string, k *keyDoc) {
	const op = "keytrustee.clean"
	named := map[string]bool{}
	if k != nil {
		for _, v := range k.Versions {
			named[v.UUID] = true
		}
	}
	var strays []string
	old := p.cfg.Now().Add(-strayAge)
	stray := func(d *trustee.Deposit) {
		of, ok := claviger.KeyOfVersion(strings.TrimPrefix(d.Label, versionPrefix))
		if ok && of == name && !named[d.UUID] && d.Created.Before(old) {
			strays = append(strays, d.UUID)
		}
	}
	err := p.list(ctx, versionPrefix+name+"@", false, stray)
	if err == nil && len(strays) > 0 {
		var docs []*keyDoc
		if docs, err = p.deletedDocs(ctx, op, name); err == nil {
			// Read the key again, because another host may have undeleted it in the meantime.
			var live *keyDoc
			if live, err = p.key(ctx, op, name); live != nil {
				docs = append(docs, live)
			}
		}
		for _, d := range docs {
			for _, v := range d.Versions {
				named[v.UUID] = true
			}
		}
		strays = slices.DeleteFunc(strays, func(uuid string) bool { return named[uuid] })
	}
	if err == nil && len(strays) > 0 {
		err = p.destroy(ctx, strays)
	}
	if err != nil {
		p.cfg.Log.Warn("could not remove the unused deposits of a key", "key", name, "err", err)
	}
}

// maxBatch is the number of deposits that one request deletes or purges.
const maxBatch = 500

// destroy deletes and purges live deposits.
func (p *Provider) destroy(ctx context.Context, uuids []string) error {
	for batch := range slices.Chunk(uuids, maxBatch) {
		if err := p.cfg.Box.Delete(ctx, batch...); err != nil {
			return err
		}
		if err := p.cfg.Box.Purge(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// Delete purges a key, or with SoftDelete hides it.
func (p *Provider) Delete(ctx context.Context, name string) error {
	return p.DeleteIf(ctx, name, provider.AllowAll)
}

// DeleteIf is Delete, but only if allow returns nil.
func (p *Provider) DeleteIf(ctx context.Context, name string, allow func(*claviger.Metadata) error) error {
	const op = "keytrustee.Delete"
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	if err := p.checkChange(ctx, op, name); err != nil {
		return err
	}
	id := newID()
	var deleted *keyDoc
	err := p.replace(ctx, op, name, nil, func(k *keyDoc) (string, error) {
		m := k.metadata()
		if err := allow(&m); err != nil {
			return "", err
		}
		k.Deleted = p.cfg.Now().UnixMilli()
		deleted = k
		return deletedPrefix + name + "/" + id, nil
	})
	if err != nil {
		return err
	}
	p.kept.forget(deleted.Versions)
	if p.cfg.SoftDelete {
		return nil
	}
	k, err := p.doc(ctx, op, deletedPrefix+name+"/"+id, name)
	if err == nil && k != nil {
		err = p.purge(ctx, op, k)
	}
	return err
}

// Undelete brings back the deleted key that has the version.
func (p *Provider) Undelete(ctx context.Context, name, version string) error {
	const op = "keytrustee.Undelete"
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	if err := p.checkChange(ctx, op, name); err != nil {
		return err
	}
	if name == "" || checkName(name) != nil {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	docs, err := p.deletedDocs(ctx, op, name)
	if err != nil {
		return err
	}
	docs = withVersion(docs, version)
	if len(docs) == 0 {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	k := docs[len(docs)-1]
	k.Deleted = 0
	n := p.cfg.memory.begin()
	uuid, err := p.put(ctx, keyPrefix+name, "", k, k.uuid)
	switch {
	case claviger.Is(err, claviger.KeyExists), claviger.Is(err, claviger.KeyNotFound):
		return claviger.E(op, claviger.KindOf(err), name, nil)
	case err != nil:
		return boxError(op, name, err)
	}
	p.rememberPut(n, k, keyPrefix+name, uuid)
	return nil
}

// withVersion returns the documents that name one of the versions.
func withVersion(docs []*keyDoc, versions ...string) []*keyDoc {
	return slices.DeleteFunc(docs, func(k *keyDoc) bool {
		return !slices.ContainsFunc(k.Versions, func(v versionRef) bool { return slices.Contains(versions, v.Name) })
	})
}

// Purge destroys the deleted keys that have this name and one of the versions.
func (p *Provider) Purge(ctx context.Context, name string, versions ...string) error {
	const op = "keytrustee.Purge"
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	if err := p.checkChange(ctx, op, name); err != nil {
		return err
	}
	if name == "" || checkName(name) != nil {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	docs, err := p.deletedDocs(ctx, op, name)
	if err != nil {
		return err
	}
	docs = withVersion(docs, versions...)
	if len(docs) == 0 {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	for _, k := range docs {
		if err := p.purge(ctx, op, k); err != nil {
			return err
		}
	}
	return nil
}

// purge destroys a deleted key: its versions first, and then its document, so that a call that was interrupted can be
// repeated. A version that another document of the name also names is kept, because claviger trustee recover can bring
// a deleted key back beside the deleted one.
func (p *Provider) purge(ctx context.Context, op string, k *keyDoc) error {
	n := p.cfg.memory.begin()
	others, err := p.versionsInOtherDocs(ctx, op, k)
	if err != nil {
		return err
	}
	own := slices.DeleteFunc(slices.Clone(k.Versions), func(v versionRef) bool { return others[v.UUID] })
	ownUUIDs := map[string]bool{}
	for _, v := range own {
		ownUUIDs[v.UUID] = true
	}
	// List the remaining deposits first: a box deletes all or none, and an earlier call may have destroyed some.
	for _, deleted := range []bool{false, true} {
		var remaining []string
		err := p.list(ctx, versionPrefix+k.Name+"@", deleted, func(d *trustee.Deposit) {
			if ownUUIDs[d.UUID] {
				remaining = append(remaining, d.UUID)
			}
		})
		for batch := range slices.Chunk(remaining, maxBatch) {
			if err != nil {
				break
			}
			if deleted {
				err = p.cfg.Box.Purge(ctx, batch...)
			} else {
				err = p.cfg.Box.Delete(ctx, batch...)
			}
		}
		if err != nil {
			return boxError(op, k.Name, err)
		}
	}
	p.kept.forget(own)
	p.seen.forget(own)
	if err := p.destroy(ctx, []string{k.uuid}); err != nil {
		return boxError(op, k.Name, err)
	}
	p.remember(newest{N: n, Key: k.Name, At: p.cfg.Now().UTC(), Deleted: true, Made: k.Created})
	return nil
}

// versionsInOtherDocs returns the uuids of the versions in all other documents of k's name.
func (p *Provider) versionsInOtherDocs(ctx context.Context, op string, k *keyDoc) (map[string]bool, error) {
	docs, err := p.deletedDocs(ctx, op, k.Name)
	if err != nil {
		return nil, err
	}
	live, err := p.key(ctx, op, k.Name) // read last, because another host may undelete the key in the meantime
	if err != nil {
		return nil, err
	}
	if live != nil {
		docs = append(docs, live)
	}
	named := map[string]bool{}
	for _, d := range docs {
		if d.uuid != k.uuid {
			for _, v := range d.Versions {
				named[v.UUID] = true
			}
		}
	}
	return named, nil
}
