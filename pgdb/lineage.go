package pgdb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"claviger"
)

// A server that was replaced by its standby may start again and accept writes, if nothing fences it off. Its timeline,
// which grows with each promotion, is lower than the timeline of the new primary. So this package queries the timeline
// of each new connection, and the timelines of all hosts of the URI regularly. It does not use a server whose timeline
// is lower than the highest that it has seen in the server's system, also not for reads.

const (
	// surveyInterval is the time between two queries of all hosts of a URI.
	surveyInterval = 10 * time.Second
	// surveyTimeout limits one of these queries.
	surveyTimeout = 3 * time.Second
)

// lineageQuery returns whether a server is a standby, whether it is read-only, its system identifier, and the timeline
// at which it writes; 0 for a standby.
const lineageQuery = `SELECT pg_is_in_recovery()::text, current_setting('transaction_read_only'),
	(SELECT system_identifier FROM pg_control_system())::text,
	CASE WHEN pg_is_in_recovery() THEN '00000000' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END`

// Newest is the server with the highest timeline that was seen in its system.
type Newest struct {
	Host     string `json:"host"`
	Timeline uint64 `json:"timeline"`
}

// Newest returns the newest server of each system, by the system identifier.
func (d *DB) Newest() map[string]Newest {
	d.lineage.mu.Lock()
	defer d.lineage.mu.Unlock()
	all := make(map[string]Newest, len(d.lineage.newest))
	for system, s := range d.lineage.newest {
		all[system] = Newest{s.host, s.timeline}
	}
	return all
}

// load restores the servers that an earlier process has seen.
func (l *lineage) load(all map[string]Newest) {
	l.newest = make(map[string]server, len(all))
	for system, n := range all {
		l.newest[system] = server{host: n.Host, system: system, timeline: n.Timeline}
	}
}

// server is the result of lineageQuery on one host.
type server struct {
	host     string
	standby  bool
	readOnly bool
	system   string
	timeline uint64
}

func (s server) writable() bool { return !s.standby && !s.readOnly }

// lineage remembers the newest servers, and finds out which servers may be used.
type lineage struct {
	mu sync.Mutex
	// newest is the server with the highest timeline of each system.
	newest map[string]server
	// fault is the fault that the last survey found, for Lineage; nil if there was none.
	fault error
	// forget says how an operator can make the node accept a server that was replaced.
	forget string
	// split is the error if hosts of different systems accept writes; nil otherwise.
	split error
}

// errLeftBehind marks a server that was replaced by its standby.
var errLeftBehind = errors.New("a server that was replaced by its standby still takes writes")

// errStandby is the error for a server that only follows another server.
var errStandby = errors.New("the server is a standby and takes no writes")

// check returns an error if a server was replaced, and records a promotion. grown is true if the timeline of a known
// system is higher than before.
func (l *lineage) check(s server) (grown bool, err error) {
	if s.standby {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	newest, known := l.newest[s.system]
	switch {
	case known && s.timeline < newest.timeline:
		return false, l.leftBehind(s, newest)
	case known && s.timeline == newest.timeline:
		return false, nil
	}
	l.newest[s.system] = s
	return known, nil
}

func (l *lineage) leftBehind(s, newest server) error {
	return fmt.Errorf("%w: %s is at timeline %d, and %s was seen at timeline %d; it is not used: fence it off and "+
		"make it a standby of the other server; if it is the right primary, stop the other server and %s",
		errLeftBehind, s.host, s.timeline, newest.host, newest.timeline, l.forget)
}

// validate returns a function that checks each new connection before its first use. If primary is true, the server must
// accept writes.
func (d *DB) validate(next pgconn.ValidateConnectFunc, primary bool) pgconn.ValidateConnectFunc {
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if next != nil {
			if err := next(ctx, conn); err != nil {
				return err
			}
		}
		s, err := queryServer(ctx, conn)
		if err != nil {
			return err
		}
		if primary && s.standby {
			return errStandby
		}
		grown, err := d.lineage.check(s)
		if err == nil && primary && s.readOnly {
			// Another host may accept writes. If none does, this connection is used, and serves reads.
			err = &pgconn.NotPreferredError{}
		}
		if grown {
			d.cfg.Log.Warn("the database was taken over by another server, or restored", "what", d.cfg.What, "database",
				d.uri, "host", s.host, "timeline", s.timeline)
		}
		return err
	}
}

