package jceks

import (
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/keystore"
)

// currentState returns the current state of the file. If a changed file cannot be read, it returns the last state,
// because readers need the keys of encrypted files, and logs the error once.
func (p *Provider) currentState(ctx context.Context, op, about string) (*state, error) {
	if p.closed.Load() {
		return nil, claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return nil, claviger.E(op, claviger.Unavailable, about, err)
	}
	st := p.state.Load()
	id, err := identify(p.file.path)
	if err == nil && id == st.id {
		return st, nil
	}
	unlock, err := p.lockState(ctx)
	if err != nil {
		return nil, claviger.E(op, claviger.Unavailable, about, err)
	}
	defer unlock()
	if err := p.reload(); err != nil {
		p.logReadError(err)
	}
	return p.state.Load(), nil
}

// reload reads the file if it has changed. The caller must hold stateLock.
func (p *Provider) reload() error {
	st := p.state.Load()
	id, err := identify(p.file.path)
	switch {
	case err != nil:
		return err
	case id == st.id:
		p.lastReadError = ""
		return nil
	case id == identity{} && (exists(p.file.suffixed("_NEW")) || exists(p.file.suffixed("_OLD"))):
		return fmt.Errorf("keystore %s: a write by Hadoop is running, or was interrupted", p.file.path)
	case id == identity{}:
		return p.missing()
	}
	if id == p.badID {
		return p.badErr
	}
	s, id, err := p.file.read(p.file.path)
	if err != nil {
		var content *contentError
		if errors.As(err, &content) {
			p.badID, p.badErr = id, err
		}
		return err
	}
	p.state.Store(newState(s, id, st))
	p.lastReadError = ""
	return nil
}

// openMetadata returns a key's metadata, and nil if there is no such key. An entry of that name that is a secret key
// without metadata is an error, as for Hadoop.
func (p *Provider) openMetadata(st *state, name string) (*metadata, error) {
	s := st.slots[name]
	if s == nil {
		return nil, nil
	}
	// An alias with an '@' may be that of a version. This check needs no decryption.
	if _, _, isVersion := versionNumber(name); isVersion && len(st.versions[name]) == 0 {
		return nil, nil
	}
	o := s.open(p.file.password)
	if o.err != nil {
		return nil, p.unreadable(o.err)
	}
	if _, _, isVersion := versionNumber(name); o.meta == nil && !isVersion {
		return nil,
			fmt.Errorf("keystore %s: entry %q is a secret key without the metadata that Hadoop stores for each key, "+
				"as keytool makes one: Hadoop cannot use it; move it to another keystore (keytool "+
				"-importkeystore, then -delete)", p.file.path, name)
	}
	return o.meta, nil // o.meta is nil if the entry is a version
}

// unreadable returns the error of an entry that cannot be opened.
func (p *Provider) unreadable(err error) error {
	if errors.Is(err, keystore.ErrPassword) {
		return errors.New("keystore " + p.file.path + ": " + err.Error() +
			"; Hadoop protects each entry with the password of the whole keystore")
	}
	return errors.New("keystore " + p.file.path + ": " + err.Error())
}

// version returns an opened version. Kind VersionNotFound.
func (p *Provider) version(st *state, op, name string) (*opened, error) {
	s := st.slots[name]
	if _, _, ok := versionNumber(name); s == nil || !ok {
		return nil, claviger.E(op, claviger.VersionNotFound, name, nil)
	}
	o := s.open(p.file.password)
	switch {
	case o.err != nil:
		return nil, claviger.E(op, claviger.Internal, name, p.unreadable(o.err))
	case o.meta != nil:
		return nil, claviger.E(op, claviger.VersionNotFound, name, nil)
	}
	return o, nil
}

func keyVersion(key, name string, o *opened, of *claviger.Metadata) claviger.KeyVersion {
	return claviger.KeyVersion{Key: key, Name: name, BitLength: 8 * len(o.material), Material: slices.Clone(o.material),
		Of: of}
}

// metadataOf returns the metadata of a version's key in that state. If the keystore has the version but lacks the
// metadata, the result has only the name, so that the rules for that name apply.
func (p *Provider) metadataOf(st *state, op, key string) (*claviger.Metadata, error) {
	m, err := p.openMetadata(st, key)
	if err != nil {
		return nil, claviger.E(op, claviger.Internal, key, err)
	}
	if m == nil {
		return &claviger.Metadata{Name: key, Attributes: map[string]string{}}, nil
	}
	return m.public(key), nil
}

