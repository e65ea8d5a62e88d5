package jceks

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/keystore"
	"claviger/provider"
	"claviger/secret"
)

// draft is a change of the keystore before it is written.
type draft struct {
	p      *Provider
	before *state
	store  *keystore.JCEKS
	opened map[string]*opened // contents of the new entries, so that they need not be decrypted
	now    time.Time
}

// change makes one change of the file's newest state, while no other process can change the file. If it returns nil,
// the whole change is durable; otherwise nothing has changed.
func (p *Provider) change(ctx context.Context, op, key string, f func(*draft) error) error {
	unavailable := func(err error) error { return claviger.E(op, claviger.Unavailable, key, err) }
	if p.closed.Load() {
		return claviger.E(op, claviger.Closed, key, nil)
	}
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	leave, err := p.lockState(ctx)
	if err != nil {
		return unavailable(err)
	}
	defer leave()
	unlock, err := p.file.lock(ctx)
	if err != nil {
		return unavailable(p.writeError(err))
	}
	defer unlock()
	if err := p.catchUp(); err != nil {
		return unavailable(err)
	}
	before := p.state.Load()
	d := &draft{p: p, before: before, store: before.store.Clone(), opened: make(map[string]*opened),
		now: time.Now().Truncate(time.Millisecond)}
	d.store.Iterations = p.iterations
	if err := f(d); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	id, err := p.file.flush(d.store)
	if err != nil {
		return unavailable(p.writeError(err))
	}
	after := newState(d.store, id, before)
	for alias, o := range d.opened {
		after.slots[alias].opened.Store(o)
	}
	p.state.Store(after)
	return nil
}

// catchUp reads the file's state into memory, and finishes or undoes a change that a crash interrupted. The caller must
// hold stateLock and the lock of the file.
func (p *Provider) catchUp() error {
	st := p.state.Load()
	id, err := identify(p.file.path)
	if err != nil {
		return err
	}
	neverWritten := id == identity{} && st.id == identity{}
	leftOver := exists(p.file.suffixed("_NEW")) || exists(p.file.suffixed("_OLD"))
	switch {
	case !leftOver && (id == st.id || neverWritten):
		return nil
	case !leftOver && id == identity{}:
		return p.missing()
	}
	s, id, err := p.file.load()
	if err != nil {
		return err
	}
	p.state.Store(newState(s, id, st))
	p.lastReadError = ""
	return nil
}

// missing returns the error of a file that does not exist any more.
func (p *Provider) missing() error {
	return fmt.Errorf("keystore %s no longer exists; put it back", p.file.path)
}

// setVersion puts a version into the draft. From then on the draft owns material.
func (d *draft) setVersion(name, cipher string, material secret.Bytes) error {
	if err := d.store.SetKey(name, cipher, material, d.p.file.password, d.now); err != nil {
		return err
	}
	d.opened[name] = openedMaterial(material)
	return nil
}

func (d *draft) setMetadata(name string, m *metadata) error {
	data, err := m.marshal()
	if err != nil {
		return err
	}
	if err := d.store.SetHadoopMetadata(name, data, d.p.file.password, d.now); err != nil {
		return err
	}
	d.opened[name] = &opened{meta: m}
	return nil
}

// materialOf returns a copy of given, or new random material if given is nil.
func materialOf(given secret.Bytes, bits int) secret.Bytes {
	if given != nil {
		return slices.Clone(given)
	}
	m := make(secret.Bytes, bits/8)
	_, _ = rand.Read(m) // Read never fails
	return m
}

// checkName refuses a name that cannot be an alias of a JCEKS. The text of the first error is Hadoop's.
func checkName(op, name string) error {
	if name != claviger.FoldName(name) {
		return claviger.Errorf(op, claviger.Invalid, name, "Uppercase key names are unsupported: %s", name)
	}
	if err := keystore.CheckAlias(numberedVersion(name, maxVersions)); err != nil {
		return claviger.Errorf(op, claviger.Invalid, name, "a Java keystore cannot hold a key of this name: %w", err)
	}
	return nil
}

