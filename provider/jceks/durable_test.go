package jceks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"claviger"
	"claviger/durable"
	"claviger/durable/durabletest"
	"claviger/provider"
)

// TestWriteSurvivesFaults makes each step of a write fail, and cuts the power after each step. A key whose Create
// succeeded must exist after the power cut, and the keystore must always open.
func TestWriteSurvivesFaults(t *testing.T) {
	ctx := context.Background()
	create := func(dir string, names ...string) (err error) {
		p, err := open(ctx, "jceks://file@"+filepath.Join(dir, "kms.keystore"),
			provider.Env{Getenv: func(string) string { return "" }})
		if err != nil {
			return err
		}
		p.iterations = 10000 // for the protection of entries
		defer func() { err = errors.Join(err, p.Close()) }()
		for _, name := range names {
			_, err := p.Create(ctx, provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128})
			if err != nil && !claviger.Is(err, claviger.KeyExists) {
				return err
			}
		}
		return nil
	}
	readNames := func(dir string) (string, error) {
		p, err := open(ctx, "jceks://file@"+filepath.Join(dir, "kms.keystore"),
			provider.Env{Getenv: func(string) string { return "" }})
		if err != nil {
			return "", err
		}
		names, err := p.Keys(ctx)
		slices.Sort(names)
		return fmt.Sprint(names), errors.Join(err, p.Close())
	}
	for _, c := range []struct {
		name     string
		setup    func(string) error
		unneeded int
	}{
		{"first key", nil, 0},
		// Two syncs are not needed. If a power cut undoes the removal of leftovers, of Hadoop's checksums or of the
		// backup, the removal is repeated. The backup's name need not survive a power cut.
		{"another key", func(dir string) error { return create(dir, "first") }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			durabletest.Run(t, durabletest.Case{
				Setup:         c.setup,
				Do:            func(dir string) error { return create(dir, "second") },
				State:         readNames,
				UnneededSyncs: c.unneeded,
			})
		})
	}
}

// unsynced is a disk where one sync of the folder fails after a keystore got its name.
type unsynced struct {
	durable.OS
	renamed, failed bool
}

func (u *unsynced) Rename(from, to string) error {
	u.renamed = u.renamed || filepath.Base(to) == "kms.keystore"
	return u.OS.Rename(from, to)
}

func (u *unsynced) SyncFolder(name string) error {
	if u.renamed && !u.failed {
		u.failed = true
		return syscall.EIO
	}
	return u.OS.SyncFolder(name)
}

// TestRestored checks that the old keystore is restored if the new one may not be durable. Create must fail, and the
// key must not exist afterwards, neither in this process nor in the next one.
func TestRestored(t *testing.T) {
	for _, before := range [][]string{nil, {"first"}} {
		dir := t.TempDir()
		open := func() *Provider {
			t.Helper()
			p, err := open(t.Context(), "jceks://file@"+filepath.Join(dir, "kms.keystore"),
				provider.Env{Getenv: func(string) string { return "" }})
			if err != nil {
				t.Fatal(err)
			}
			p.iterations = 10000
			return p
		}
		create := func(p *Provider, name string) error {
			_, err := p.Create(t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128})
			return err
		}
		p := open()
		for _, name := range before {
			if err := create(p, name); err != nil {
				t.Fatal(err)
			}
		}
		var disk unsynced
		unmount := durable.Mount(dir, &disk)
		err := create(p, "second")
		unmount()
		if !errors.Is(err, syscall.EIO) || !disk.failed {
			t.Errorf("after %q: %v", before, err)
		}
		next := open()
		for who, p := range map[string]*Provider{"this process": p, "the next": next} {
			if names, err := p.Keys(t.Context()); err != nil || !slices.Equal(names, before) {
				t.Errorf("after %q %s has %q, %v", before, who, names, err)
			}
		}
		if err := errors.Join(create(p, "second"), next.Close(), p.Close()); err != nil {
			t.Errorf("after %q, second Create: %v", before, err)
		}
	}
}
