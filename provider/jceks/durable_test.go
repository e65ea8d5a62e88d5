package jceks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"claviger"
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
