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

// since is when a deleted key was deleted.
func since(k *keyDoc) time.Time { return time.UnixMilli(k.Deleted) }

// grow deposits a new version, which no key names yet, and returns it with its material.
func (p *Provider) grow(ctx context.Context, op, name string, bits int, given secret.Bytes) (claviger.KeyVersion,
	versionRef, error) {
	material := slices.Clone(given)
	if material == nil {
		material = make(secret.Bytes, bits/8)
		_, _ = rand.Read(material) // it never fails
	}
	v := claviger.KeyVersion{Key: name, Name: claviger.VersionName(name, newID()), BitLength: bits, Material: material}
	uuid, err := p.put(ctx, versionPrefix+v.Name, "", versionDoc{v.Name, material}, "")
	if err != nil {
		material.Wipe()
		return claviger.KeyVersion{}, versionRef{}, failed(op, name, err)
	}
	return v, versionRef{v.Name, uuid}, nil
}

// drop removes a version that no key names. If that fails, clean finds the version later.
func (p *Provider) drop(ctx context.Context, v *claviger.KeyVersion, ref versionRef) {
	v.Material.Wipe()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := p.cfg.Box.Delete(ctx, ref.UUID)
	if err == nil {
		err = p.cfg.Box.Purge(ctx, ref.UUID)
	}
	if err != nil {
		p.cfg.Log.Warn("a deposit that no key names is left behind; the next change of the key takes it away",
			"version",
			ref.Name, "err", err)
	}
}

// refused reports whether a box's error means that nothing was changed. Without an answer, the
// change may have been made.
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
	if err := holdable(spec.Name); err != nil {
		return none, claviger.E(op, claviger.Invalid, spec.Name, err)
	}
	k, err := p.key(ctx, op, spec.Name)
	if err != nil {
		return none, err
	}
	if k != nil {
		return none, claviger.E(op, claviger.KeyExists, spec.Name, nil)
	}
	if err := p.changeable(ctx, op, spec.Name); err != nil {
		return none, err
	}
	p.clean(ctx, spec.Name, nil)
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	v, ref, err := p.grow(ctx, op, spec.Name, spec.BitLength, spec.Material)
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
		return none, failed(op, spec.Name, err)
	}
	p.changed(n, k, keyPrefix+spec.Name, uuid)
	p.keep(&v, k.Created)
	return v, nil
}

// keep stores a version of a key that was made at that time.
func (p *Provider) keep(v *claviger.KeyVersion, made int64) {
	p.seen.add(v.Name, made)
	if err := p.kept.keep(v.Name, v.Material); err != nil {
		p.cfg.Log.Error("a version that was just made cannot be kept in memory", "version", v.Name, "err", err)
	}
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, name string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, name, material, provider.Anyway)
}

