package backup_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"golang.org/x/sys/unix"

	"claviger"
	"claviger/durable"
	"claviger/trustee"
	"claviger/trustee/backup"
	"claviger/trustee/server"
)

var errInjected = errors.New("injected fault")

// faults counts the steps of an operation, and makes one fail.
type faults struct {
	steps int
	fail  int // the number of the step that fails, from 1; 0: none
}

func (f *faults) step() error {
	if f.steps++; f.steps == f.fail {
		return errInjected
	}
	return nil
}

// each fails each step of an operation in turn. The operation must return the error of the failed step.
func (f *faults) each(t *testing.T, name string, do func() error) {
	t.Helper()
	f.steps, f.fail = 0, 0
	if err := do(); err != nil || f.steps == 0 {
		t.Errorf("%s: %v, after %d steps", name, err, f.steps)
	}
	for n, last := 1, f.steps; n <= last; n++ {
		f.steps, f.fail = 0, n
		if err := do(); !errors.Is(err, errInjected) {
			t.Errorf("%s: step %d of %d fails: %v", name, n, last, err)
		}
	}
}

// faultyDisk is a disk on which one step fails. Removing a file is not a step, because a restoration only removes its
// temporary files.
type faultyDisk struct {
	durable.OS
	*faults
}

func (d *faultyDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	return d.OS.OpenFile(name, flag, mode)
}

func (d *faultyDisk) Mkdir(name string, mode fs.FileMode) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Mkdir(name, mode)
}

func (d *faultyDisk) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

// TestEachStepFails fails each step of a restoration on the disk.
func TestEachStepFails(t *testing.T) {
	dir, _ := site(t, 0)
	sealed, _ := write(t, dir, nil)
	archive, parent := decrypted(t, sealed), t.TempDir()
	disk := &faultyDisk{faults: &faults{}}
	defer durable.Mount(parent, disk)()
	disk.each(t, "Read", func() error {
		to := filepath.Join(parent, "folder")
		_, err := backup.Read(t.Context(), bytes.NewReader(archive), filepath.Join(to, ".keytrustee"), open, false)
		return errors.Join(err, os.RemoveAll(to))
	})
}

// faultyStore is a store of which one call fails.
type faultyStore struct {
	server.Store
	*faults
}

func (s *faultyStore) Export(ctx context.Context, f func(server.Record) error) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.Store.Export(ctx, f)
}

func (s *faultyStore) Import(ctx context.Context, next func() (server.Record, error)) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.Store.Import(ctx, next)
}

func (s *faultyStore) Close() error { return errors.Join(s.Store.Close(), s.step()) }

// faultyWriter is an output of which one write fails.
type faultyWriter struct{ *faults }

func (w faultyWriter) Write(b []byte) (int, error) { return len(b), w.step() }

// TestEachCallFails fails each call that a backup and a restoration make to the store, and each write of a backup.
func TestEachCallFails(t *testing.T) {
	dir, store := site(t, 1)
	sealed, _ := write(t, dir, store)
	archive, f := decrypted(t, sealed), &faults{}
	f.each(t, "Read", func() error {
		_, err := backup.Read(t.Context(), bytes.NewReader(archive), filepath.Join(t.TempDir(), "x"),
			func(ctx context.Context, folder string) (server.Store, error) {
				if err := f.step(); err != nil {
					return nil, err
				}
				s, err := open(ctx, folder)
				return &faultyStore{s, f}, err
			}, true)
		return err
	})
	f.each(t, "Write", func() error {
		_, err := backup.Write(t.Context(), io.Discard, openpgp.EntityList{escrow()}, dir, &faultyStore{store, f},
			time.Now())
		return err
	})
	f.each(t, "Write to a disk", func() error {
		_, err := backup.Write(t.Context(), faultyWriter{f}, openpgp.EntityList{escrow()}, dir, store, time.Now())
		return err
	})
}

