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

// TestWriteLasts fails and cuts off each step of a write: a key that was said to be
// made is there after the power is back, and the keystore always opens.
func TestWriteLasts(t *testing.T) {
	ctx := context.Background()
	create := func(dir string, names ...string) (err error) {
		p, err := open(ctx, "jceks://file@"+filepath.Join(dir, "kms.keystore"),
			provider.Env{Getenv: func(string) string { return "" }})
		if err != nil {
			return err
		}
		p.iterations = 10000 // of the entries' protection
		defer func() { err = errors.Join(err, p.Close()) }()
		for _, name := range names {
			_, err := p.Create(ctx, provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128})
			if err != nil && !claviger.Is(err, claviger.KeyExists) {
				return err
			}
		}
		return nil
	}
	look := func(dir string) (string, error) {
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
		name  string
		setup func(string) error
		spare int
	}{
		{"first key", nil, 0},
		// The removals of leftovers, of Hadoop's checksums and of the backup may be done
		// again after a power cut, and the backup's name is needed before one alone.
		{"another key", func(dir string) error { return create(dir, "first") }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			durabletest.Run(t, durabletest.Case{
				Setup: c.setup,
				Do:    func(dir string) error { return create(dir, "second") },
				Look:  look,
				Spare: c.spare,
			})
		})
	}
}

// unsynced is a disk on which the folder is not synced once, after a keystore got its name.
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

// TestTakenBack: a keystore that may not last in its new state is put back, and the caller is
// told that the key was not made. It is not there afterwards, in this process or the next.
func TestTakenBack(t *testing.T) {
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
			t.Errorf("after %q, once more: %v", before, err)
		}
	}
}
