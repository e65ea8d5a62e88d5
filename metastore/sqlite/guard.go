package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"claviger"
	"claviger/durable"
	"claviger/metastore"
	"claviger/sqlitedb"
)

const (
	// checkInterval is the time between two checks of the file. docs/backup.md states it.
	checkInterval = time.Second
	// debounce is the time between a change and the checkpoint after it, so that one checkpoint serves many changes.
	debounce = 100 * time.Millisecond
	// unknownSize is the size in the state of a file that is not at its path.
	unknownSize = -1
	// nextChange raises the count of changes by one, and returns the new count.
	nextChange = `INSERT INTO setting (name, value) VALUES ('` + metastore.SettingChanges + `', '1')
		ON CONFLICT DO UPDATE SET value = CAST(value AS INTEGER) + 1 RETURNING CAST(value AS INTEGER)`
	readChanges = `SELECT CAST(value AS INTEGER) FROM setting WHERE name = '` + metastore.SettingChanges + `'`
)

// fileState identifies a file, and shows whether its content may have changed.
type fileState struct {
	dev, ino uint64
	size     int64
	modified unix.Timespec
}

func stateOf(path string) (fileState, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileState{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return stateOfStat(&st), nil
}

func stateOfStat(st *unix.Stat_t) fileState {
	// nolint:unconvert // not uint64 everywhere
	return fileState{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, modified: st.Mtim}
}

func (s fileState) sameFile(o fileState) bool { return s.dev == o.dev && s.ino == o.ino }

// guard detects that a store's file was moved, replaced by another file, or overwritten in place by another
// program. SQLite detects none of these.
//
// Only the process with the claim runs checkpoints: it moves the -wal into the file soon after each change. So no
// other process changes the size or time of the file, and the -wal is empty most of the time. Therefore changes of the
// old file do not get into a file that an operator puts in its place, also not at the next start.
type guard struct {
	path string // of the file
	real string // path without symbolic links
	log  *slog.Logger

	mu   sync.Mutex                // held during a checkpoint, and while recheck runs
	file atomic.Pointer[fileState] // after the last checkpoint of this process; nil before the file is open
	// content is the checksum of the file in that state.
	content content
	// sidecars are the states of -wal and -shm; nil for a file that does not exist yet.
	sidecars [2]*fileState
	// claimed: this process has the claim, so it alone runs checkpoints.
	claimed atomic.Bool
	// changes is the highest count of changes that this process has seen.
	changes atomic.Int64
	// overwritten says how the file was overwritten or damaged; nil if it was not. Then nothing is read or written.
	overwritten atomic.Pointer[string]
	// displaced says why the open file is not at its path; nil if it is. Then nothing is written. Reads continue,
	// because the open file has not changed.
	displaced atomic.Pointer[string]

	changed chan struct{} // receives after a change, which is then in the -wal
}

// sidecarSuffixes are the suffixes of the names of SQLite's own files.
var sidecarSuffixes = [2]string{"-wal", "-shm"}

// guardAnswer is the text that a client gets.
const guardAnswer = "this server's metastore was moved, replaced, written over or damaged while the server used it, " +
	"so nothing is changed; an operator must stop the server, put the right file in its place, and start the server " +
	"again"

// checkPlace returns an error if the file was overwritten, and for a write also if the file is not at its path: the
// write would be lost, or would damage the file that is there now.
func (s *Store) checkPlace(op, key string, write bool) error {
	g := &s.guard
	if g.file.Load() == nil {
		return nil
	}
	if !g.unchanged() {
		g.mu.Lock()
		s.recheck()
		g.mu.Unlock()
	}
	why := g.overwritten.Load()
	if why == nil && write {
		why = g.displaced.Load()
	}
	if why == nil {
		return nil
	}
	return s.refusal(op, key, *why)
}

func (s *Store) refusal(op, key, why string) error {
	return claviger.Answer(claviger.Errorf(op, claviger.Unavailable, key,
		"metastore %s %s; stop the server, put the right file in its place, check that claviger metastore verify "+
			"finds nothing, and start again",
		s.db.Path(), why), guardAnswer)
}

// unchanged reports whether the file is as this process left it, and no check has set overwritten or displaced.
func (g *guard) unchanged() bool {
	if g.overwritten.Load() != nil || g.displaced.Load() != nil {
		return false
	}
	now, err := stateOf(g.path)
	last := g.file.Load()
	return err == nil && (now == *last || !g.claimed.Load() && now.sameFile(*last))
}

// recheck finds out what has happened to the file, and sets overwritten or displaced. mu is held.
func (s *Store) recheck() {
	g := &s.guard
	if g.overwritten.Load() != nil {
		return
	}
	last := g.file.Load()
	now, err := stateOf(g.path)
	if err == nil && now.sameFile(*last) && last.size == unknownSize {
		last = &now
		g.file.Store(last)
	}
	switch {
	case err != nil, !now.sameFile(*last):
		g.setDisplaced("is no longer the file that this process has open: it was moved, removed or replaced " +
			"meanwhile, and what is written now would be lost")
	case g.claimed.Load() && now != *last && g.sameContent(now):
		g.log.Info("the time of the metastore's file was changed, but not its content; the file is used as before",
			"file", g.path, "time", stamp(now))
		g.file.Store(&now)
		g.content.of = now
	case g.claimed.Load() && now != *last:
		s.setOverwritten(fmt.Sprintf("was written over in place by another program (%d bytes of %s, and this server "+
			"left %d bytes of %s)", now.size, stamp(now), last.size, stamp(*last)))
	case g.claimed.Load() && !g.sidecarsUnchanged():
		g.setDisplaced("has lost its " + filepath.Base(g.real) + "-wal or -shm file: another program removed or " +
			"replaced it, and what is written now could be lost")
	default:
		if g.displaced.Swap(nil) != nil {
			g.log.Info("the metastore is at its path again, and is used as before", "metastore", s.URI())
		}
	}
}

func stamp(s fileState) string { return time.Unix(s.modified.Unix()).UTC().Format(time.RFC3339Nano) }

// sidecarsUnchanged reports whether SQLite's own files are still the same. It stores the state of a file that did not
// exist before. mu is held.
func (g *guard) sidecarsUnchanged() bool {
	for i, suffix := range sidecarSuffixes {
		now, err := stateOf(g.real + suffix)
		switch {
		case g.sidecars[i] == nil && err == nil:
			g.sidecars[i] = &now
		case g.sidecars[i] != nil && (err != nil || !now.sameFile(*g.sidecars[i])):
			return false
		}
	}
	return true
}

func (g *guard) setDisplaced(why string) {
	if before := g.displaced.Swap(&why); before == nil {
		g.log.Error("the metastore is not at its path; no key is made, rolled or deleted until it is", "file", g.path,
			"why", "it "+why)
	}
}

// setOverwritten stops all reads and writes. It moves a -wal with changes away, because the next start would apply the
// changes to the file that is there now. mu is held.
func (s *Store) setOverwritten(why string) {
	g := &s.guard
	wal := g.real + sidecarSuffixes[0]
	if now, err := stateOf(wal); err == nil && g.sidecars[0] != nil && now.sameFile(*g.sidecars[0]) && now.size > 0 {
		aside := wal + ".replaced-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := durable.Rename(wal, aside); err != nil {
			why += fmt.Sprintf("; remove %s before the next start, because its changes do not belong to the file that "+
				"is there now (%s)", wal, err)
		} else {
			why += "; the last changes, which do not belong to that file, are in " + aside
		}
	}
	g.overwritten.Store(&why)
	g.log.Error("the metastore was written over; nothing is read from it or written to it, and key versions that "+
		"are in memory are served", "file", g.path, "why", "it "+why)
	s.writes.record(time.Now(), s.refusal("metastore/sqlite.guard", "", why))
}