// fixed is a store with one record.
type fixed struct {
	server.Store
	record server.Record
}

func (s *fixed) Export(_ context.Context, f func(server.Record) error) error { return f(s.record) }

// TestWriteRefuses checks that no backup is written of a folder without an identity or of a record that JSON cannot
// hold, or for a recipient whose key is in the backup only.
func TestWriteRefuses(t *testing.T) {
	dir, _ := site(t, 0)
	try := func(to openpgp.EntityList, dir string, store server.Store) error {
		_, err := backup.Write(t.Context(), io.Discard, to, dir, store, time.Now())
		return err
	}
	to := openpgp.EntityList{escrow()}
	if err := try(to, t.TempDir(), nil); !errors.Is(err, trustee.ErrNoFolder) {
		t.Errorf("no folder: %v", err)
	}
	if err := try(to, dir, &fixed{}); !claviger.Is(err, claviger.Internal) {
		t.Errorf("an empty record: %v", err)
	}
	late := server.Org{Name: "ORG", Created: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)} // JSON has no such year
	if err := try(to, dir, &fixed{record: server.Record{Org: &late}}); err == nil ||
		!strings.Contains(err.Error(), "year") {
		t.Errorf("a record that JSON cannot hold: %v", err)
	}
	ring, err := os.Open(filepath.Join(dir, trustee.PublicRing))
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	own, err := backup.Recipients(ring)
	if err != nil {
		t.Fatal(err)
	}
	if err := try(own, dir, nil); err == nil || !strings.Contains(err.Error(), "is the identity in the folder") {
		t.Errorf("to the identity itself: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, trustee.TLSKey), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := try(to, dir, nil); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a folder in the place of a file: %v", err)
	}
}

// TestRecipients checks the errors of rings that cannot be read.
func TestRecipients(t *testing.T) {
	for name, in := range map[string]io.Reader{"nothing": strings.NewReader(""), "text": strings.NewReader("no ring"),
		"no armor": strings.NewReader("-----BEGIN x")} {
		if list, err := backup.Recipients(in); err == nil {
			t.Errorf("%s: %v", name, list)
		}
	}
	whole := io.MultiReader(bytes.NewReader(private(t)), iotest.ErrReader(errInjected))
	if _, err := backup.Recipients(whole); !errors.Is(err, errInjected) {
		t.Errorf("a ring that cannot be read to its end: %v", err)
	}
}

