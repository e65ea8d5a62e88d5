package location

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore"
)

// sqliteConf returns a configuration with a metastore in a new folder, and the file of the metastore.
func sqliteConf(t *testing.T) (conf *hadoopconf.Conf, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), FileName)
	return kmstest.Conf(t, map[string]string{hadoopconf.MetastoreURI: "sqlite://" + file}), file
}

// existing makes the metastore of a configuration. If to is not "", the metastore is marked as moved there.
func existing(t *testing.T, conf *hadoopconf.Conf, to string) {
	t.Helper()
	s, err := Open(t.Context(), conf, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if to != "" {
		err = metastore.SetMoved(t.Context(), s, to)
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
}

// openFiles returns the files in the folder of a file that this process has open.
func openFiles(t *testing.T, file string) (names []string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, filepath.Dir(file)+"/") {
			names = append(names, name)
		}
	}
	return names
}

var errRefused = errors.New("refused")

// opener is a function that opens a metastore.
type opener func(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error)

// openers are all functions that open a metastore on the disk.
func openers() map[string]opener {
	log := slog.New(slog.DiscardHandler)
	open := func(create Creator) opener {
		return func(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
			return Open(ctx, conf, Options{Create: create, Log: log})
		}
	}
	return map[string]opener{
		"Open": open(nil),
		"Open, Create refuses": open(func(_ context.Context, uri string) error {
			if !strings.HasPrefix(uri, "sqlite:///") {
				return errors.New("not the URI: " + uri)
			}
			return errRefused
		}),
		"Open, Create allows": open(func(context.Context, string) error { return nil }),
		"OpenExisting": func(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
			return OpenExisting(ctx, conf, log)
		},
		"OpenReadOnly": func(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
			return OpenReadOnly(ctx, conf, log)
		},
		"Read": func(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
			return nil, Read(ctx, conf, func(s metastore.Store) error {
				_, err := s.Names(ctx)
				return err
			})
		},
	}
}

// TestOpenMissing checks which functions make a missing metastore, and which refuse to.
func TestOpenMissing(t *testing.T) {
	refusals := map[string]error{"Open, Create refuses": errRefused, "OpenExisting": ErrNone, "OpenReadOnly": ErrNone,
		"Read": ErrNone}
	for name, open := range openers() {
		conf, file := sqliteConf(t)
		s, err := open(t.Context(), conf)
		want := refusals[name]
		if want == nil {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s made no file: %v", name, err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if s != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v, %v; want %v", name, s, err, want)
		}
		wantWrapped(t, name, conf, err)
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s made a file: %v", name, err)
		}
	}
}

// wantWrapped fails the test unless an error begins with the line and the name of the property.
func wantWrapped(t *testing.T, name string, conf *hadoopconf.Conf, err error) {
	t.Helper()
	p, _ := conf.Lookup(hadoopconf.MetastoreURI)
	if err == nil || !strings.HasPrefix(err.Error(), p.Where()+": property "+hadoopconf.MetastoreURI+": ") {
		t.Errorf("%s: the error names no property: %v", name, err)
	}
}

// TestOpenExistingFile checks that each function opens a metastore that exists, without a call of Create.
func TestOpenExistingFile(t *testing.T) {
	conf, _ := sqliteConf(t)
	existing(t, conf, "")
	for name, open := range openers() {
		s, err := open(t.Context(), conf)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "Read" {
			continue
		}
		writes := s.SetSetting(t.Context(), "x", "y") == nil
		if writes == (name == "OpenReadOnly") {
			t.Errorf("%s: the store can be written: %t", name, writes)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenRefused checks that no function opens a metastore that was moved or is damaged, and that no file stays open.
func TestOpenRefused(t *testing.T) {
	moved, movedFile := sqliteConf(t)
	existing(t, moved, "postgresql://claviger@db1/claviger")
	damaged, damagedFile := sqliteConf(t)
	kmstest.WriteFile(t, damagedFile, strings.Repeat("not a database ", 1000))
	for name, open := range openers() {
		s, err := open(t.Context(), moved)
		if err == nil || s != nil || !strings.Contains(err.Error(), "was moved to postgresql://claviger@db1/claviger") {
			t.Errorf("%s of a store that was moved: %v, %v", name, s, err)
		}
		wantWrapped(t, name, moved, err)
		s, err = open(t.Context(), damaged)
		if err == nil || s != nil {
			t.Errorf("%s of a damaged store: %v, %v", name, s, err)
		}
		wantWrapped(t, name, damaged, err)
		if left := slices.Concat(openFiles(t, movedFile), openFiles(t, damagedFile)); len(left) > 0 {
			t.Errorf("%s left files open: %q", name, left)
		}
	}
}

// TestOpenNowhere checks the error of each function if the configuration names no metastore.
func TestOpenNowhere(t *testing.T) {
	conf := kmstest.Conf(t, map[string]string{hadoopconf.ProviderURI: "kms://http@h:1/kms"})
	all := openers()
	all["OpenEmpty"] = OpenEmpty
	for name, open := range all {
		s, err := open(t.Context(), conf)
		if err == nil || s != nil || !strings.Contains(err.Error(), "names no file") {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if got, want := (Location{}).Where(), "built-in default, beside the keystore file of "+
		hadoopconf.ProviderURI; got != want {
		t.Errorf("Where of the default: %q, want %q", got, want)
	}
	if err := (Location{}).Wrap(nil); err != nil {
		t.Errorf("Wrap(nil): %v", err)
	}
}

// TestOpenEmpty checks that OpenEmpty makes no file. After an error it returns nil, as a caller that closes each store
// that is not nil expects.
func TestOpenEmpty(t *testing.T) {
	conf, file := sqliteConf(t)
	s, err := OpenEmpty(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := s.Names(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("%q, %v", names, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", file, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := OpenEmpty(ctx, conf); err == nil || s != nil {
		t.Errorf("after the end of the context: %v, %v", s, err)
	}
}

// TestRead checks that Read returns the error of the work, and closes the metastore.
func TestRead(t *testing.T) {
	conf, file := sqliteConf(t)
	existing(t, conf, "")
	err := Read(t.Context(), conf, func(metastore.Store) error {
		if len(openFiles(t, file)) == 0 {
			t.Error("no file is open while Read works")
		}
		return errRefused
	})
	if !errors.Is(err, errRefused) {
		t.Error(err)
	}
	if left := openFiles(t, file); len(left) > 0 {
		t.Errorf("Read left files open: %q", left)
	}
}

// TestOpenLogs checks that a store logs a fault of its file to the log of Options.
func TestOpenLogs(t *testing.T) {
	conf, file := sqliteConf(t)
	var log bytes.Buffer
	s, err := Open(t.Context(), conf, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }() // its file was moved away
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSetting(t.Context(), "x", "y"); err == nil {
		t.Error("a change of a store whose file was moved away")
	}
	if !strings.Contains(log.String(), "the metastore is not at its path") {
		t.Errorf("log %q", log.String())
	}
}