// checkCount compares the count n of a change with the lowest count that this process expects. A lower one means that
// the file was replaced by an older copy: then checkCount returns false.
func (s *Store) checkCount(n, atLeast int64) bool {
	if n >= atLeast {
		return true
	}
	s.guard.mu.Lock()
	defer s.guard.mu.Unlock()
	if s.guard.overwritten.Load() == nil {
		s.setOverwritten(fmt.Sprintf("was replaced by an older copy (it counts %d changes, and this server has "+
			"seen %d)", n, atLeast))
	}
	return false
}

// checkUnreadable handles the error of reading the count. It detects a file that was overwritten while this process
// read its state after a checkpoint: recheck compares states, so it does not detect this file.
func (s *Store) checkUnreadable(err error) {
	if !sqlitedb.Damaged(err) {
		return
	}
	s.guard.mu.Lock()
	defer s.guard.mu.Unlock()
	if s.guard.overwritten.Load() == nil {
		s.setOverwritten(fmt.Sprintf("was written over in place by another program, or is damaged: its count of "+
			"changes cannot be read (%v)", err))
	}
}

// recordCount stores a count of changes if it is the highest so far.
func (g *guard) recordCount(n int64) {
	for {
		highest := g.changes.Load()
		if n <= highest || g.changes.CompareAndSwap(highest, n) {
			return
		}
	}
}