func queryServer(ctx context.Context, conn *pgconn.PgConn) (server, error) {
	s := server{host: conn.Conn().RemoteAddr().String()}
	results, err := conn.Exec(ctx, lineageQuery).ReadAll()
	if err != nil {
		return s, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 4 {
		return s, errors.New("the server does not report its timeline")
	}
	row := results[0].Rows[0]
	s.standby, s.readOnly, s.system = string(row[0]) == "true", string(row[1]) == "on", string(row[2])
	s.timeline, err = strconv.ParseUint(string(row[3]), 16, 32)
	return s, err
}

// hosts returns one configuration for each host of the URI.
func (d *DB) hosts() []*pgconn.Config {
	all := d.Conn().Config
	type address struct {
		host string
		port uint16
	}
	var seen []address
	var list []*pgconn.Config
	add := func(f pgconn.FallbackConfig) {
		a := address{f.Host, f.Port}
		if slices.Contains(seen, a) { // with sslmode=prefer each host occurs twice
			return
		}
		seen = append(seen, a)
		one := all.Copy()
		one.Host, one.Port, one.TLSConfig, one.Fallbacks, one.ValidateConnect = f.Host, f.Port, f.TLSConfig, nil, nil
		one.ConnectTimeout = surveyTimeout
		list = append(list, one)
	}
	add(pgconn.FallbackConfig{Host: all.Host, Port: all.Port, TLSConfig: all.TLSConfig})
	for _, f := range all.Fallbacks {
		add(*f)
	}
	return list
}

// survey queries all hosts of a URI that names several hosts, and records the newest server.
func (d *DB) survey(ctx context.Context) {
	hosts := d.hosts()
	found := make([]*server, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
			defer cancel()
			conn, err := pgconn.ConnectConfig(ctx, h)
			if err != nil {
				return // a host that does not answer is not a fault here
			}
			defer func() { _ = conn.Close(ctx) }() // an error does not matter
			s, err := queryServer(ctx, conn)
			if err != nil {
				return
			}
			s.host = net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port)))
			found[i] = &s
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	var servers []server
	grown := false
	for _, s := range found {
		if s == nil || !s.writable() {
			continue
		}
		g, _ := d.lineage.check(*s) // compare finds the replaced servers
		grown = grown || g
		servers = append(servers, *s)
	}
	if d.lineage.compare(servers) {
		d.cfg.Log.Error("more than one host of the database accepts writes", "what", d.cfg.What, "database", d.uri,
			"error", d.lineage.lastFault())
	}
	if grown {
		d.pool.Reset() // the pool may have connections to the server that was replaced
	}
}

// compare compares the servers that accept writes. changed is true if it finds a fault that the last survey did not.
func (l *lineage) compare(servers []server) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.fault
	l.fault, l.split = nil, nil
	for i, s := range servers {
		if newest := l.newest[s.system]; s.timeline < newest.timeline {
			l.fault = l.leftBehind(s, newest)
		}
		for _, other := range servers[:i] {
			if s.system != other.system {
				l.split = fmt.Errorf("%s and %s both accept writes, but are different systems (%s and %s): a change "+
					"made at one is missing at the other; name in the URI only the primary and its standbys",
					other.host, s.host, other.system, s.system)
				l.fault = l.split
			}
		}
	}
	return l.fault != nil && (last == nil || last.Error() != l.fault.Error())
}

func (l *lineage) lastFault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// Lineage returns an error if a server that was replaced still accepts writes, or if hosts of different systems accept
// writes.
func (d *DB) Lineage() error {
	if err := d.lineage.lastFault(); err != nil {
		return claviger.Errorf("pgdb.Lineage", claviger.Unavailable, "", "%s %s (%s): %w", d.cfg.What, d.uri,
			d.cfg.Where, err)
	}
	return nil
}

// requireOneSystem returns an error for a change while hosts of different systems accept writes.
func (d *DB) requireOneSystem(op, key string) error {
	d.lineage.mu.Lock()
	err := d.lineage.split
	d.lineage.mu.Unlock()
	if err == nil {
		return nil
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "%s %s (%s): %w; nothing was changed", d.cfg.What, d.uri,
		d.cfg.Where, err)
}

// watchHosts surveys the hosts regularly until ctx ends.
func (d *DB) watchHosts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(Jitter(surveyInterval)):
		}
		d.survey(ctx)
	}
}

// Standbys are the standbys of a server. They keep a commit if the server is lost.
type Standbys struct {
	Names     string // synchronous_standby_names: a commit waits for one of these; "" for none
	Following int    // number of standbys that follow the server
	// Waiting is true if no standby follows that a commit must wait for, so that commits cannot end.
	Waiting bool
}

func (s Standbys) String() string {
	return fmt.Sprintf("a commit waits for a standby (synchronous_standby_names is %q), and of %d standbys that "+
		"follow none is one of these", s.Names, s.Following)
}

// Standbys queries the standbys. A role without pg_read_all_stats cannot see which of them are synchronous; then each
// counts as synchronous.
func (d *DB) Standbys(ctx context.Context, op string) (s Standbys, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		var synchronous int
		var local bool
		err := d.pool.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names'),
			current_setting('synchronous_commit') IN ('local', 'off'), (SELECT count(*) FROM pg_stat_replication),
			(SELECT count(*) FROM pg_stat_replication WHERE coalesce(sync_state, '') <> 'async')`).
			Scan(&s.Names, &local, &s.Following, &synchronous)
		s.Names = strings.TrimSpace(s.Names)
		s.Waiting = s.Names != "" && !local && synchronous == 0
		return err
	})
	return s, err
}

// Written returns the position up to which the server has flushed its log. Every commit before the call has a lower
// position. The position of the next record would be wrong: at the beginning of a page it is after the page's header,
// so no standby reports it before there is another record.
func (d *DB) Written(ctx context.Context, op string) (lsn string, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		return d.pool.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&lsn)
	})
	return lsn, err
}

// StandbysBehind returns the number of following standbys that have not written the server's log up to lsn. A standby
// that has just connected, and has not reported its position yet, counts. A role without pg_read_all_stats sees neither
// states nor positions; then the result is 0.
func (d *DB) StandbysBehind(ctx context.Context, op, lsn string) (n int, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		// A base backup is in another state. pg_receivewal reports what it has written, but not what it has flushed.
		return d.pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_replication WHERE flush_lsn < $1::pg_lsn
			OR write_lsn IS NULL AND state IN ('startup', 'catchup', 'streaming')`, lsn).Scan(&n)
	})
	return n, err
}

// Hosts returns the number of hosts in the URI.
func (d *DB) Hosts() int { return len(d.hosts()) }
