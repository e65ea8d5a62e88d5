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
	// lookEvery lies between two looks at the file. docs/backup.md states it.
	lookEvery = time.Second
	// settle is how long a change stays in the -wal alone: changes come in numbers.
	settle = 100 * time.Millisecond
	// unknown is the size of a file that is not in its place.
	unknown = -1
	// nextChange counts one more, and returns the count.
	nextChange = `INSERT INTO setting (name, value) VALUES ('` + metastore.SettingChanges + `', '1')
		ON CONFLICT DO UPDATE SET value = CAST(value AS INTEGER) + 1 RETURNING CAST(value AS INTEGER)`
	readChanges = `SELECT CAST(value AS INTEGER) FROM setting WHERE name = '` + metastore.SettingChanges + `'`
)

// mark is how a file stood when it was looked at.
type mark struct {
	dev, ino uint64
	size     int64
	modified unix.Timespec
}

func markOf(path string) (mark, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return mark{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return markOfStat(&st), nil
}

func markOfStat(st *unix.Stat_t) mark {
	// nolint:unconvert // not uint64 everywhere
	return mark{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, modified: st.Mtim}
}

func (m mark) sameFile(o mark) bool { return m.dev == o.dev && m.ino == o.ino }

// place notices that the file of a store is not the one that this process left: taken
// away, replaced by another, or written over in place. SQLite notices none of these.
//
// The process that has a claim is the only one that moves the -wal into the file, which
// happens soon after each change. So size and time of the file change by its doing alone,
// and the -wal is empty but for a moment: a file that is put in the store's place is
// never mixed with changes of the old one, not at the next start either.
type place struct {
	path string // of the file; real where path leads to it by links
	real string
	log  *slog.Logger

	mu   sync.Mutex           // of the file's writer, and of what follows from a loss
	file atomic.Pointer[mark] // as this process left it; nil before it is open
	// content is what the file held then.
	content content
	// besides are the marks of -wal and -shm, nil where they are not there yet.
	besides [2]*mark
	// kept: this process alone moves the -wal into the file.
	kept atomic.Bool
	// changes is the highest count that this process has seen.
	changes atomic.Int64
	// foreign is why nothing may be read or written: the file was written over.
	foreign atomic.Pointer[string]
	// apart is why nothing may be written, though what is open is as it was.
	apart atomic.Pointer[string]

	wrote chan struct{} // a change is in the -wal
}

// beside are the ends of the names of SQLite's own files.
var beside = [2]string{"-wal", "-shm"}

// placeAnswer is what a client reads.
const placeAnswer = "this server's metastore was moved, replaced or written over while the server used it, so " +
	"nothing is changed; an operator must stop the server, put the right file in its place, and start the server " +
	"again"

// inPlace refuses to read from a file that was written over, and to write to one that is
// not in its place: what is written then is lost, or destroys what was put there.
func (s *Store) inPlace(op, key string, write bool) error {
	p := &s.place
	if p.file.Load() == nil {
		return nil
	}
	if !p.asLeft() {
		p.mu.Lock()
		s.lookAgain()
		p.mu.Unlock()
	}
	why := p.foreign.Load()
	if why == nil && write {
		why = p.apart.Load()
	}
	if why == nil {
		return nil
	}
	return s.refusal(op, key, *why)
}

func (s *Store) refusal(op, key, why string) error {
	return claviger.Answer(claviger.Errorf(op, claviger.Unavailable, key,
		"metastore %s %s; stop the server, put the right file in its place, see that claviger metastore verify "+
			"finds nothing, and start again",
		s.db.Path(), why), placeAnswer)
}

// asLeft tells whether the file is as this process left it, and nothing is known
// against it.
func (p *place) asLeft() bool {
	if p.foreign.Load() != nil || p.apart.Load() != nil {
		return false
	}
	now, err := markOf(p.path)
	was := p.file.Load()
	return err == nil && (now == *was || !p.kept.Load() && now.sameFile(*was))
}

// lookAgain finds out what has become of the file. mu is held.
func (s *Store) lookAgain() {
	p := &s.place
	if p.foreign.Load() != nil {
		return
	}
	was := p.file.Load()
	now, err := markOf(p.path)
	if err == nil && now.sameFile(*was) && was.size == unknown {
		was = &now
		p.file.Store(was)
	}
	switch {
	case err != nil, !now.sameFile(*was):
		p.setApart("is no longer the file that this process has open: it was moved, removed or replaced meanwhile, " +
			"and what is written now would be lost")
	case p.kept.Load() && now != *was && p.holdsTheSame(now):
		p.log.Info("the metastore's file has another time and the same content; it is used as before", "file", p.path,
			"time", stamp(now))
		p.file.Store(&now)
		p.content.of = now
	case p.kept.Load() && now != *was:
		s.setForeign(fmt.Sprintf("was written over in place by another program (%d bytes of %s, and this server "+
			"left %d bytes of %s)", now.size, stamp(now), was.size, stamp(*was)))
	case p.kept.Load() && !p.besidesHold():
		p.setApart("was parted from its " + filepath.Base(p.real) + "-wal or -shm, which was removed or replaced " +
			"meanwhile, and what is written now could be lost")
	default:
		if p.apart.Swap(nil) != nil {
			p.log.Info("the metastore is in its place again", "metastore", s.URI())
		}
	}
}

func stamp(m mark) string { return time.Unix(m.modified.Unix()).UTC().Format(time.RFC3339Nano) }

// besidesHold compares SQLite's own files, once they are there. mu is held.
func (p *place) besidesHold() bool {
	for i, end := range beside {
		now, err := markOf(p.real + end)
		switch {
		case p.besides[i] == nil && err == nil:
			p.besides[i] = &now
		case p.besides[i] != nil && (err != nil || !now.sameFile(*p.besides[i])):
			return false
		}
	}
	return true
}

func (p *place) setApart(why string) {
	if was := p.apart.Swap(&why); was == nil {
		p.log.Error("the metastore is not in its place; no key is made, rolled or deleted until it is", "file", p.path,
			"why", "it "+why)
	}
}

// setForeign keeps everything from a file that was written over, and takes the -wal away
// from it, if it holds anything: the next start would play it into that file. mu is held.
func (s *Store) setForeign(why string) {
	p := &s.place
	wal := p.real + beside[0]
	if now, err := markOf(wal); err == nil && p.besides[0] != nil && now.sameFile(*p.besides[0]) && now.size > 0 {
		aside := wal + ".replaced-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := durable.Rename(wal, aside); err != nil {
			why += fmt.Sprintf("; remove %s before the next start, for its changes do not belong to the file that "+
				"is there now (%s)", wal, err)
		} else {
			why += "; changes of the last moment, which do not belong to that file, are in " + aside
		}
	}
	p.foreign.Store(&why)
	p.log.Error("the metastore was written over; nothing is read from it or written to it, and key versions that "+
		"are in memory are served", "file", p.path, "why", "it "+why)
	s.writes.note(time.Now(), s.refusal("metastore/sqlite.place", "", why))
}

