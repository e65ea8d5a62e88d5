package sqlitedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"claviger"
	"claviger/owner"
)

const up = "-- +goose Up\n"

// testConfig returns the settings of a database with one table. Its newest schema is 2.
func testConfig() Config {
	return Config{
		What: "test store", Readers: 2, Busy: 5 * time.Second, Damaged: "mend it",
		Schema: Schema{
			ApplicationID: 0x54455354, Version: 2, Back: "go back",
			Migrations: fstest.MapFS{
				"migrations/00001_thing.sql": {Data: []byte(up + "CREATE TABLE thing (name TEXT PRIMARY KEY, size " +
					"INTEGER);")},
				"migrations/00002_color.sql": {Data: []byte(up + "ALTER TABLE thing ADD COLUMN color TEXT;")},
			},
		},
	}
}

// firstSchema returns the settings of an older release, whose schema is 1.
func firstSchema(c Config) Config {
	files := fstest.MapFS{}
	files["migrations/00001_thing.sql"] = c.Schema.Migrations.(fstest.MapFS)["migrations/00001_thing.sql"]
	c.Schema.Migrations, c.Schema.Version = files, 1
	return c
}

func created(t *testing.T, path string, c Config) *DB {
	t.Helper()
	err := Create(t.Context(), path, c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), path, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func insert(ctx context.Context, d *DB, name string, size int) error {
	return d.Update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO thing (name, size) VALUES (?, ?)", name, size)
		return err
	})
}

func count(t *testing.T, d *DB) (n int) {
	t.Helper()
	if err := d.Reader.QueryRowContext(t.Context(), "SELECT count(*) FROM thing").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFileModes checks that only the owner may read and write the files, whatever the umask is.
func TestFileModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	d := created(t, path, testConfig())
	if err := insert(t.Context(), d, "a", 1); err != nil {
		t.Fatal(err)
	}
	free, err := d.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	for _, end := range []string{"", "-wal", "-shm", ".lock"} {
		st, err := os.Stat(path + end)
		if err != nil {
			t.Error(err)
		} else if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", st.Name(), st.Mode().Perm())
		}
	}
}

// TestDurability checks the settings with which a committed transaction survives a power cut, and that readers cannot
// write.
func TestDurability(t *testing.T) {
	for _, keep := range []bool{false, true} {
		c := testConfig()
		c.KeepWAL = keep
		d := created(t, filepath.Join(t.TempDir(), "s.db"), c)
		pages := "1000" // SQLite's default
		if keep {
			pages = "0"
		}
		for pragma, want := range map[string]string{
			"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "wal_autocheckpoint": pages,
			"busy_timeout": "5000",
		} {
			var got string
			if err := d.Writer.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
			}
		}
		if _, err := d.Reader.Exec("DELETE FROM thing"); err == nil {
			t.Error("a reading connection can write")
		}
	}
}

