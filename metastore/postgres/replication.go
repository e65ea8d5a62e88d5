package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/pgdb"
)

const (
	// standbyTimeout is how long a change waits until a standby follows. After a change has waited without success, the
	// changes of the next noStandbyTTL do not wait.
	standbyTimeout = 5 * time.Second
	noStandbyTTL   = time.Minute
)

// Replication returns an error if acknowledged changes may get lost in a failover: commits wait for no standby, or more
// than one host of the URI is a primary.
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
		return s.noStandby(op, "", standbys)
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
		"metastore %s (property %s): %s, and synchronous_standby_names is empty, so a commit waits for no standby: if "+
			"a standby that is behind takes over, acknowledged keys and versions are lost; set "+
			"synchronous_standby_names on every server, see docs/nodes/failures.md",
		s.db.URI(), s.cfg.Property, what)
}

// Servers returns the timeline of each PostgreSQL system (see its system identifier) that this process has used. A
// promotion, and a recovery to an earlier time, begin a new timeline. Each new connection reads the timeline before its
// first use.
func (s *Store) Servers() string {
	var list []string
	for system, newest := range s.db.Newest() {
		list = append(list, fmt.Sprintf("%s/%d", system, newest.Timeline))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// followInterval is the time between two queries of the standbys' positions.
const followInterval = 20 * time.Millisecond

// WaitForStandbys implements metastore.Replicated. It waits until the standbys have written the changes to disk,
// because a standby replays everything that it has written before it is promoted. Only a role with pg_read_all_stats
// can see the positions of standbys.
func (s *Store) WaitForStandbys(ctx context.Context) error {
	const op = "metastore/postgres.WaitForStandbys"
	upTo, err := s.db.Written(ctx, op)
	for err == nil {
		var behind int
		if behind, err = s.db.StandbysBehind(ctx, op, upTo); err != nil || behind == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return claviger.Errorf(op, claviger.Unavailable, "",
				"%d standbys of metastore %s (property %s) lack the newest changes: %w", behind, s.db.URI(),
				s.cfg.Property, ctx.Err())
		case <-time.After(pgdb.Jitter(followInterval)):
		}
	}
	return err
}

// noStandby returns the error for a server whose commits wait for a standby that does not follow.
func (s *Store) noStandby(op, key string, standbys pgdb.Standbys) error {
	return claviger.Errorf(op, claviger.Unavailable, key,
		"metastore %s (property %s): %v, so no change of a key can be acknowledged; nothing was changed; bring a "+
			"standby back (after a failover: make the old primary a standby), or remove the missing standbys from "+
			"synchronous_standby_names and reload the server's configuration, see docs/nodes/failures.md",
		s.db.URI(), s.cfg.Property, standbys)
}

// requireStandby returns an error if a commit could not be acknowledged because no standby follows. First it waits for
// some seconds, because a standby that is restarted comes back in this time. Without this check, each change would wait
// for CallTimeout, and its result would be unknown.
func (s *Store) requireStandby(ctx context.Context, op, key string) error {
	timeout := cmp.Or(s.cfg.RetryTimeout, standbyTimeout)
	if last := s.writes.noStandby.Load(); last != nil && time.Since(*last) < noStandbyTTL {
		timeout = 0
	}
	for began := time.Now(); ; {
		standbys, err := s.db.Standbys(ctx, op)
		if err != nil {
			return err
		}
		if !standbys.Waiting {
			s.writes.noStandby.Store(nil)
			return nil
		}
		if time.Since(began) >= timeout {
			now := time.Now()
			s.writes.noStandby.Store(&now)
			return s.noStandby(op, key, standbys)
		}
		select {
		case <-ctx.Done():
			return s.noStandby(op, key, standbys)
		case <-time.After(pgdb.Jitter(250 * time.Millisecond)):
		}
	}
}
