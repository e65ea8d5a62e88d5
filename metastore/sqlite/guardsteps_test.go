package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/durable"
	"claviger/internal/faultsql"
	"claviger/owner"
	"claviger/sqlitedb"
)

// guarded is a store whose guard has the state of a claimed store, but no goroutine checks the file. So a test calls
// each check itself.
type guarded struct {
	*Store
	path string
	log  bytes.Buffer
	db   *sql.DB // the connection for checkpoints
}

// newGuarded returns a store with the key "k", which is in the -wal.
func newGuarded(t *testing.T) *guarded {
	t.Helper()
	s, path := newStore(t)
	g := &guarded{Store: s, path: path}
	s.LogTo(slog.New(slog.NewTextHandler(&g.log, nil)))
	mustInsert(t, s, "k", "0")
	var err error
	if g.db, err = sqlitedb.Connect(path, 0, "_pragma=synchronous(FULL)", "_pragma=wal_autocheckpoint(0)"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.db.Close() })
	if err := g.db.PingContext(t.Context()); err != nil { // it opens the file now, and not when it was moved
		t.Fatal(err)
	}
	s.guard.claimed.Store(true)
	s.guard.sidecarsUnchanged()
	s.guard.updateSum()
	return g
}

// logged demands that the log has n lines with a text.
func (g *guarded) logged(t *testing.T, text string, n int) {
	t.Helper()
	if got := strings.Count(g.log.String(), text); got != n {
		t.Errorf("the log has %q %d times, want %d: %s", text, got, n, g.log.String())
	}
}

// wantState demands the reasons why the file is not used; "" for none.
func (g *guarded) wantState(t *testing.T, overwritten, displaced string) {
	t.Helper()
	for _, c := range []struct {
		what, want string
		got        *string
	}{{"overwritten", overwritten, g.guard.overwritten.Load()}, {"displaced", displaced, g.guard.displaced.Load()}} {
		if (c.got != nil) != (c.want != "") || c.got != nil && !strings.Contains(*c.got, c.want) {
			t.Errorf("the file is %s: %v, want %q", c.what, c.got, c.want)
		}
	}
}

// wantRecorded demands that LastWrite has an error of the guard.
func (g *guarded) wantRecorded(t *testing.T) {
	t.Helper()
	if seen, ok := g.LastWrite(); !ok || claviger.AnswerOf(seen.Err) == "" {
		t.Errorf("LastWrite: %+v, %t", seen, ok)
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	stamp := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, stamp, stamp); err != nil {
		t.Fatal(err)
	}
}

func mustRename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestStateOfMissingFile checks that the state of a missing file is an error that names the file.
func TestStateOfMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	if _, err := stateOf(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
}

// TestUnclaimedStoreIsDisplaced checks a store without a claim: a moved file is detected at the next change, and the
// first change after its return succeeds.
func TestUnclaimedStoreIsDisplaced(t *testing.T) {
	s, path := newStore(t)
	other, otherPath := newStore(t)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	touch(t, path) // another process may change the file
	mustInsert(t, s, "k", "0")
	mustRename(t, path, path+".moved")
	wantRefused(t, "moved", s.Insert(t.Context(), testKey("lost", "1")))
	if _, err := s.Names(t.Context()); err != nil {
		t.Errorf("reading a moved file: %v", err)
	}
	mustRename(t, path+".moved", path)
	mustInsert(t, s, "again", "2")
	mustRename(t, otherPath, path)
	wantRefused(t, "replaced", s.Insert(t.Context(), testKey("lost", "3")))
}

// TestRecheckTouched checks that a new time of the file is accepted once if the content is the same, and only then.
func TestRecheckTouched(t *testing.T) {
	g := newGuarded(t)
	touch(t, g.path)
	for range 2 {
		g.recheck()
	}
	g.wantState(t, "", "")
	g.logged(t, "the time of the metastore's file was changed", 1)
	if now, err := stateOf(g.path); err != nil || *g.guard.file.Load() != now || g.guard.content.of != now {
		t.Errorf("the guard has other states than the file's: %v", err)
	}
	g.guard.content.of = fileState{}
	stamp := time.Now().Add(2 * time.Hour)
	if err := os.Chtimes(g.path, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	g.recheck()
	g.wantState(t, "was written over in place", "")
	g.wantRecorded(t)
}

// TestRecheckMoved checks that a moved file is reported once, and that its return is reported once.
func TestRecheckMoved(t *testing.T) {
	g := newGuarded(t)
	mustRename(t, g.path, g.path+".moved")
	for range 3 {
		g.recheck()
	}
	g.wantState(t, "", "is no longer the file that this process has open")
	g.logged(t, "the metastore is not at its path", 1)
	mustRename(t, g.path+".moved", g.path)
	for range 3 {
		g.recheck()
	}
	g.wantState(t, "", "")
	g.logged(t, "the metastore is at its path again", 1)
}

// TestRecheckUnknownSize checks that the size of a file that was moved and is back is stored, so that a later change of
// the file is detected.
func TestRecheckUnknownSize(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		g := newGuarded(t)
		mustRename(t, g.path, g.path+".moved")
		if replaced {
			if err := copyFile(g.path+".moved", g.path); err != nil {
				t.Fatal(err)
			}
		}
		before := *g.guard.file.Load()
		if err := g.checkpoint(t.Context(), g.db); err != nil {
			t.Fatal(err)
		}
		if last := g.guard.file.Load(); last.size != unknownSize || !last.sameFile(before) {
			t.Errorf("after a checkpoint of a moved file: %+v", last)
		}
		g.recheck()
		g.wantState(t, "", "is no longer the file that this process has open")
		mustRename(t, g.path+".moved", g.path)
		g.recheck()
		g.wantState(t, "", "")
		touch(t, g.path) // there is no checksum of this state
		g.recheck()
		g.wantState(t, "was written over in place", "")
	}
}