// counted compares the count of a change with the highest that this process has seen:
// one that is not higher was counted in an older copy.
func (s *Store) counted(n, atLeast int64) bool {
	if n >= atLeast {
		return true
	}
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	if s.place.foreign.Load() == nil {
		s.setForeign(fmt.Sprintf("was replaced by an older copy (it counts %d changes, and this server has seen %d)",
			n,
			atLeast))
	}
	return false
}

// unreadable looks at why the count could not be read: a file that was written over in the
// moment in which this process noted how it stands is found by that.
func (s *Store) unreadable(err error) {
	if !sqlitedb.Damaged(err) {
		return
	}
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	if s.place.foreign.Load() == nil {
		s.setForeign(fmt.Sprintf("was written over in place by another program, or is damaged: its count of changes "+
			"cannot be read (%v)", err))
	}
}

// saw remembers a count of changes.
func (p *place) saw(n int64) {
	for {
		was := p.changes.Load()
		if n <= was || p.changes.CompareAndSwap(was, n) {
			return
		}
	}
}

// keep has this process look after the file until release is called: it has the claim.
func (s *Store) keep(ctx context.Context) (release func(), err error) {
	p := &s.place
	db, err := sqlitedb.Connect(s.place.path, 0, "_pragma=synchronous(FULL)", "_pragma=wal_autocheckpoint(0)")
	if err != nil {
		return nil, s.fail("metastore/sqlite.Claim", "", err)
	}
	var n int64
	if err := db.QueryRowContext(ctx, readChanges).Scan(&n); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, errors.Join(s.fail("metastore/sqlite.Claim", "", err), db.Close())
	}
	p.saw(n)
	p.mu.Lock()
	p.besides = [2]*mark{}
	p.besidesHold()
	_ = s.fold(ctx, db) // a full disk is told by the next look
	p.kept.Store(true)
	p.sumUp()
	p.mu.Unlock()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		s.lookAfter(db, stop)
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-done
		if p.foreign.Load() == nil { // else its last connection would write to the file, see Close
			_ = db.Close()
		}
	}), nil
}