// RollIf is Roll if may allows it.
func (p *Provider) RollIf(ctx context.Context, name string, material secret.Bytes,
	may func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
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
	if err := p.changeable(ctx, op, name); err != nil {
		return none, err
	}
	p.clean(ctx, name, k)
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	v, ref, err := p.grow(ctx, op, name, k.Length, material)
	if err != nil {
		return none, err
	}
	bits := k.Length
	var made int64
	err = p.replace(ctx, op, name, k, func(k *keyDoc) (string, error) {
		if k.Length != bits { // the key was deleted and made anew
			return "", claviger.Errorf(op, claviger.KeyNotFound, name, "the key was deleted meanwhile")
		}
		m := k.metadata()
		if err := may(&m); err != nil {
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

// replace changes a key's deposit by compare and set. change gets the key as it is, and returns the
// label of the new deposit. k is the key as it was last read, or nil. Kind KeyNotFound if there is
// no such key.
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
			p.changed(n, k, label, uuid)
			return nil
		}
		if !claviger.Is(err, claviger.KeyNotFound) {
			return failed(op, name, err)
		}
		k = nil // another host changed the key first
		select {
		case <-ctx.Done():
			return claviger.E(op, claviger.Unavailable, name, ctx.Err())
		case <-time.After(mathrand.N(20 * time.Millisecond)): //nolint:gosec // so that hosts do not collide again
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, name, "others change the key all the time: %d tries were in vain",
		tries)
}

// clean removes versions of the key that no document names or will name: the remains of changes
// that were broken off. k is the key, or nil. If it fails, the next change cleans.
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
			// A key may have come back meanwhile, so it is read again.
			var again *keyDoc
			if again, err = p.key(ctx, op, name); again != nil {
				docs = append(docs, again)
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
		err = p.end(ctx, strays)
	}
	if err != nil {
		p.cfg.Log.Warn("deposits that no key names could not be looked for", "key", name, "err", err)
	}
}

// end deletes and purges live deposits, a few at a time.
func (p *Provider) end(ctx context.Context, uuids []string) error {
	for some := range slices.Chunk(uuids, 500) {
		if err := p.cfg.Box.Delete(ctx, some...); err != nil {
			return err
		}
		if err := p.cfg.Box.Purge(ctx, some...); err != nil {
			return err
		}
	}
	return nil
}

// Delete ends a key, or with SoftDelete hides it.
func (p *Provider) Delete(ctx context.Context, name string) error {
	return p.DeleteIf(ctx, name, provider.Anyway)
}

// DeleteIf is Delete if may allows it.
func (p *Provider) DeleteIf(ctx context.Context, name string, may func(*claviger.Metadata) error) error {
	const op = "keytrustee.Delete"
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	if err := p.changeable(ctx, op, name); err != nil {
		return err
	}
	id := newID()
	var gone *keyDoc
	err := p.replace(ctx, op, name, nil, func(k *keyDoc) (string, error) {
		m := k.metadata()
		if err := may(&m); err != nil {
			return "", err
		}
		k.Deleted = p.cfg.Now().UnixMilli()
		gone = k
		return deletedPrefix + name + "/" + id, nil
	})
	if err != nil {
		return err
	}
	p.kept.forget(gone.Versions)
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
	if err := p.changeable(ctx, op, name); err != nil {
		return err
	}
	if name == "" || holdable(name) != nil {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	docs, err := p.deletedDocs(ctx, op, name)
	if err != nil {
		return err
	}
	docs = having(docs, version)
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
		return failed(op, name, err)
	}
	p.changed(n, k, keyPrefix+name, uuid)
	return nil
}

// having returns the keys that have one of the versions.
func having(docs []*keyDoc, versions ...string) []*keyDoc {
	return slices.DeleteFunc(docs, func(k *keyDoc) bool {
		return !slices.ContainsFunc(k.Versions, func(v versionRef) bool { return slices.Contains(versions, v.Name) })
	})
}

// Purge ends the deleted keys of that name that have one of the versions.
func (p *Provider) Purge(ctx context.Context, name string, versions ...string) error {
	const op = "keytrustee.Purge"
	if err := p.ready(ctx, op, name); err != nil {
		return err
	}
	if err := p.changeable(ctx, op, name); err != nil {
		return err
	}
	if name == "" || holdable(name) != nil {
		return claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	docs, err := p.deletedDocs(ctx, op, name)
	if err != nil {
		return err
	}
	docs = having(docs, versions...)
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

// purge ends a deleted key: its versions first, then its own deposit, which names them until they
// are gone. A version that another document of the name names too is kept for that document: a
// trustee's operator can bring a deleted key back beside the deleted one.
func (p *Provider) purge(ctx context.Context, op string, k *keyDoc) error {
	n := p.cfg.memory.begin()
	ends := slices.Clone(k.Versions)
	others, err := p.others(ctx, op, k)
	if err != nil {
		return err
	}
	ends = slices.DeleteFunc(ends, func(v versionRef) bool { return others[v.UUID] })
	mine := map[string]bool{}
	for _, v := range ends {
		mine[v.UUID] = true
	}
	// Deposits that an earlier call has ended are left out: a box ends all or none.
	for _, deleted := range []bool{false, true} {
		var left []string
		err := p.list(ctx, versionPrefix+k.Name+"@", deleted, func(d *trustee.Deposit) {
			if mine[d.UUID] {
				left = append(left, d.UUID)
			}
		})
		for some := range slices.Chunk(left, 500) {
			if err != nil {
				break
			}
			if deleted {
				err = p.cfg.Box.Purge(ctx, some...)
			} else {
				err = p.cfg.Box.Delete(ctx, some...)
			}
		}
		if err != nil {
			return failed(op, k.Name, err)
		}
	}
	p.kept.forget(ends)
	p.seen.forget(ends)
	if err := p.end(ctx, []string{k.uuid}); err != nil {
		return failed(op, k.Name, err)
	}
	p.memorize(newest{N: n, Key: k.Name, At: p.cfg.Now().UTC(), Deleted: true, Made: k.Created})
	return nil
}

// others returns the uuids of the versions that other documents of k's name name.
func (p *Provider) others(ctx context.Context, op string, k *keyDoc) (map[string]bool, error) {
	docs, err := p.deletedDocs(ctx, op, k.Name)
	if err != nil {
		return nil, err
	}
	live, err := p.key(ctx, op, k.Name) // read last, because a deleted key may come back meanwhile
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