// TestRecheckSidecars checks that a lost, and a replaced, -wal or -shm is detected.
func TestRecheckSidecars(t *testing.T) {
	for _, suffix := range sidecarSuffixes {
		for _, replaced := range []bool{false, true} {
			g := newGuarded(t)
			g.recheck()
			g.wantState(t, "", "")
			side := g.path + suffix
			mustRename(t, side, side+".moved")
			if replaced {
				if err := copyFile(side+".moved", side); err != nil {
					t.Fatal(err)
				}
			}
			g.recheck()
			g.wantState(t, "", "has lost its")
			mustRename(t, side+".moved", side)
			g.recheck()
			g.wantState(t, "", "")
		}
	}
	g := newGuarded(t)
	g.guard.claimed.Store(false)
	if err := os.Remove(g.path + "-wal"); err != nil {
		t.Fatal(err)
	}
	g.recheck()
	g.wantState(t, "", "") // only the process with the claim knows the files
}

// TestOverwrittenWAL checks which -wal is moved away when the file was overwritten.
func TestOverwrittenWAL(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(g *guarded) error
		moved   bool
	}{
		"own": {func(*guarded) error { return nil }, true},
		"empty": {func(g *guarded) error {
			return g.checkpoint(t.Context(), g.db)
		}, false},
		"not seen before": {func(g *guarded) error { g.guard.sidecars[0] = nil; return nil }, false},
		"of another file": {func(g *guarded) error {
			return errors.Join(os.Rename(g.path+"-wal", g.path+".x"), copyFile(g.path+".x", g.path+"-wal"))
		}, false},
	} {
		g := newGuarded(t)
		if err := tt.prepare(g); err != nil {
			t.Fatal(err)
		}
		g.setOverwritten("was overwritten by the test")
		aside, err := filepath.Glob(g.path + "-wal.replaced-*Z")
		if err != nil || (len(aside) == 1) != tt.moved {
			t.Errorf("%s: moved to %q, %v", name, aside, err)
		}
		want := "was overwritten by the test"
		if tt.moved {
			want += "; the last changes, which do not belong to that file, are in " + strings.Join(aside, "")
		}
		if got := *g.guard.overwritten.Load(); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		g.wantRecorded(t)
	}
}

// TestOverwrittenWALStays checks the message if the -wal cannot be moved away.
func TestOverwrittenWALStays(t *testing.T) {
	g := newGuarded(t)
	defer durable.Mount(filepath.Dir(g.path), &stepDisk{fail: 1})()
	g.setOverwritten("was overwritten by the test")
	g.wantState(t, "remove "+g.path+"-wal before the next start", "")
}

// TestFirstReasonStays checks that a later check does not change the reason why a file is not used.
func TestFirstReasonStays(t *testing.T) {
	g := newGuarded(t)
	if !g.checkCount(5, 5) || !g.checkCount(6, 5) {
		t.Error("the count is as high as expected")
	}
	g.wantState(t, "", "")
	g.checkUnreadable(nil)
	g.checkUnreadable(sql.ErrNoRows)
	g.wantState(t, "", "")
	if g.checkCount(4, 5) {
		t.Error("the count is too low")
	}
	g.wantState(t, "was replaced by an older copy", "")
	if g.checkCount(3, 5) {
		t.Error("the count is too low")
	}
	g.wantState(t, "it counts 4 changes", "")
	g.checkUnreadable(damagedError(t))
	g.wantState(t, "it counts 4 changes", "")
	g.recheck()
	g.wantState(t, "it counts 4 changes", "")
	g = newGuarded(t)
	g.checkUnreadable(damagedError(t))
	g.wantState(t, "its count of changes cannot be read", "")
}

