package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger/metastore"
	"claviger/pgdb"
)

var _ metastore.Watched = (*Store)(nil)

// The sizes of what CheckWrites writes. After a full disk it is more than finds room in
// pages that the table has already.
const probeSmall, probeLarge = 32, 64 << 10

// writes is what changes saw last.
type writes struct {
	last atomic.Pointer[metastore.Seen]
	full atomic.Bool // the last change found the disk full
	// unfollowed is when a change last found that no standby follows; nil where one does.
	unfollowed atomic.Pointer[time.Time]
}

// noteWrite remembers how a change ended, unless that tells of the key alone.
func (s *Store) noteWrite(began time.Time, err error) {
	if err != nil && s.writes.unfollowed.Load() == nil && pgdb.Code(err) == "" && !pgdb.Unreachable(err) &&
		!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errFenced) && s.history.lost.Load() == nil {
		return
	}
	s.writes.full.Store(pgdb.DiskFull(err))
	s.writes.last.Store(&metastore.Seen{At: time.Now(), Took: time.Since(began), Err: err})
}

// LastWrite is what changes of keys saw last.
func (s *Store) LastWrite() (metastore.Seen, bool) {
	if seen := s.writes.last.Load(); seen != nil {
		return *seen, true
	}
	return metastore.Seen{}, false
}

// LastRead is what saw the database last, whatever was asked.
func (s *Store) LastRead() (metastore.Seen, bool) {
	at, took, err := s.db.Last()
	return metastore.Seen{At: at, Took: took, Err: err}, !at.IsZero()
}

// CheckWrites tells whether keys can be changed: nothing is missing, and a small change
// is committed, which takes a primary that is not read-only, room on its disk, and its
// synchronous standbys.
func (s *Store) CheckWrites(ctx context.Context) error {
	const op = "metastore/postgres.CheckWrites"
	if err := s.whole(op, ""); err != nil {
		return err
	}
	standbys, err := s.db.Standbys(ctx, op)
	if err == nil && standbys.Waiting {
		err = s.unfollowed(op, "", standbys)
	}
	if err != nil {
		return err
	}
	size := probeSmall
	if s.writes.full.Load() {
		size = probeLarge
	}
	err = s.db.Try(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.fence(ctx, tx, op, ""); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO setting (name, value) SELECT $1, string_agg(md5(random()::text), '')
			FROM generate_series(1, $2)
			ON CONFLICT (`+digestName+`) DO UPDATE SET value = excluded.value`, metastore.SettingProbe, size/32)
		return err
	})
	if err == nil {
		s.writes.full.Store(false)
	}
	if err != nil && errors.Is(err, context.DeadlineExceeded) && standbys.Names != "" {
		err = fmt.Errorf("%w; commits wait for a standby (synchronous_standby_names is %q), and %d standbys follow: "+
			"see that those which are named do (pg_stat_replication)", err, standbys.Names, standbys.Following)
	}
	return err
}