// Keys returns the names of all keys, also those with an '@'. Hadoop omits these, so a migration would not find the
// keys.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	st, err := p.currentState(ctx, "jceks.Keys", "")
	if err != nil {
		return nil, err
	}
	return st.keys(p.file.password), nil
}

// each calls f for 0 to n-1, with as many calls at the same time as there are processors.
func each(ctx context.Context, op string, n int, f func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return claviger.E(op, claviger.Unavailable, "", err)
			}
			return f(i)
		})
	}
	return g.Wait()
}

// Metadata returns one entry for each name.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	const op = "jceks.Metadata"
	st, err := p.currentState(ctx, op, "")
	if err != nil {
		return nil, err
	}
	out := make([]*claviger.Metadata, len(names))
	err = each(ctx, op, len(names), func(i int) error {
		m, err := p.openMetadata(st, names[i])
		if err != nil {
			return claviger.E(op, claviger.Internal, names[i], err)
		}
		if m != nil {
			out[i] = m.public(names[i])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Versions returns a key's versions, oldest first.
func (p *Provider) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	const op = "jceks.Versions"
	st, err := p.currentState(ctx, op, key)
	if err != nil {
		return nil, err
	}
	m, err := p.openMetadata(st, key)
	if err != nil {
		return nil, claviger.E(op, claviger.Internal, key, err)
	}
	if m == nil {
		return []claviger.KeyVersion{}, nil
	}
	numbers := st.live(key, m, p.file.password)
	out := make([]claviger.KeyVersion, len(numbers))
	of := m.public(key)
	err = each(ctx, op, len(numbers), func(i int) error {
		name := numberedVersion(key, numbers[i])
		o, err := p.version(st, op, name)
		if err == nil {
			out[i] = keyVersion(key, name, o, of)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Current returns a key's newest version.
func (p *Provider) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	const op = "jceks.Current"
	st, err := p.currentState(ctx, op, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	m, err := p.openMetadata(st, key)
	if err != nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.Internal, key, err)
	}
	if m == nil {
		return claviger.KeyVersion{}, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	name := numberedVersion(key, m.Versions-1)
	o, err := p.version(st, op, name)
	if claviger.Is(err, claviger.VersionNotFound) {
		return claviger.KeyVersion{}, claviger.Errorf(op, claviger.Internal, key,
			"keystore %s: the key's metadata counts %d versions, but there is no entry %q",
			p.file.path, m.Versions, name)
	}
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return keyVersion(key, name, o, m.public(key)), nil
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, name string) (claviger.KeyVersion, error) {
	const op = "jceks.Version"
	st, err := p.currentState(ctx, op, name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	o, err := p.version(st, op, name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	key, _ := claviger.KeyOfVersion(name)
	of, err := p.metadataOf(st, op, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return keyVersion(key, name, o, of), nil
}

// EncryptBlocks encrypts with the version's material. After the first use of a version, a call needs one stat of the
// file and takes no lock.
func (p *Provider) EncryptBlocks(ctx context.Context, name string, blocks []byte) error {
	return p.encrypt(ctx, name, nil, blocks)
}

// EncryptBlocksOf is EncryptBlocks if the entry with the version's name still has the version's material. A new key
// with the name of a deleted key uses the same version names.
func (p *Provider) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return p.encrypt(ctx, v.Name, &v, blocks)
}

// encrypt encrypts under the version of that name. If only is not nil, the version must have the material of only.
func (p *Provider) encrypt(ctx context.Context, name string, only *claviger.KeyVersion, blocks []byte) error {
	const op = "jceks.EncryptBlocks"
	st, err := p.currentState(ctx, op, name)
	if err != nil {
		return err
	}
	o, err := p.version(st, op, name)
	if err != nil {
		return err
	}
	if only != nil && !only.Material.Equal(o.material) {
		return claviger.E(op, claviger.VersionNotFound, name, nil)
	}
	if o.block == nil {
		return claviger.Errorf(op, claviger.Internal, name, "material of %d bytes is not an AES key", len(o.material))
	}
	if len(blocks)%aes.BlockSize != 0 {
		return claviger.Errorf(op, claviger.Internal, name, "%d bytes are not whole blocks", len(blocks))
	}
	for ; len(blocks) > 0; blocks = blocks[aes.BlockSize:] {
		o.block.Encrypt(blocks, blocks)
	}
	return nil
}

// Check fails if the file cannot be read, so that calls use an older state.
func (p *Provider) Check(ctx context.Context) error {
	const op = "jceks.Check"
	if _, err := p.currentState(ctx, op, ""); err != nil {
		return err
	}
	unlock, err := p.lockState(ctx)
	if err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	defer unlock()
	if err := p.reload(); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return nil
}
