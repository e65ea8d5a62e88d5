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

// A server that was replaced by its standby may come back and take writes, because nothing has
// fenced it off. Its timeline, which grows with each promotion, is lower than the timeline of the
// new primary. So each new connection is asked for its timeline, and all hosts of the URI are asked
// regularly. A server with a lower timeline than the highest one seen in its system is not used,
// for reads neither.

const (
	// surveyEvery is how often all hosts of a URI are asked.
	surveyEvery = 10 * time.Second
	// surveyTimeout bounds one of these requests.
	surveyTimeout = 3 * time.Second
)

// askLineage returns whether a server is a standby, whether it takes writes, its system, and the
// timeline at which it writes; 0 for a standby.
const askLineage = `SELECT pg_is_in_recovery()::text, current_setting('transaction_read_only'), (SELECT system_identifier FROM pg_control_system())::text,
	CASE WHEN pg_is_in_recovery() THEN '00000000' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END`

// Newest is the server with the highest timeline of its system that was seen.
type Newest struct {
	Host     string `json:"host"`
	Timeline uint64 `json:"timeline"`
}

// Newest returns the newest server of each system, sorted by system.
func (d *DB) Newest() map[string]Newest {
	d.lineage.mu.Lock()
	defer d.lineage.mu.Unlock()
	all := make(map[string]Newest, len(d.lineage.newest))
	for system, s := range d.lineage.newest {
		all[system] = Newest{s.host, s.timeline}
	}
	return all
}

// recall restores what an earlier process found.
func (l *lineage) recall(all map[string]Newest) {
	l.newest = make(map[string]server, len(all))
	for system, n := range all {
		l.newest[system] = server{host: n.Host, system: system, timeline: n.Timeline}
	}
}

// server is one host's answer.
type server struct {
	host     string
	standby  bool
	readOnly bool
	system   string
	timeline uint64
}

func (s server) writable() bool { return !s.standby && !s.readOnly }

// lineage remembers which servers may be used.
type lineage struct {
	mu sync.Mutex
	// newest is the server with the highest timeline of each system.
	newest map[string]server
	// trouble is what the last survey found wrong, for Lineage.
	trouble error
	// forget says how a node is made to accept a server that was replaced.
	forget string
	// split is true if hosts of different systems take writes.
	split error
}

// errLeftBehind marks a server that was replaced by its standby.
var errLeftBehind = errors.New("a server that was replaced by its standby still takes writes")

// errStandby refuses a server that only follows another one.
var errStandby = errors.New("the server is a standby and takes no writes")

// fit refuses a server that was replaced, and records a promotion. grown is true for a timeline
// that was not seen before.
func (l *lineage) fit(s server) (grown bool, err error) {
	if s.standby {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	was, known := l.newest[s.system]
	switch {
	case known && s.timeline < was.timeline:
		return false, l.leftBehind(s, was)
	case known && s.timeline == was.timeline:
		return false, nil
	}
	l.newest[s.system] = s
	return known, nil
}

func (l *lineage) leftBehind(s, newest server) error {
	return fmt.Errorf("%w: %s is at timeline %d, and %s was seen at timeline %d; it is not used: fence it off and "+
		"make it a standby of the other; if it is the right one, take the other away and %s", errLeftBehind, s.host,
		s.timeline, newest.host, newest.timeline, l.forget)
}

// validate checks each new connection before its first use. If primary is true, the server must
// take writes.
func (d *DB) validate(next pgconn.ValidateConnectFunc, primary bool) pgconn.ValidateConnectFunc {
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if next != nil {
			if err := next(ctx, conn); err != nil {
				return err
			}
		}
		s, err := askServer(ctx, conn)
		if err != nil {
			return err
		}
		if primary && s.standby {
			return errStandby
		}
		grown, err := d.lineage.fit(s)
		if err == nil && primary && s.readOnly {
			// Of several hosts another may take writes; until then reads are answered.
			err = &pgconn.NotPreferredError{}
		}
		if grown {
			d.cfg.Log.Warn("the database was taken over by another server, or restored", "what", d.cfg.What, "database",
				d.uri, "host", s.host, "timeline", s.timeline)
		}
		return err
	}
}

