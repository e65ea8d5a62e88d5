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

// CheckWrites writes a value of one of these sizes, in bytes. After a full disk it writes the large one, for which
// PostgreSQL must add pages to the table.
const probeSmall, probeLarge = 32, 64 << 10

// writes holds results of changes.
type writes struct {
	last atomic.Pointer[metastore.Seen]
	full atomic.Bool // the last change found the disk full
	// noStandby is when a change last waited for a standby without success; nil if a standby follows.
	noStandby atomic.Pointer[time.Time]
}

// recordWrite stores the result of a change. It ignores errors that say nothing about the store, like a missing key.
func (s *Store) recordWrite(began time.Time, err error) {
	if err != nil && s.writes.noStandby.Load() == nil && pgdb.Code(err) == "" && !pgdb.Unreachable(err) &&
		!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errFenced) && s.history.lost.Load() == nil {
		return
	}
	s.writes.full.Store(pgdb.DiskFull(err))
	s.writes.last.Store(&metastore.Seen{At: time.Now(), Took: time.Since(began), Err: err})
}

// LastWrite returns the result of the last change of a key.
func (s *Store) LastWrite() (metastore.Seen, bool) {
	if seen := s.writes.last.Load(); seen != nil {
		return *seen, true
	}
	return metastore.Seen{}, false
}

// LastRead returns the result of the last query of any kind.
func (s *Store) LastRead() (metastore.Seen, bool) {
	at, took, err := s.db.Last()
	return metastore.Seen{At: at, Took: took, Err: err}, !at.IsZero()
}

// CheckWrites returns an error if keys cannot be changed. It checks that no changes are missing, and commits a small
// change. The commit needs a primary that is not read-only, room on its disk, and its synchronous standbys.
func (s *Store) CheckWrites(ctx context.Context) error {
	const op = "metastore/postgres.CheckWrites"
	if err := s.checkComplete(op, ""); err != nil {
		return err
	}
	standbys, err := s.db.Standbys(ctx, op)
	if err == nil && standbys.Waiting {
		err = s.noStandby(op, "", standbys)
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
	if errors.Is(err, context.DeadlineExceeded) && standbys.Names != "" {
		err = fmt.Errorf("%w; commits wait for a standby (synchronous_standby_names is %q), and %d standbys follow: "+
			"make the named standbys follow (see pg_stat_replication)", err, standbys.Names, standbys.Following)
	}
	return err
}