// maxText bounds the text of a key's metadata, in bytes. JSON may need six bytes for one, and the result must fit into
// an entry of 1 MiB.
const maxText = 128 << 10

// javaLength has the number of bits that Java's key generator makes for each length of DES. The material also has
// parity bits, which the length does not count. So Hadoop can never generate such a key, and returns an error.
var javaLength = map[string]map[int]int{
	"DES":    {56: 64},
	"DESEDE": {112: 192, 168: 192},
}

// checkSpec is provider.CheckSpec, with Hadoop's error for DES.
func checkSpec(op string, spec provider.Spec) error {
	algorithm, _, _ := strings.Cut(spec.Cipher, "/")
	if got, ok := javaLength[strings.ToUpper(algorithm)][spec.BitLength]; ok && spec.Material == nil &&
		spec.Name != "" {
		return claviger.Errorf(op, claviger.MaterialLength, spec.Name, "Wrong key length. Required %d, but got %d",
			spec.BitLength, got)
	}
	if err := provider.CheckSpec(op, spec); err != nil {
		return err
	}
	n := len(spec.Cipher)
	if spec.Description != nil {
		n += len(*spec.Description)
	}
	for k, v := range spec.Attributes {
		n += len(k) + len(v)
	}
	if n > maxText {
		return claviger.Errorf(op, claviger.Invalid, spec.Name,
			"cipher, description and attributes are %d bytes long; at most %d are allowed", n, maxText)
	}
	return checkName(op, spec.Name)
}

// free refuses a new key if an entry has its name, or the name of one of its versions. The new key would overwrite that
// entry, and the files that were encrypted under it would be lost.
func (d *draft) free(op, name string, versions ...string) error {
	if d.store.Entry(name) != nil {
		return claviger.E(op, claviger.KeyExists, name, nil)
	}
	return d.freeVersions(op, name, versions...)
}

// freeVersions is free for the names of versions.
func (d *draft) freeVersions(op, name string, versions ...string) error {
	for _, v := range versions {
		if d.store.Entry(v) != nil {
			return claviger.Errorf(op, claviger.Invalid, name,
				"the keystore already has an entry %q, which this change would overwrite: it belongs "+
					"to another key, or is left of a deleted key", v)
		}
	}
	return nil
}

// Create makes a key.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	const op = "jceks.Create"
	if p.closed.Load() {
		return claviger.KeyVersion{}, claviger.E(op, claviger.Closed, spec.Name, nil)
	}
	if err := checkSpec(op, spec); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := provider.CheckImport(op, spec.Name, 1, spec.First); err != nil {
		return claviger.KeyVersion{}, err
	}
	var name string
	err := p.change(ctx, op, spec.Name, func(d *draft) error {
		first := d.before.free(spec.Name, spec.First, 1, p.file.password)
		name = numberedVersion(spec.Name, first)
		if err := d.free(op, spec.Name, name); err != nil {
			return err
		}
		m := newMetadata(claviger.Metadata{
			Cipher: spec.Cipher, BitLength: spec.BitLength, Description: spec.Description, Attributes: spec.Attributes,
			Created: d.now,
		}, first+1)
		err := d.setVersion(name, spec.Cipher, materialOf(spec.Material, spec.BitLength))
		if err == nil {
			err = d.setMetadata(spec.Name, m)
		}
		return internal(op, spec.Name, err)
	})
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.newVersion(spec.Name, name), nil
}

// newVersion returns a version that was just made. If another process has deleted it in the meantime, it returns only
// the name; the caller's next call fails then.
func (p *Provider) newVersion(key, name string) claviger.KeyVersion {
	kv := claviger.KeyVersion{Key: key, Name: name}
	st := p.state.Load()
	if s := st.slots[name]; s != nil {
		if o := s.open(p.file.password); o.err == nil && o.meta == nil {
			of, _ := p.metadataOf(st, "jceks.newVersion", key) // no error: the entry was just written
			kv = keyVersion(key, name, o, of)
		}
	}
	return kv
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, key, material, provider.AllowAll)
}

