package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"claviger"
	"claviger/durable"
)

// Create makes an empty database of mode 0600 in the file path, if the file does not exist; the folder must exist. If
// this process ends meanwhile, the file is complete or does not exist.
func Create(ctx context.Context, path string, c Config) error {
	const op = "sqlitedb.Create"
	abs, err := filepath.Abs(path)
	if err != nil {
		return claviger.Errorf(op, claviger.Invalid, "", "%s %q: %w", c.What, path, err)
	}
	if err := create(ctx, abs, c); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return nil
}

func create(ctx context.Context, path string, c Config) error {
	dir, what := filepath.Dir(path), c.named(path)
	if st, err := os.Stat(dir); err != nil {
		return fmt.Errorf("%s: its folder %s cannot be used: %w; "+
			"make the folder, owned by the user that the server runs as, mode 0700", what, dir, err)
	} else if !st.IsDir() {
		return fmt.Errorf("%s: %s is not a folder", what, dir)
	}
	st, err := os.Stat(path)
	switch {
	case err == nil && !st.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file: name a file, or a path where a new one can be made", what)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", c.What, err)
	}
	// No store is made through a link: the target may be on a disk that is not mounted now, and the
	// new store would be another one.
	if target, err := os.Readlink(path); err == nil {
		return fmt.Errorf("%s is a symbolic link to %s, which does not exist: "+
			"mount the disk that has it; for a new %s name that path itself", what, target, c.What)
	}
	work, err := NewWork(path, "new")
	if err != nil {
		return fmt.Errorf("%s: %w; the folder must be writable for the user that the server runs as", what, err)
	}
	defer work.Discard()
	if err := build(ctx, work.Path, c); err != nil {
		return fmt.Errorf("%s cannot be made: %w", what, err)
	}
	err = durable.Publish(work.Path, path)
	if errors.As(err, new(*durable.AlreadyError)) { // another process has made it
		return nil
	}
	return err
}

// build makes an empty database with this program's schema from an empty file. SQLite gives its
// -wal and -shm files the mode of the file.
func build(ctx context.Context, path string, c Config) (err error) {
	d := newDB(path, c)
	if d.Writer, err = Connect(path, c.Busy, "mode=rw", "_txlock=immediate"); err != nil {
		return err
	}
	d.Reader = d.Writer // see OpenReadOnly
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.upgrade(ctx)
}
