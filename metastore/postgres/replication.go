package postgres

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"claviger"
	"claviger/pgdb"
)

const (
	// standbyPatience is how long a change waits for a standby to follow, and unfollowedHolds
	// how long one that waited in vain spares the next ones that wait.
	standbyPatience = 5 * time.Second
	unfollowedHolds = time.Minute
)

// Replication tells what puts acknowledged changes at risk where PostgreSQL has
// standbys: commits that wait for none of them, and hosts that do not agree on which of
// them is the primary.
func (s *Store) Replication(ctx context.Context) error {
	const op = "metastore/postgres.Replication"
	if err := s.db.Lineage(); err != nil {
		return err
	}
	standbys, err := s.db.Standbys(ctx, op)
	if err != nil {
		return err
	}
	if standbys.Waiting {
		return s.unfollowed(op, "", standbys)
	}
	hosts := s.db.Hosts()
	if standbys.Names != "" || standbys.Following == 0 && hosts == 1 {
		return nil
	}
	what := fmt.Sprintf("%d standbys follow its server", standbys.Following)
	if standbys.Following == 0 {
		what = fmt.Sprintf("its URI names %d hosts", hosts)
	}
	return claviger.Errorf(op, claviger.Unavailable, "",
		"metastore %s (property %s): %s, and synchronous_standby_names is empty: a commit waits for none of them, "+
			"so that keys and versions which were acknowledged are lost where a standby that is behind takes over; "+
			"set synchronous_standby_names on every server, see docs/nodes.md",
		s.db.URI(), s.cfg.Property, what)
}

// followPause lies between two looks at how far the standbys are.
const followPause = 20 * time.Millisecond

// Followed is metastore.Replicated. A standby that is promoted replays all that it has written,
// so that is what counts. Only a role with pg_read_all_stats is told.
func (s *Store) Followed(ctx context.Context) error {
	const op = "metastore/postgres.Followed"
	upTo, err := s.db.Written(ctx, op)
	for err == nil {
		var behind int
		if behind, err = s.db.Behind(ctx, op, upTo); err != nil || behind == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return claviger.Errorf(op, claviger.Unavailable, "",
				"%d standbys of metastore %s (property %s) lack the newest: %w", behind, s.db.URI(), s.cfg.Property,
				ctx.Err())
		case <-time.After(pgdb.Jitter(followPause)):
		}
	}
	return err
}

// unfollowed is the error of a server whose commits wait for a standby that is not there.
func (s *Store) unfollowed(op, key string, standbys pgdb.Standbys) error {
	return claviger.Errorf(op, claviger.Unavailable, key,
		"metastore %s (property %s): %v, so no change of a key can be acknowledged; nothing was changed; bring a "+
			"standby back (after a failover: make the old primary a standby), or take what is gone out of "+
			"synchronous_standby_names and reload the server's configuration, see docs/nodes.md",
		s.db.URI(), s.cfg.Property, standbys)
}

// accompanied refuses a change whose commit could not be acknowledged, after a moment in
// which a standby that is restarted comes back. Without it each change would wait for
// CallTimeout, and nobody could say what became of it.
func (s *Store) accompanied(ctx context.Context, op, key string) error {
	patience := cmp.Or(s.cfg.Patience, standbyPatience)
	if last := s.writes.unfollowed.Load(); last != nil && time.Since(*last) < unfollowedHolds {
		patience = 0
	}
	for began := time.Now(); ; {
		standbys, err := s.db.Standbys(ctx, op)
		if err != nil {
			return err
		}
		if !standbys.Waiting {
			s.writes.unfollowed.Store(nil)
			return nil
		}
		if time.Since(began) >= patience {
			now := time.Now()
			s.writes.unfollowed.Store(&now)
			return s.unfollowed(op, key, standbys)
		}
		select {
		case <-ctx.Done():
			return s.unfollowed(op, key, standbys)
		case <-time.After(pgdb.Jitter(250 * time.Millisecond)):
		}
	}
}