// RollIf is Roll, but only if allow returns nil.
func (p *Provider) RollIf(ctx context.Context, key string, material secret.Bytes,
	allow func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	const op = "jceks.Roll"
	var name string
	err := p.change(ctx, op, key, func(d *draft) error {
		m, err := p.openMetadata(d.before, key)
		switch {
		case err != nil:
			return claviger.E(op, claviger.Internal, key, err)
		case m == nil:
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if err := allow(m.public(key)); err != nil {
			return err
		}
		switch {
		case m.Versions == maxVersions:
			return claviger.Errorf(op, claviger.Invalid, key, "the key has as many versions as Hadoop can count")
		case material != nil:
			err = provider.CheckMaterial(op, key, m.BitLength, material)
		default:
			err = provider.CheckSpec(op, provider.Spec{Name: key, Cipher: m.Cipher, BitLength: m.BitLength})
		}
		if err != nil {
			return err
		}
		next := *m
		number := d.before.free(key, m.Versions, 1, p.file.password)
		if next.Versions = number + 1; number >= maxVersions {
			return claviger.Errorf(op, claviger.Invalid, key, "the key has as many versions as Hadoop can count")
		}
		name = numberedVersion(key, number)
		if err := d.freeVersions(op, key, name); err != nil {
			return err
		}
		err = d.setVersion(name, m.Cipher, materialOf(material, m.BitLength))
		if err == nil {
			err = d.setMetadata(key, &next)
		}
		return internal(op, key, err)
	})
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.newVersion(key, name), nil
}

// Delete removes a key and its versions from the file.
func (p *Provider) Delete(ctx context.Context, key string) error {
	return p.DeleteIf(ctx, key, provider.AllowAll)
}

// DeleteIf is Delete, but only if allow returns nil.
func (p *Provider) DeleteIf(ctx context.Context, key string, allow func(*claviger.Metadata) error) error {
	const op = "jceks.Delete"
	return p.change(ctx, op, key, func(d *draft) error {
		m, err := p.openMetadata(d.before, key)
		if err != nil {
			return claviger.E(op, claviger.Internal, key, err)
		}
		if m == nil {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if err := allow(m.public(key)); err != nil {
			return err
		}
		for _, n := range d.before.live(key, m, p.file.password) {
			d.store.Delete(numberedVersion(key, n))
		}
		d.store.Delete(key)
		return nil
	})
}

// Import makes a key with given metadata, in one change of the file. The numbers below first are missing; Hadoop skips
// them.
func (p *Provider) Import(ctx context.Context, m claviger.Metadata, n, first int,
	step func(string) error) ([]claviger.KeyVersion, error) {
	const op = "jceks.Import"
	if err := provider.CheckImport(op, m.Name, n, first); err != nil {
		return nil, err
	}
	if err := checkSpec(op, provider.Spec{Name: m.Name, Cipher: m.Cipher, BitLength: m.BitLength,
		Description: m.Description, Attributes: m.Attributes}); err != nil {
		return nil, err
	}
	names := make([]string, n)
	err := p.change(ctx, op, m.Name, func(d *draft) error {
		first = d.before.free(m.Name, first, n, p.file.password)
		for i := range names {
			names[i] = numberedVersion(m.Name, first+i)
		}
		if err := d.free(op, m.Name, names...); err != nil {
			return err
		}
		if m.Created.IsZero() {
			m.Created = d.now
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return claviger.E(op, claviger.Unavailable, m.Name, err)
			}
			if err := d.setVersion(name, m.Cipher, materialOf(nil, m.BitLength)); err != nil {
				return internal(op, m.Name, err)
			}
		}
		return internal(op, m.Name, d.setMetadata(m.Name, newMetadata(m, first+n)))
	})
	if err != nil {
		return nil, err
	}
	if step != nil {
		if err := step("committed"); err != nil {
			return nil, claviger.Errorf(op, claviger.KindOf(err), m.Name, "import interrupted after %q: %w",
				"committed", err)
		}
	}
	out := make([]claviger.KeyVersion, n)
	for i, name := range names {
		out[i] = p.newVersion(m.Name, name)
	}
	return out, nil
}
