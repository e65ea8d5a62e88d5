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

// fresh returns the state of the file as it is now. Where a changed file cannot be read, readers get the state before
// the change, because it holds the keys of encrypted files. The log says so once.
func (p *Provider) fresh(ctx context.Context, op, about string) (*state, error) {
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
	unlock, err := p.enter(ctx)
	if err != nil {
		return nil, claviger.E(op, claviger.Unavailable, about, err)
	}
	defer unlock()
	if err := p.reload(); err != nil {
		p.complain(err)
	}
	return p.state.Load(), nil
}

// reload reads the file if it has changed since it was last read. It needs the gate.
func (p *Provider) reload() error {
	st := p.state.Load()
	id, err := identify(p.file.path)
	switch {
	case err != nil:
		return err
	case id == st.id:
		p.complaint = ""
		return nil
	case id == identity{} && (exists(p.file.suffixed("_NEW")) || exists(p.file.suffixed("_OLD"))):
		return fmt.Errorf("keystore %s: a write by Hadoop is under way, or was cut off", p.file.path)
	case id == identity{}:
		return p.gone()
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
	p.complaint = ""
	return nil
}

// openMetadata returns a key's metadata, nil where there is no such key. A secret key under a key's name is an error,
// as for Hadoop: the entry exists, and is no key of Hadoop's.
func (p *Provider) openMetadata(st *state, name string) (*metadata, error) {
	s := st.slots[name]
	if s == nil {
		return nil, nil
	}
	// An alias with an '@' may be a version's. That can be found without decryption.
	if _, _, isVersion := versionNumber(name); isVersion && len(st.versions[name]) == 0 {
		return nil, nil
	}
	o := s.open(p.file.password)
	if o.err != nil {
		return nil, p.unreadable(o.err)
	}
	if _, _, isVersion := versionNumber(name); o.meta == nil && !isVersion {
		return nil,
			fmt.Errorf("keystore %s: entry %q is a secret key without the metadata that Hadoop keeps of each key, as "+
				"keytool makes one: Hadoop does not use it either; move it to a keystore of its own (keytool "+
				"-importkeystore, then -delete)",
				p.file.path, name)
	}
	return o.meta, nil // nil in a version's entry
}

func (p *Provider) unreadable(err error) error {
	if errors.Is(err, keystore.ErrPassword) {
		return errors.New("keystore " + p.file.path + ": " + err.Error() +
			"; an entry of Hadoop's has the password of the whole keystore")
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

// of returns the metadata whose rules guard a key's versions in that state. Where the metadata of a version entry are
// gone, the rules of the key's name guard it.
func (p *Provider) of(st *state, op, key string) (*claviger.Metadata, error) {
	m, err := p.openMetadata(st, key)
	if err != nil {
		return nil, claviger.E(op, claviger.Internal, key, err)
	}
	if m == nil {
		return &claviger.Metadata{Name: key, Attributes: map[string]string{}}, nil
	}
	return m.public(key), nil
}

// Keys returns the names of all keys. Hadoop leaves out names with an '@'; then a migration would not find these
// keys.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	st, err := p.fresh(ctx, "jceks.Keys", "")
	if err != nil {
		return nil, err
	}
	return st.keys(p.file.password), nil
}

// each runs f for 0 to n-1, one at a time on each processor.
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
	st, err := p.fresh(ctx, op, "")
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
	st, err := p.fresh(ctx, op, key)
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
	st, err := p.fresh(ctx, op, key)
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
			"keystore %s: the key's metadata counts %d versions, but there is no entry "+
				"%q", p.file.path, m.Versions, name)
	}
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return keyVersion(key, name, o, m.public(key)), nil
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, name string) (claviger.KeyVersion, error) {
	const op = "jceks.Version"
	st, err := p.fresh(ctx, op, name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	o, err := p.version(st, op, name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	key, _ := claviger.KeyOfVersion(name)
	of, err := p.of(st, op, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return keyVersion(key, name, o, of), nil
}

// EncryptBlocks encrypts with the version's material. After a version's first
// use it costs AES, one stat of the file, and no lock.
func (p *Provider) EncryptBlocks(ctx context.Context, name string, blocks []byte) error {
	return p.encrypt(ctx, name, nil, blocks)
}

// EncryptBlocksOf is EncryptBlocks while the entry of the version's name holds
// the version's material: numbers begin anew with a key that is made anew.
func (p *Provider) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return p.encrypt(ctx, v.Name, &v, blocks)
}

func (p *Provider) encrypt(ctx context.Context, name string, only *claviger.KeyVersion, blocks []byte) error {
	const op = "jceks.EncryptBlocks"
	st, err := p.fresh(ctx, op, name)
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
		return claviger.Errorf(op, claviger.Internal, name, "material of %d bytes is no AES key", len(o.material))
	}
	if len(blocks)%aes.BlockSize != 0 {
		return claviger.Errorf(op, claviger.Internal, name, "%d bytes are not whole blocks", len(blocks))
	}
	for ; len(blocks) > 0; blocks = blocks[aes.BlockSize:] {
		o.block.Encrypt(blocks, blocks)
	}
	return nil
}

// Check is an error where the file cannot be read, or is not the one that is served.
func (p *Provider) Check(ctx context.Context) error {
	const op = "jceks.Check"
	if _, err := p.fresh(ctx, op, ""); err != nil {
		return err
	}
	unlock, err := p.enter(ctx)
	if err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	defer unlock()
	if err := p.reload(); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return nil
}