// startChecks starts the regular checks and checkpoints of the file. The caller has the claim. release ends them.
func (s *Store) startChecks(ctx context.Context) (release func(), err error) {
	g := &s.guard
	db, err := sqlitedb.Connect(s.guard.path, 0, "_pragma=synchronous(FULL)", "_pragma=wal_autocheckpoint(0)")
	if err != nil {
		return nil, s.fail("metastore/sqlite.Claim", "", err)
	}
	var n int64
	if err := db.QueryRowContext(ctx, readChanges).Scan(&n); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, errors.Join(s.fail("metastore/sqlite.Claim", "", err), db.Close())
	}
	g.recordCount(n)
	g.mu.Lock()
	g.sidecars = [2]*fileState{}
	g.sidecarsUnchanged()
	_ = s.checkpoint(ctx, db) // the next check reports an error that persists, like a full disk
	g.claimed.Store(true)
	if !s.db.Unchecked() {
		g.updateSum()
	}
	g.mu.Unlock()
	stop := make(chan struct{})
	checking, cancel := context.WithCancel(context.Background())
	var checks sync.WaitGroup
	checks.Go(func() { s.checkLoop(db, stop) })
	if s.db.Unchecked() {
		checks.Go(func() { s.checkLarge(checking) })
	}
	return sync.OnceFunc(func() {
		cancel()
		close(stop)
		checks.Wait()
		if g.overwritten.Load() == nil { // Close of the last connection would write to the file
			_ = db.Close()
		}
	}), nil
}

// checkLarge does for a large file what a start does for a small one: it computes the checksum, and checks the pages.
func (s *Store) checkLarge(ctx context.Context) {
	g := &s.guard
	g.mu.Lock()
	g.updateSum()
	g.mu.Unlock()
	fault, err := s.db.CheckPages(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		g.log.Warn("the pages of the metastore's file could not be checked; the next start checks them", "file", g.path,
			"err", err)
	case fault != "":
		why := fmt.Sprintf("is damaged (%s)", fault)
		g.overwritten.CompareAndSwap(nil, &why)
		g.log.Error("the metastore is damaged; nothing is read from it or written to it, and key versions that are in "+
			"memory are served", "file", g.path, "why", fault, "cure", pagesCure)
		s.writes.record(time.Now(), s.refusal("metastore/sqlite.guard", "", why))
	}
}

// checkLoop checks the file each second, after each change, and once before it ends.
func (s *Store) checkLoop(db *sql.DB, stop <-chan struct{}) {
	for ended := false; !ended; {
		pause := debounce
		select {
		case <-stop:
			ended, pause = true, 0
		case <-s.guard.changed:
		case <-time.After(checkInterval):
			pause = 0
		}
		select {
		case <-stop:
			ended = true
		case <-time.After(pause):
		}
		s.checkOnce(context.Background(), db) // also at the end, because Close writes to the file without a check
	}
	s.guard.claimed.Store(false) // another process may claim the store now
}

// checkOnce checks the file, and runs a checkpoint unless the file was overwritten.
func (s *Store) checkOnce(ctx context.Context, db *sql.DB) {
	g := &s.guard
	g.mu.Lock()
	s.recheck()
	overwritten := g.overwritten.Load() != nil
	began := time.Now()
	var err error
	if !overwritten { // a file that was moved also gets its last changes
		err = s.checkpoint(ctx, db)
		g.updateSum()
	}
	g.mu.Unlock()
	if overwritten {
		return
	}
	if err != nil {
		s.writes.record(began, s.fail("metastore/sqlite.checkpoint", "", err))
		return
	}
	if err := s.checkPlace("metastore/sqlite.guard", "", true); err != nil {
		s.writes.record(began, err)
		return
	}
	atLeast := g.changes.Load()
	var n int64
	// The connection may have older pages in its cache than the file has.
	if _, err := db.ExecContext(ctx, "PRAGMA shrink_memory"); err == nil {
		if err = db.QueryRowContext(ctx, readChanges).Scan(&n); err == nil || errors.Is(err, sql.ErrNoRows) {
			s.checkCount(n, atLeast)
		}
		s.checkUnreadable(err)
	}
}

// checkpoint moves the -wal into the file, as far as no reader needs it, and stores the state of the file after that.
// mu is held.
func (s *Store) checkpoint(ctx context.Context, db *sql.DB) error {
	g := &s.guard
	wal, err := stateOf(g.real + sidecarSuffixes[0])
	if g.claimed.Load() && (err == nil && wal.size == 0) {
		return nil
	}
	for _, mode := range []string{"PASSIVE", "TRUNCATE"} {
		var busy, pages, moved int64
		err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &pages, &moved)
		if err != nil || busy != 0 || pages != moved {
			break
		}
	}
	last := g.file.Load()
	now, statErr := stateOf(g.path)
	if statErr != nil || !now.sameFile(*last) { // the file was moved, and the checkpoint wrote to the moved file
		now = fileState{dev: last.dev, ino: last.ino, size: unknownSize}
	}
	g.file.Store(&now) // also after an error, because the checkpoint may have written a part
	return err
}