// lookAfter looks at the file each second and after each change.
func (s *Store) lookAfter(db *sql.DB, stop <-chan struct{}) {
	for ended := false; !ended; {
		pause := settle
		select {
		case <-stop:
			ended, pause = true, 0
		case <-s.place.wrote:
		case <-time.After(lookEvery):
			pause = 0
		}
		select {
		case <-stop:
			ended = true
		case <-time.After(pause):
		}
		s.lookOnce(context.Background(), db) // at the end, too: what follows writes without a look
	}
	s.place.kept.Store(false) // others may have it now
}

// lookOnce looks at the file, and moves the -wal into it where all is well.
func (s *Store) lookOnce(ctx context.Context, db *sql.DB) {
	p := &s.place
	p.mu.Lock()
	s.lookAgain()
	foreign := p.foreign.Load() != nil
	began := time.Now()
	var err error
	if !foreign { // a file that was moved gets the last changes, too
		err = s.fold(ctx, db)
		p.sumUp()
	}
	p.mu.Unlock()
	if foreign {
		return
	}
	if err != nil {
		s.writes.note(began, s.fail("metastore/sqlite.fold", "", err))
		return
	}
	if err := s.inPlace("metastore/sqlite.place", "", true); err != nil {
		s.writes.note(began, err)
		return
	}
	atLeast := p.changes.Load()
	var n int64
	// What the connection remembers of pages may be older than the file.
	if _, err := db.ExecContext(ctx, "PRAGMA shrink_memory"); err == nil {
		if err = db.QueryRowContext(ctx, readChanges).Scan(&n); err == nil || errors.Is(err, sql.ErrNoRows) {
			s.counted(n, atLeast)
		}
		s.unreadable(err)
	}
}

// fold moves the -wal into the file, if there is anything in it that nobody reads, and
// notes how the file stands then. mu is held.
func (s *Store) fold(ctx context.Context, db *sql.DB) error {
	p := &s.place
	wal, err := markOf(p.real + beside[0])
	if p.kept.Load() && (err == nil && wal.size == 0) {
		return nil
	}
	for _, how := range []string{"PASSIVE", "TRUNCATE"} {
		var busy, pages, moved int64
		err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+how+")").Scan(&busy, &pages, &moved)
		if err != nil || busy != 0 || pages != moved {
			break
		}
	}
	was := p.file.Load()
	now, serr := markOf(p.path)
	if serr != nil || !now.sameFile(*was) { // it was moved, and written to where it is
		now = mark{dev: was.dev, ino: was.ino, size: unknown}
	}
	p.file.Store(&now) // also where it failed half-way
	return err
}