// TestDecrypt checks which backups and rings are refused, and that an armored backup is accepted.
func TestDecrypt(t *testing.T) {
	dir, _ := site(t, 0)
	sealed, _ := write(t, dir, nil)
	var armored, public, locked bytes.Buffer
	w, err := armor.Encode(&armored, "PGP MESSAGE", nil)
	if err == nil {
		_, err = w.Write(sealed)
	}
	if err == nil {
		err = errors.Join(w.Close(), escrow().Serialize(&public))
	}
	if err != nil {
		t.Fatal(err)
	}
	list, err := openpgp.ReadKeyRing(bytes.NewReader(private(t)))
	if err == nil {
		err = list[0].EncryptPrivateKeys([]byte("passphrase"), nil)
	}
	if err == nil {
		err = list[0].SerializePrivateWithoutSigning(&locked, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	const other = "this key ring does not open the backup"
	for name, c := range map[string]struct {
		in   io.Reader
		ring []byte
		want string
	}{
		"armored":          {&armored, private(t), ""},
		"binary":           {bytes.NewReader(sealed), private(t), ""},
		"no armor":         {strings.NewReader("-----BEGIN x"), private(t), "EOF"},
		"nothing":          {strings.NewReader(""), private(t), "EOF"},
		"a word":           {strings.NewReader("x"), private(t), other},
		"no ring":          {bytes.NewReader(sealed), nil, "the key ring: "},
		"a public key":     {bytes.NewReader(sealed), public.Bytes(), other},
		"a locked key":     {bytes.NewReader(sealed), locked.Bytes(), "is locked by a passphrase"},
		"an input's error": {iotest.ErrReader(errInjected), private(t), errInjected.Error()},
	} {
		in, err := backup.Decrypt(c.in, bytes.NewReader(c.ring))
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) ||
				c.want != other && strings.Contains(err.Error(), other) {
				t.Errorf("%s: %v; want %q", name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if _, err := io.Copy(io.Discard, in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// locked reports whether a work folder is locked, so that another restoration does not remove it.
func locked(t *testing.T, work string) bool {
	t.Helper()
	f, err := os.Open(work)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// asNobody runs f as user nobody if the test runs as root, because root may use each folder. The thread is not used
// again.
func asNobody(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			_ = unix.Setfsuid(65534)
		}
		f()
	}()
	<-done
}

// leftover makes the work folder of a killed restoration.
func leftover(t *testing.T, parent string) (sub string) {
	t.Helper()
	sub = filepath.Join(parent, ".claviger-restore-1", "folder")
	if err := os.MkdirAll(filepath.Join(sub, "file"), 0o700); err != nil {
		t.Fatal(err)
	}
	return sub
}

// TestClosedFolder checks the errors of a restoration in a folder that this user may not read or write.
func TestClosedFolder(t *testing.T) {
	dir, _ := site(t, 0)
	sealed, _ := write(t, dir, nil)
	archive := decrypted(t, sealed)
	restore := func(parent string) error {
		_, err := backup.Read(t.Context(), bytes.NewReader(archive), filepath.Join(parent, "x"), open, false)
		return err
	}
	usable := t.TempDir()
	leftover(t, usable)
	if err := restore(usable); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mode  fs.FileMode // of the folder
		umask int
		work  fs.FileMode // of a folder in the work folder of a killed restoration; 0: there is none
		owned bool        // the work folder belongs to the user, too
		op    string      // of the error
	}{
		"not readable":               {0o300, 0o077, 0, false, "open"},
		"not writable":               {0o500, 0o077, 0, false, "mkdir"},
		"no rights by default":       {0o700, 0o777, 0, false, "open"},
		"a file that is not removed": {0o700, 0o077, 0o500, true, "unlinkat"},
		"another user's work folder": {0o700, 0o077, 0o700, false, "open"},
	} {
		parent := t.TempDir()
		if err := os.Chmod(filepath.Dir(parent), 0o711); err != nil { // for user nobody
			t.Fatal(err)
		}
		own(t, parent)
		if c.work != 0 {
			sub := leftover(t, parent)
			if err := os.Chmod(sub, c.work); err != nil {
				t.Fatal(err)
			}
			if c.owned {
				own(t, parent)
			} else if os.Geteuid() != 0 {
				continue // only root can make a folder of another user
			}
		}
		if err := os.Chmod(parent, c.mode); err != nil {
			t.Fatal(err)
		}
		before := syscall.Umask(c.umask)
		asNobody(func() {
			err := restore(parent)
			var path *fs.PathError
			if !errors.As(err, &path) || !errors.Is(err, fs.ErrPermission) || path.Op != c.op {
				t.Errorf("%s: %v, operation %+v", name, err, path)
			}
		})
		syscall.Umask(before)
		restoreRights(t, parent)
		if _, err := os.Lstat(filepath.Join(parent, "x")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a folder although it was refused: %v", name, err)
		}
	}
}

// restoreRights lets this user remove everything in a folder again.
func restoreRights(t *testing.T, folder string) {
	t.Helper()
	err := errors.Join(os.Chmod(folder, 0o700), filepath.WalkDir(folder, func(path string, d fs.DirEntry,
		err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	}))
	if err != nil {
		t.Error(err)
	}
}

// own gives a folder and all in it to the user of asNobody.
func own(t *testing.T, folder string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, 65534, 65534))
	}); err != nil {
		t.Fatal(err)
	}
}
