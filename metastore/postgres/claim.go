package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/owner"
	"claviger/pgdb"
)

// claimLock is the advisory lock of the claims. A claim takes it in shared mode, or in exclusive mode if alone is true.
var claimLock = lockID("claim")

// claimPrefix begins the application name of a claim's session. PostgreSQL keeps 63 bytes of the name, and shows it in
// pg_stat_activity.
const claimPrefix = "claviger claim "

// Claim claims the store, see metastore.Claims.
func (s *Store) Claim(ctx context.Context, o owner.Owner, alone bool) (release func(), err error) {
	const op = "metastore/postgres.Claim"
	if err := s.db.Usable(op); err != nil {
		return nil, err
	}
	var conn *pgx.Conn
	var ok bool
	err = s.db.Retry(ctx, func(ctx context.Context) (err error) {
		conn, ok, err = s.claim(ctx, o, alone)
		return err
	})
	if err != nil {
		return nil, s.db.Fail(op, "", fmt.Errorf("claim: %w", err))
	}
	if !ok {
		owners, err := s.Owners(ctx)
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %w",
			errors.Join(&owner.InUseError{Store: s.db.URI(), Owners: owners}, err))
	}
	if alone {
		s.exclusive.Store(true)
	}
	keeping, stop := context.WithCancel(s.alive)
	done := make(chan struct{})
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		defer close(done)
		s.keepClaim(keeping, conn, o, alone)
	}()
	return func() {
		if alone {
			s.exclusive.Store(false)
		}
		stop()
		<-done
	}, nil
}

// claim opens a session and takes the lock. ok is false if another process's lock prevents that.
func (s *Store) claim(ctx context.Context, o owner.Owner, alone bool) (conn *pgx.Conn, ok bool, err error) {
	cfg := s.db.Conn()
	cfg.RuntimeParams["application_name"] = claimName(o)
	if conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, false, err
	}
	query := `SELECT pg_try_advisory_lock_shared($1)`
	if alone {
		query = `SELECT pg_try_advisory_lock($1)`
	}
	if err := conn.QueryRow(ctx, query, claimLock).Scan(&ok); err != nil || !ok {
		closeConn(conn)
		return nil, false, err
	}
	return conn, true, nil
}

// keepClaim holds a claim until ctx ends. If the session is lost, keepClaim opens another one.
func (s *Store) keepClaim(ctx context.Context, conn *pgx.Conn, o owner.Owner, alone bool) {
	for {
		select {
		case <-ctx.Done():
			if conn != nil {
				end, cancel := context.WithTimeout(context.Background(), pgdb.ConnectTimeout)
				_, _ = conn.Exec(end, `SELECT pg_advisory_unlock_all()`) // a lost session has no lock
				cancel()
				closeConn(conn)
			}
			return
		case <-time.After(pgdb.Jitter(s.cfg.LockCheck)):
		}
		check, cancel := context.WithTimeout(ctx, 2*s.cfg.LockCheck)
		if conn != nil {
			if err := conn.Ping(check); err != nil && ctx.Err() == nil {
				closeConn(conn)
				conn = nil
			}
		}
		if conn == nil {
			next, ok, err := s.claim(check, o, alone)
			if ok {
				conn = next
			} else if err == nil {
				s.log.Warn("this process has lost its claim on the metastore, and cannot claim it again: another "+
					"process allows no other claims", "metastore", s.db.URI())
			}
		}
		cancel()
	}
}

// claimName returns "claviger claim PID WHAT#ID@HOST", cut off at PostgreSQL's limit. The ID is before the host, so it
// is always complete.
func claimName(o owner.Owner) string {
	what := strings.TrimPrefix(o.What, "claviger ")
	name := claimPrefix + strconv.Itoa(o.PID) + " " + what + "#" + o.ID + "@" + o.Host
	return name[:min(len(name), 63)]
}

// Owners returns the processes that have a claim. For a process of another database user, Since is the current time,
// unless this user may read all of pg_stat_activity.
func (s *Store) Owners(ctx context.Context) (all []owner.Owner, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Owners", "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx, `
			SELECT coalesce(a.application_name, ''), coalesce(host(a.client_addr), ''), coalesce(a.backend_start, now())
			FROM pg_locks l JOIN pg_database d ON d.oid = l.database LEFT JOIN pg_stat_activity a ON a.pid = l.pid
			WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND d.datname = current_database()
				AND (l.classid::bigint << 32 | l.objid::bigint) = $1
			ORDER BY 3, 1`, claimLock)
		all, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (owner.Owner, error) {
			var name, addr string
			var since time.Time
			err := r.Scan(&name, &addr, &since)
			return parseClaim(name, addr, since), err
		})
		return err
	})
	return all, err
}

func parseClaim(name, addr string, since time.Time) owner.Owner {
	o := owner.Owner{What: "claviger", Host: addr, Since: since.UTC()}
	rest, isClaim := strings.CutPrefix(name, claimPrefix)
	pid, what, ok := strings.Cut(rest, " ")
	if !isClaim || !ok {
		return o
	}
	o.PID, _ = strconv.Atoi(pid) // 0 if it is not a number
	what, host, _ := strings.Cut(what, "@")
	what, o.ID, _ = strings.Cut(what, "#")
	o.What = "claviger " + what
	if host != "" {
		o.Host = host
	}
	return o
}