func askServer(ctx context.Context, conn *pgconn.PgConn) (server, error) {
	s := server{host: conn.Conn().RemoteAddr().String()}
	results, err := conn.Exec(ctx, askLineage).ReadAll()
	if err != nil {
		return s, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 4 {
		return s, errors.New("the server does not tell its timeline")
	}
	row := results[0].Rows[0]
	s.standby, s.readOnly, s.system = string(row[0]) == "true", string(row[1]) == "on", string(row[2])
	s.timeline, err = strconv.ParseUint(string(row[3]), 16, 32)
	return s, err
}

// hosts returns one configuration for each host of the URI.
func (d *DB) hosts() []*pgconn.Config {
	all := d.Conn().Config
	type place struct {
		host string
		port uint16
	}
	var seen []place
	var list []*pgconn.Config
	add := func(f pgconn.FallbackConfig) {
		at := place{f.Host, f.Port}
		if slices.Contains(seen, at) { // sslmode=prefer names each host twice
			return
		}
		seen = append(seen, at)
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

// survey asks all hosts of a URI that names several, and records the newest.
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
				return // a host that does not answer is no trouble here
			}
			defer func() { _ = conn.Close(ctx) }() // the answer was read, or there is none
			s, err := askServer(ctx, conn)
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
		g, _ := d.lineage.fit(*s) // replaced servers are found below
		grown = grown || g
		servers = append(servers, *s)
	}
	if d.lineage.judge(servers) {
		d.cfg.Log.Error("the hosts of the database do not agree on which of them is the primary", "what", d.cfg.What,
			"database", d.uri, "error", d.lineage.told())
	}
	if grown {
		d.pool.Reset() // it may have connections to the server that was replaced
	}
}

// judge compares the servers that take writes. changed is true for new trouble.
func (l *lineage) judge(servers []server) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.trouble
	l.trouble, l.split = nil, nil
	for i, s := range servers {
		if newest := l.newest[s.system]; s.timeline < newest.timeline {
			l.trouble = l.leftBehind(s, newest)
		}
		for _, other := range servers[:i] {
			if s.system != other.system {
				l.split = fmt.Errorf("%s and %s both take writes, and are two systems (%s and %s): a change made at "+
					"one is missing at the other; name in the URI only the primary and its standbys", other.host,
					s.host, other.system, s.system)
				l.trouble = l.split
			}
		}
	}
	return l.trouble != nil && (was == nil || was.Error() != l.trouble.Error())
}

func (l *lineage) told() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// Lineage is an error if the hosts of the URI do not belong together: a server that was replaced
// takes writes, or two systems do.
func (d *DB) Lineage() error {
	if err := d.lineage.told(); err != nil {
		return claviger.Errorf("pgdb.Lineage", claviger.Unavailable, "", "%s %s (%s): %w", d.cfg.What, d.uri,
			d.cfg.Where, err)
	}
	return nil
}

// oneSystem refuses changes while the hosts of the URI are two systems.
func (d *DB) oneSystem(op, key string) error {
	d.lineage.mu.Lock()
	err := d.lineage.split
	d.lineage.mu.Unlock()
	if err == nil {
		return nil
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "%s %s (%s): %w; nothing was changed", d.cfg.What, d.uri,
		d.cfg.Where, err)
}

// watchHosts surveys the hosts regularly until ctx ends, if there are several.
func (d *DB) watchHosts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(Jitter(surveyEvery)):
		}
		d.survey(ctx)
	}
}

// Standbys are the servers that keep a commit if its server is lost.
type Standbys struct {
	Names     string // synchronous_standby_names; a commit waits for one of them; "" for none
	Following int    // how many standbys follow the server
	// Waiting is true if a commit waits now and cannot end, because no standby follows that it may
	// wait for.
	Waiting bool
}

func (s Standbys) String() string {
	return fmt.Sprintf("a commit waits for a standby (synchronous_standby_names is %q), and of %d standbys that "+
		"follow none is one of these", s.Names, s.Following)
}

// Standbys asks the server. It does not tell a role without pg_read_all_stats which standbys are
// synchronous; then each may be.
func (d *DB) Standbys(ctx context.Context, op string) (s Standbys, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		var may int
		var local bool
		err := d.pool.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit') IN ('local', 'off'),
			(SELECT count(*) FROM pg_stat_replication), (SELECT count(*) FROM pg_stat_replication WHERE coalesce(sync_state, '') <> 'async')`).Scan(&s.Names, &local, &s.Following, &may)
		s.Names = strings.TrimSpace(s.Names)
		s.Waiting = s.Names != "" && !local && may == 0
		return err
	})
	return s, err
}

// Written is the end of the server's log. Every commit before the call lies before it.
func (d *DB) Written(ctx context.Context, op string) (lsn string, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		return d.pool.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&lsn)
	})
	return lsn, err
}

// Behind returns how many of the standbys that follow have not written the server's log up to lsn.
// To a role without pg_read_all_stats the server does not say how far they are; then Behind returns
// 0.
func (d *DB) Behind(ctx context.Context, op, lsn string) (n int, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		return d.pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_replication WHERE flush_lsn < $1::pg_lsn`,
			lsn).Scan(&n)
	})
	return n, err
}

// Hosts is the number of hosts in the URI.
func (d *DB) Hosts() int { return len(d.hosts()) }