// damagedError returns the error of a file that is not a database.
func damagedError(t *testing.T) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(path, bytes.Repeat([]byte("text "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sqlitedb.Connect(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var n int
	err = db.QueryRowContext(t.Context(), readChanges).Scan(&n)
	if !sqlitedb.Damaged(err) {
		t.Fatal(err)
	}
	return err
}

// TestRecordCount checks that the count of changes only rises.
func TestRecordCount(t *testing.T) {
	var g guard
	for _, n := range []int64{5, 3, 7} {
		g.recordCount(n)
	}
	if n := g.changes.Load(); n != 7 {
		t.Errorf("%d changes, want 7", n)
	}
}

// TestClaimedState checks what the guard knows right after a claim, and after its release.
func TestClaimedState(t *testing.T) {
	s, path := newStore(t)
	mustInsert(t, s, "k", "0")
	mustInsert(t, s, "l", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	other, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	mustInsert(t, other, "m", "2")
	release, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false)
	if err != nil {
		t.Fatal(err)
	}
	s.guard.mu.Lock()
	sidecars, content := s.guard.sidecars, s.guard.content.of
	s.guard.mu.Unlock()
	now, err := stateOf(path)
	if err != nil || content != now || *s.guard.file.Load() != now {
		t.Errorf("the checksum is of another state (%v)", err)
	}
	if wal, err := stateOf(path + "-wal"); err != nil || wal.size != 0 || sidecars[0] == nil || sidecars[1] == nil {
		t.Errorf("the -wal has %d bytes (%v); the guard knows %v", wal.size, err, sidecars)
	}
	if n := s.guard.changes.Load(); n != 3 || !s.guard.claimed.Load() {
		t.Errorf("%d changes; claimed: %t", n, s.guard.claimed.Load())
	}
	release()
	if s.guard.claimed.Load() {
		t.Error("the guard is claimed after the release")
	}
}

// TestCheckOnce checks what one regular check detects and records.
func TestCheckOnce(t *testing.T) {
	change := func(t *testing.T, g *guarded, statement string) {
		t.Helper()
		if _, err := g.Store.db.Writer.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		prepare                func(t *testing.T, g *guarded)
		overwritten, displaced string
	}{
		"nothing has changed": {func(*testing.T, *guarded) {}, "", ""},
		"the file was touched": {func(t *testing.T, g *guarded) {
			g.guard.content.of = fileState{}
			touch(t, g.path)
		}, "was written over in place", ""},
		"the file was moved": {func(t *testing.T, g *guarded) { mustRename(t, g.path, g.path+".moved") }, "",
			"is no longer the file"},
		"the count is lower": {func(_ *testing.T, g *guarded) { g.guard.changes.Store(5) },
			"it counts 1 changes, and this server has seen 5", ""},
		"there is no count": {func(t *testing.T, g *guarded) {
			change(t, g, `DELETE FROM setting WHERE name = 'store.changes'`)
		}, "it counts 0 changes, and this server has seen 1", ""},
		"the count cannot be read": {func(t *testing.T, g *guarded) { g.damageSettings(t) },
			"its count of changes cannot be read", ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			tt.prepare(t, g)
			before, err := os.ReadFile(g.path)
			if err != nil && tt.displaced == "" {
				t.Fatal(err)
			}
			g.checkOnce(t.Context(), g.db)
			g.wantState(t, tt.overwritten, tt.displaced)
			if tt.overwritten+tt.displaced != "" {
				g.wantRecorded(t)
			} else if seen, ok := g.LastWrite(); !ok || seen.Err != nil {
				t.Errorf("LastWrite: %+v, %t", seen, ok)
			}
			if after, err := os.ReadFile(g.path); name == "the file was touched" && !bytes.Equal(before, after) {
				t.Errorf("the check has changed a file that was overwritten (%v)", err)
			}
		})
	}
}

// damageSettings overwrites the page of the table of settings, and makes the guard take that for its own change.
func (g *guarded) damageSettings(t *testing.T) {
	t.Helper()
	if err := g.checkpoint(t.Context(), g.db); err != nil {
		t.Fatal(err)
	}
	var root int64
	err := g.Store.db.Reader.QueryRow(`SELECT rootpage FROM sqlite_schema WHERE name = 'setting'`).Scan(&root)
	if err != nil {
		t.Fatal(err)
	}
	// A close of the file by this process would end SQLite's locks.
	script := fmt.Sprintf(`printf '\377\377\377\377' | dd of="$0" bs=1 seek=%d conv=notrunc`, (root-1)*4096)
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script, g.path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	now, err := stateOf(g.path)
	if err != nil {
		t.Fatal(err)
	}
	g.guard.file.Store(&now)
}

// TestEachCallOfACheckFails makes each call of a regular check to SQLite fail, one after the other. The error of a
// checkpoint must be recorded; the other calls are repeated by the next check.
func TestEachCallOfACheckFails(t *testing.T) {
	injectFaults(t)
	g := newGuarded(t)
	_, cause := g.Store.db.Reader.ExecContext(t.Context(), `SELECT x FROM missing`)
	if !sqlitedb.Reported(cause) { // LastWrite ignores errors that are not SQLite's
		t.Fatal(cause)
	}
	rounds := 0
	for fault := range faults.EachFailsWith(cause, func() error { g.checkOnce(t.Context(), g.db); return nil }) {
		rounds++
		want := strings.HasPrefix(fault.Statement, "PRAGMA wal_checkpoint") && fault.Call != faultsql.Scan
		if seen, ok := g.LastWrite(); !ok || (seen.Err != nil) != want || want && !errors.Is(seen.Err, cause) {
			t.Errorf("%s: LastWrite %+v", fault, seen)
		}
		g.wantState(t, "", "")
		mustInsert(t, g.Store, fmt.Sprint("round", rounds), fmt.Sprint(rounds)) // so that the -wal is not empty
	}
	if rounds < 5 {
		t.Errorf("%d rounds", rounds)
	}
}

// TestSums checks when the checksum of the file is computed, and which content counts as the same.
func TestSums(t *testing.T) {
	g := newGuarded(t)
	last := *g.guard.file.Load()
	if g.guard.content.of != last || !g.guard.sameContent(last) {
		t.Fatal("the file has no checksum")
	}
	before := g.guard.content
	g.guard.updateSum()
	if g.guard.content != before {
		t.Error("the checksum of the same state was computed again")
	}
	g.guard.content.sum++
	if g.guard.sameContent(last) {
		t.Error("another checksum counts as the same content")
	}
	g.guard.content = before
	other := last
	other.modified.Nsec++
	g.guard.content.of = other // the file was changed after the checksum
	if g.guard.sameContent(last) {
		t.Error("the checksum of an older state counts as that of the file")
	}
	g.guard.content.at, g.guard.content.took = time.Now(), time.Hour
	g.guard.updateSum()
	if g.guard.content.of != other {
		t.Error("a checksum that takes long was computed too often")
	}
	g.guard.content.took = 0
	g.guard.claimed.Store(false)
	g.guard.updateSum()
	if g.guard.content.of != other {
		t.Error("the checksum was computed without a claim")
	}
	g.guard.claimed.Store(true)
	unknown := last
	unknown.dev++ // the next inode may be that of the -wal
	g.guard.file.Store(&unknown)
	g.guard.updateSum()
	if g.guard.content.of != (fileState{}) {
		t.Error("a file that cannot be read has a checksum")
	}
}

// TestSumErrors checks that a file which is not in the expected state has no checksum.
func TestSumErrors(t *testing.T) {
	g := newGuarded(t)
	is := *g.guard.file.Load()
	missing, longer, older := is, is, is
	missing.dev++ // the next inode may be that of the -wal
	longer.size++
	older.modified.Nsec++
	if _, err := g.guard.sumOf(missing); err == nil || !strings.Contains(err.Error(), "no descriptor of this process") {
		t.Errorf("a file that is not open: %v", err)
	}
	for _, state := range []fileState{longer, older} {
		if _, err := g.guard.sumOf(state); !errors.Is(err, errChanged) {
			t.Errorf("a file that was changed: %v", err)
		}
	}
}

// TestSeen checks which results LastRead and LastWrite return.
func TestSeen(t *testing.T) {
	s, _ := newStore(t)
	if _, ok := s.LastWrite(); ok {
		t.Error("there was no change")
	}
	if seen, ok := s.LastRead(); ok || seen.Err != nil {
		t.Errorf("LastRead: %+v, %t", seen, ok)
	}
	mustInsert(t, s, "k", "0")
	if seen, ok := s.LastWrite(); !ok || seen.Err != nil || seen.At.IsZero() {
		t.Errorf("LastWrite after a change: %+v, %t", seen, ok)
	}
	if err := s.Insert(t.Context(), testKey("k", "1")); !claviger.Is(err, claviger.KeyExists) {
		t.Fatal(err)
	}
	if seen, ok := s.LastWrite(); !ok || seen.Err != nil {
		t.Errorf("LastWrite after an error of the caller: %+v, %t", seen, ok)
	}
	refuseInserts(t, s, "journal")
	if err := s.Put(t.Context(), "run", "", nil); err == nil {
		t.Fatal("no error")
	}
	if seen, ok := s.LastWrite(); !ok || seen.Err == nil {
		t.Errorf("LastWrite after an error of SQLite: %+v, %t", seen, ok)
	}
}