// TestRefused checks the files that Create and Open refuse. The error must name the file and the cure, and the file
// must not be changed.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := filepath.Join(dir, "good.db")
	d := created(t, good, testConfig())
	for i := range 400 {
		if err := insert(t.Context(), d, fmt.Sprint("thing ", i, strings.Repeat("x", 100)), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(name, statement string) string {
		p := write(name, image)
		db, err := Connect(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	damaged := append([]byte(nil), image...)
	for i := 0; i < len(damaged); i += 4096 { // the header of every page, but not that of the file (100 bytes)
		copy(damaged[max(i, 100):], "\xde\xad\xbe\xef\xde\xad\xbe\xef\xde\xad\xbe\xef")
	}
	late := append([]byte(nil), image...)
	for i := len(late) - 4096; i < len(late); i++ { // only the check of all pages reads the last page
		late[i] = 0xff
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := []byte(strings.Repeat("not a database at all\n", 400))
	for _, tt := range []struct {
		path string
		kind claviger.Kind
		want string
	}{
		{filepath.Join(dir, "missing", "m.db"), claviger.Unavailable,
			`its folder .*missing cannot be used: .*no such file.*make the folder`},
		{filepath.Join(good, "m.db"), claviger.Unavailable, `not a (folder|directory)`},
		{filepath.Join(dir, "folder"), claviger.Unavailable, `not a regular file`},
		{write("text.db", text), claviger.Unavailable, `is not an SQLite database, or its header is damaged .*mend it`},
		{write("damaged.db", damaged), claviger.Unavailable, `is damaged .*mend it`},
		{write("late.db", late), claviger.Unavailable, `is damaged .*mend it`},
		{write("short.db", image[:len(image)/2]), claviger.Unavailable, `is damaged .*mend it`},
		{edit("newer.db", "INSERT INTO goose_db_version (version_id, is_applied) VALUES (3, 1)"), claviger.Unavailable,
			`has schema version 3, this program knows versions up to 2: a newer claviger has written it; .*go back`},
		{edit("other.db", "PRAGMA application_id = 7"), claviger.Invalid, `is an SQLite database of another program`},
		{edit("unmarked.db", "PRAGMA application_id = 0; PRAGMA journal_mode = DELETE"), claviger.Invalid,
			`is an SQLite database of another program`},
	} {
		t.Run(filepath.Base(tt.path), func(t *testing.T) { refused(t, tt.path, tt.want, tt.kind) })
	}
}

// refused demands that Create or Open refuses a file, names it, and does not change it.
func refused(t *testing.T, path, want string, kind claviger.Kind) {
	t.Helper()
	before, _ := os.ReadFile(path) // nil if path is not a file
	err := Create(t.Context(), path, testConfig())
	if err == nil {
		var d *DB
		if d, err = Open(t.Context(), path, testConfig()); err == nil {
			_ = d.Close()
			t.Fatal("Open succeeded")
		}
	}
	text := err.Error()
	if !strings.Contains(text, path) || !regexp.MustCompile("(?s)"+want).MatchString(text) ||
		!claviger.Is(err, kind) {
		t.Errorf("error %q, want the path, %q and kind %v", err, want, kind)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("the refused file was changed")
	}
}

// TestDamagedLater checks that a read reports a page that was damaged while the file was open.
func TestDamagedLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	d := created(t, path, testConfig())
	var root int64
	err := d.Reader.QueryRow(`SELECT rootpage FROM sqlite_schema WHERE name = 'thing'`).Scan(&root)
	if err = errors.Join(err, insert(t.Context(), d, "a", 1), d.Close()); err != nil {
		t.Fatal(err)
	}
	d, err = Open(t.Context(), path, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), (root-1)*4096)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	var n int
	err = d.Reader.QueryRowContext(t.Context(), "SELECT size FROM thing").Scan(&n)
	if err = d.Fail("x", "", err); !Damaged(err) || !strings.Contains(err.Error(), path+" is damaged") {
		t.Error(err)
	}
	if again, err := Open(t.Context(), path, testConfig()); err == nil || !strings.Contains(err.Error(), path+" is "+
		"damaged") {
		t.Errorf("Open of the damaged file: %v, %v", again, err)
	}
}

// TestKilledWhileNew opens a file whose process was killed before the first migration.
func TestKilledWhileNew(t *testing.T) {
	for _, statement := range []string{"PRAGMA application_id = 0x54455354", "PRAGMA journal_mode = WAL", "SELECT 1"} {
		path := filepath.Join(t.TempDir(), "s.db")
		db, err := Connect(path, 0)
		if err == nil {
			_, err = db.Exec(statement)
			err = errors.Join(err, db.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := insert(t.Context(), created(t, path, testConfig()), "a", 1); err != nil {
			t.Error(statement, err)
		}
	}
}

// TestOpenTogether opens a file from several goroutines at the same time. The file does not exist yet, or has an older
// schema. One goroutine must make the file, and one must call Before.
func TestOpenTogether(t *testing.T) {
	for _, older := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s.db")
		c := testConfig()
		if older {
			if err := created(t, path, firstSchema(c)).Close(); err != nil {
				t.Fatal(err)
			}
		}
		var upgrades atomic.Int32
		c.Schema.Before = func(_ context.Context, d *DB, from int64) error {
			if upgrades.Add(1); from != 1 || d.Path() != path {
				t.Errorf("%s is upgraded from %d", d.Path(), from)
			}
			time.Sleep(50 * time.Millisecond) // so that the others wait for the lock
			return nil
		}
		const n = 6
		errs := make(chan error, n)
		for i := range n {
			go func() {
				err := Create(context.Background(), path, c)
				if err == nil {
					var d *DB
					if d, err = Open(context.Background(), path, c); err == nil {
						err = errors.Join(insert(context.Background(), d, fmt.Sprint(i), 1), d.Close())
					}
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		d := created(t, path, c)
		if got := count(t, d); got != n {
			t.Errorf("%d changes were written, want %d", got, n)
		}
		if got := upgrades.Load(); (got == 1) != older || got > 1 {
			t.Errorf("Before was called %d times", got)
		}
		if v, err := d.Version(t.Context()); err != nil || v != 2 {
			t.Errorf("version %d, %v", v, err)
		}
	}
}

// TestUpgradeRefused checks that an error of Before leaves the file unchanged.
func TestUpgradeRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	if err := created(t, path, firstSchema(testConfig())).Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, refusal := testConfig(), errors.New("in use")
	c.Schema.Before = func(context.Context, *DB, int64) error { return refusal }
	if d, err := Open(t.Context(), path, c); !errors.Is(err, refusal) {
		t.Errorf("%v, %v", d, err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed, or %v", err)
	}
}

// TestLinkToNothing checks that Create makes no database through a link whose target does not exist. The target may be
// on a disk that is not mounted, and has a database then.
func TestLinkToNothing(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target.db"), filepath.Join(dir, "s.db")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	err := Create(t.Context(), link, testConfig())
	if err == nil || !strings.Contains(err.Error(), target) || !strings.Contains(err.Error(), "mount") {
		t.Errorf("%v", err)
	}
	if list, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(list) != 1 {
		t.Errorf("%q, %v", list, err)
	}
}

// TestOpenMakesNoFile checks that Open does not make a missing file.
func TestOpenMakesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	if d, err := Open(t.Context(), path, testConfig()); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := OpenReadOnly(path, testConfig()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v, %v", d, err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("Open made the file")
	}
}

// TestOpenReadOnly checks that a reader sees the changes in the -wal of another DB, and that it makes no file beside a
// file which no process has open.
func TestOpenReadOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.db")
	d := created(t, path, testConfig())
	read := func(want int) {
		t.Helper()
		r, err := OpenReadOnly(path, testConfig())
		if err != nil {
			t.Fatal(err)
		}
		if got := count(t, r); got != want {
			t.Errorf("%d, want %d", got, want)
		}
		err = insert(t.Context(), r, "b", 1)
		if err := r.Fail("x", "", err); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("a write: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := insert(t.Context(), d, "a", 1); err != nil {
		t.Fatal(err)
	}
	read(1)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	read(1)
	if list, err := filepath.Glob(filepath.Join(dir, "*-*")); err != nil || len(list) != 0 {
		t.Errorf("left behind: %q, %v", list, err)
	}
}

// TestOpenReadOnlyClaimed checks that a reader of a claimed file sees later changes, although there was no -wal when
// the reader opened the file.
func TestOpenReadOnlyClaimed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	if err := created(t, path, testConfig()).Close(); err != nil {
		t.Fatal(err)
	}
	release, err := owner.Claim(LockFile(path), path, owner.Self("a server", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	r, err := OpenReadOnly(path, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := count(t, r); got != 0 {
		t.Errorf("%d rows before the change", got)
	}
	if err := insert(t.Context(), created(t, path, testConfig()), "a", 1); err != nil {
		t.Fatal(err)
	}
	if got := count(t, r); got != 1 {
		t.Errorf("%d rows after the change", got)
	}
}

// TestFinish checks that the end of a context rolls back a running transaction, unless Finish is set.
func TestFinish(t *testing.T) {
	for _, finish := range []bool{true, false} {
		c := testConfig()
		c.Finish = finish
		d := created(t, filepath.Join(t.TempDir(), "s.db"), c)
		ctx, cancel := context.WithCancel(t.Context())
		err := d.Update(ctx, func(ctx context.Context, tx *sql.Tx) error {
			cancel()
			_, err := tx.ExecContext(ctx, "INSERT INTO thing (name, size) VALUES ('a', 1)")
			return err
		})
		if done := count(t, d) == 1; done != finish || (err == nil) != finish {
			t.Errorf("finish %v: done %v, %v", finish, done, err)
		}
		if err := insert(ctx, d, "late", 1); err == nil {
			t.Error("a transaction began after the end of its context")
		}
	}
}

// TestFail checks the kinds and texts of errors.
func TestFail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	c := testConfig()
	c.Busy = 50 * time.Millisecond
	d := created(t, path, c)
	ctx := t.Context()
	if d.Fail("x", "", nil) != nil {
		t.Error("Fail made an error of nil")
	}
	own := claviger.E("y", claviger.KeyNotFound, "k", nil)
	if got := d.Fail("x", "", own); !errors.Is(got, own) || !claviger.Is(got, claviger.KeyNotFound) {
		t.Errorf("Fail of our own error: %v", got)
	}
	check := func(what string, err error, kind claviger.Kind, want string) {
		t.Helper()
		err = d.Fail("x", "key", err)
		if !claviger.Is(err, kind) || !strings.Contains(err.Error(), "test store "+path) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want kind %v, %q", what, err, kind, want)
		}
	}
	if err := insert(ctx, d, "a", 1); err != nil {
		t.Fatal(err)
	}
	twice := insert(ctx, d, "a", 1)
	if !NotUnique(twice) || !Constraint(twice) || !Reported(twice) || Damaged(twice) || Full(twice) {
		t.Errorf("a second row with the same name: %v", twice)
	}
	check("a second row with the same name", twice, claviger.Internal, "UNIQUE")
	var pages, limit int
	if err := d.Writer.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if err := d.Writer.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(&limit); err != nil {
		t.Fatal(err)
	}
	full := insert(ctx, d, strings.Repeat("x", 100_000), 1) // the same error code as on a full disk
	if !Full(full) || Constraint(full) {
		t.Errorf("a full disk: %v", full)
	}
	check("a full disk", full, claviger.Unavailable, "the disk is full")
	check("a full disk", full, claviger.Unavailable, "make room in "+filepath.Dir(path))
	other, err := Open(ctx, path, c)
	if err != nil {
		t.Fatal(err)
	}
	err = other.Update(ctx, func(context.Context, *sql.Tx) error { return insert(ctx, d, "b", 1) })
	check("a write of another connection", err, claviger.Unavailable,
		"another process has been writing to it for more than 50ms")
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	check("a context that ended", insert(ended, d, "b", 1), claviger.Unavailable, "context canceled")
	check("another error", errors.New("odd"), claviger.Internal, "odd")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, text, c); !Damaged(err) || Full(err) || NotUnique(err) {
		t.Errorf("Open of a file that is not a database: %v", err)
	}
	c.Shown = "/shown"
	if err := c.Fail(path, "x", "", errors.New("odd")); !strings.Contains(err.Error(), "test store /shown") {
		t.Errorf("Fail with Shown: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	check("after Close", insert(ctx, d, "b", 1), claviger.Closed, "is closed")
}

// TestRootGivesAway checks that files which root makes belong to the owner of the folder, so that the owner's server
// can open them.
func TestRootGivesAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.db")
	d := created(t, path, testConfig())
	free, err := d.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	if err := insert(t.Context(), d, "a", 1); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"", "-wal", "-shm", ".lock"} {
		st, err := os.Stat(path + end)
		if sys, ok := sysOf(st, err); !ok || sys.Uid != nobody || sys.Gid != nobody {
			t.Errorf("%s: %+v, %v", end, sys, err)
		}
	}
}

// TestDenied checks that the error names the file that the user may not open. SQLite's own error does not name it.
func TestDenied(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may open all files")
	}
	path := filepath.Join(t.TempDir(), "s.db")
	if err := created(t, path, testConfig()).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path, testConfig())
	want := "open " + path + ": permission denied; the file and its folder must belong"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
}
