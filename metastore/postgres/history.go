package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
	"claviger/pgdb"
)

const (
	// pollInterval is the time between two reads of the newest changes. Notices report changes too, but may get lost.
	// pollTimeout limits one read.
	pollInterval = 2 * time.Second
	pollTimeout  = 2 * time.Second
	// recentChanges is the number of changes that one read returns. It is also the largest number of transactions that
	// are open at the same time.
	recentChanges = 64
	// keptChanges is the number of changes that the table keeps. The older ones are removed every pruneInterval.
	keptChanges   = 10_000
	pruneInterval = time.Hour
	// rememberedChanges is the number of changes that a node remembers, and that the database must have. One is not
	// enough, because transactions get their numbers in another order than they commit.
	rememberedChanges = 16
)

// settingAccepted is the setting with the time at which an operator gave up the changes that the store lacked.
const settingAccepted = "history.accepted"

// changeRecord is a row of the table change: one committed change of a key.
type changeRecord struct {
	Seq int64  `json:"seq"`
	ID  string `json:"id"`
	Key string `json:"key"`
	At  int64  `json:"at"` // milliseconds since 1970, by the server's clock
	// Change is the kind of change; "" if an older release has recorded it.
	Change string `json:"change,omitempty"`
}

// history holds the committed changes that a node has seen.
type history struct {
	mu     sync.Mutex
	known  map[int64]string // the ids of recent changes that Watch has reported, by number
	newest int64            // the highest number in known
	seen   []changeRecord   // the newest changes, oldest first; the database must have each of them
	loaded bool             // catchUp has read the changes before Watch began

	lost   atomic.Pointer[lostChanges]
	polled atomic.Int64 // when the last successful read of the changes began, in nanoseconds since start
}

// lostChanges are the acknowledged changes that the store lacks.
type lostChanges struct {
	changes []changeRecord
}

// changeTx is a transaction that changes a key, and the change that it has recorded.
type changeTx struct {
	pgx.Tx
	store    *Store
	recorded *changeRecord
}

// update runs f, which changes a key, in one transaction, and remembers the change after the commit. It changes nothing
// if the store lacks acknowledged changes.
func (s *Store) update(ctx context.Context, op, key string, level pgx.TxIsoLevel,
	f func(context.Context, pgx.Tx) error) error {
	var recorded changeRecord
	began := time.Now()
	// An operator may have restored an older dump since the last check, while the connections stayed open. The check
	// runs before the transaction: if serializable transactions read this table, they would conflict with each other.
	err := s.db.Read(ctx, op, key, func(ctx context.Context) error {
		_, err := s.compare(ctx, s.db.Pool())
		return err
	})
	if err == nil {
		err = s.requireStandby(ctx, op, key)
	}
	if err != nil {
		s.recordWrite(began, err)
		return err
	}
	err = s.db.Update(ctx, op, key, level, func(ctx context.Context, tx pgx.Tx) error {
		recorded = changeRecord{}
		// checkComplete uses the result of compare above. insertChange checks the missing changes that other nodes have
		// reported.
		if err := s.checkComplete(op, key); err != nil {
			return err
		}
		if err := s.fence(ctx, tx, op, key); err != nil {
			return err
		}
		return f(ctx, &changeTx{tx, s, &recorded})
	})
	if err == nil && recorded.ID != "" {
		s.remember(recorded)
	}
	s.recordWrite(began, err)
	return err
}

// insertChange adds a change to the table, unless a node has reported a missing change. The commit of the transaction
// sends a notice to all nodes.
const insertChange = `
	WITH made AS (
		INSERT INTO change (id, key, change, at) SELECT $1, $2, $3, ` + clockMillis + `
		WHERE NOT EXISTS (SELECT FROM lost_change) RETURNING seq, at)
	SELECT made.seq, made.at, pg_notify($4, json_build_object('key', $5::text, 'change', $3::text,
		'mark', json_build_object('seq', made.seq, 'id', $1::text, 'key', $5::text, 'at', made.at, 'change',
			$3::text))::text) FROM made`

// record adds a change to the table.
func (t *changeTx) record(ctx context.Context, n metastore.Notice) error {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	m := changeRecord{ID: hex.EncodeToString(id), Key: n.Key, Change: string(n.Change)}
	noticeKey := n.Key
	if len(noticeKey) > maxNoticeKey {
		noticeKey = "" // any key
	}
	err := t.QueryRow(ctx, insertChange, m.ID, m.Key, string(n.Change), channel, noticeKey).Scan(&m.Seq, &m.At, nil)
	if errors.Is(err, pgx.ErrNoRows) {
		rows, _ := t.Query(ctx, selectLost) // the rows carry the error
		lost, err := pgx.CollectRows(rows, scanChange)
		if err != nil {
			return err
		}
		t.store.setLost(lost)
		return t.store.checkComplete("metastore/postgres.change", n.Key)
	}
	*t.recorded = m
	return err
}

const selectLost = `SELECT seq, id, key, at, change FROM lost_change ORDER BY at`

func scanChange(r pgx.CollectableRow) (m changeRecord, err error) {
	err = r.Scan(&m.Seq, &m.ID, &m.Key, &m.At, &m.Change)
	return m, err
}

// remember adds committed changes to the changes that the database must have.
func (s *Store) remember(changes ...changeRecord) {
	h := &s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range changes {
		if !slices.Contains(h.seen, m) {
			h.seen = append(h.seen, m)
		}
	}
	slices.SortFunc(h.seen, func(a, b changeRecord) int { return cmp.Compare(a.Seq, b.Seq) })
	if n := len(h.seen) - rememberedChanges; n > 0 {
		h.seen = slices.Delete(h.seen, 0, n)
	}
}

// isNew reports whether Watch has not reported the change yet, and records that it is reported now.
func (h *history) isNew(m changeRecord) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = map[int64]string{}
	}
	if h.known[m.Seq] == m.ID {
		return false
	}
	h.known[m.Seq] = m.ID
	h.newest = max(h.newest, m.Seq)
	if len(h.known) > 4*recentChanges {
		for seq := range h.known {
			if seq < h.newest-2*recentChanges {
				delete(h.known, seq)
			}
		}
	}
	return true
}

// connected checks that the database of a new connection has the changes that this node has seen. The server may be
// another one than before: a standby that was promoted, and that lacks the newest changes.
func (s *Store) connected(ctx context.Context, conn *pgx.Conn) error {
	missing, err := s.compare(ctx, conn)
	for _, m := range missing { // reports them to the other nodes at once; after an error, catchUp does it
		_, _ = conn.Exec(ctx, insertLost, pgx.QueryExecModeExec, m.ID, m.Seq, m.Key, m.At, millis(now()), m.Change,
			settingAccepted)
	}
	return err
}

// rowQuerier is a connection or a pool.
type rowQuerier interface {
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
}

// compare checks that the database has each change that this node has seen. It returns the changes that are missing,
// and that no operator has given up.
func (s *Store) compare(ctx context.Context, q rowQuerier) (missing []changeRecord, err error) {
	h := &s.history
	h.mu.Lock()
	seen := slices.Clone(h.seen)
	h.mu.Unlock()
	if len(seen) == 0 {
		return nil, nil
	}
	numbers := make([]int64, len(seen))
	for i, m := range seen {
		numbers[i] = m.Seq
	}
	var present []string
	var oldest int64 // in the table, which does not keep all changes
	var until string
	err = q.QueryRow(ctx, `SELECT ARRAY(SELECT id FROM change WHERE seq = ANY($1)), (SELECT coalesce(min(seq), 0)
		FROM change), coalesce((SELECT value FROM setting WHERE name = $2), '0')`,
		pgx.QueryExecModeExec, numbers, settingAccepted).Scan(&present, &oldest, &until)
	if err != nil && pgdb.Code(err) != pgdb.UndefinedTable { // without the table, the database lacks all changes
		return nil, err
	}
	accepted, _ := strconv.ParseInt(until, 10, 64) // only Accept writes it
	var givenUp []changeRecord
	for _, m := range seen {
		switch {
		case slices.Contains(present, m.ID):
		case m.At <= accepted:
			givenUp = append(givenUp, m)
		case oldest == 0 || m.Seq >= oldest:
			missing = append(missing, m)
		}
	}
	// This node saw the changes that were given up before it was restarted. The server may give their numbers to other
	// changes.
	if len(givenUp) > 0 {
		h.mu.Lock()
		h.seen = slices.DeleteFunc(h.seen, func(m changeRecord) bool { return slices.Contains(givenUp, m) })
		h.mu.Unlock()
	}
	if len(missing) > 0 {
		s.setLost(missing)
	}
	return missing, nil
}

// insertLost reports a missing change to the other nodes, unless an operator has given it up meanwhile.
const insertLost = `INSERT INTO lost_change (id, seq, key, at, told, change) SELECT $1, $2, $3, $4, $5, $6
	WHERE $4 > coalesce((SELECT value::bigint FROM setting WHERE name = $7), 0) ON CONFLICT DO NOTHING`

// setLost makes this node refuse all changes. missing are the acknowledged changes that the store lacks.
func (s *Store) setLost(missing []changeRecord) {
	if !s.history.lost.CompareAndSwap(nil, &lostChanges{missing}) {
		return
	}
	s.log.Error("the metastore lacks changes that were acknowledged; this node changes no key until they are back or "+
		"given up", "error", s.checkComplete("metastore/postgres.history", ""))
}

// checkComplete returns an error if the store is known to lack acknowledged changes.
func (s *Store) checkComplete(op, key string) error {
	lost := s.history.lost.Load()
	if lost == nil {
		return nil
	}
	var keys []string
	for _, m := range lost.changes {
		if !slices.Contains(keys, m.Key) {
			keys = append(keys, m.Key)
		}
	}
	const maxKeys = 10
	more := ""
	if n := len(keys) - maxKeys; n > 0 {
		keys, more = keys[:maxKeys], fmt.Sprintf(" and %d more", n)
	}
	newest := lost.changes[len(lost.changes)-1]
	return claviger.Errorf(op, claviger.Unavailable, key,
		"metastore %s (property %s) lacks changes that were acknowledged, the newest at %s, of the keys %q%s: its "+
			"server was replaced by a standby that was behind, or by an older copy; until this is solved, no key is "+
			"changed, and no key is reported as missing; bring back the server that has these changes; or give them "+
			"up with claviger metastore accept, and restore the records of keys from the HSM with claviger hsm adopt",
		s.db.URI(), s.cfg.Property, fromMillis(newest.At).Format(time.RFC3339), keys, more)
}

// notFound returns the error for something that the store does not have: err, or the error of checkComplete if the
// store is known to lack changes.
func (s *Store) notFound(ctx context.Context, op, key string, err error) error {
	if metastore.AllowsIncomplete(ctx) {
		return err
	}
	if lost := s.checkComplete(op, key); lost != nil {
		return lost
	}
	return err
}

// start is the base of history.polled.
var start = time.Now()

// NoticesUntil returns the time of the last read of the changes, see metastore.NoticeProgress.
func (s *Store) NoticesUntil() time.Time {
	at := s.history.polled.Load()
	if at == 0 {
		return time.Time{}
	}
	return start.Add(time.Duration(at))
}

// poll reads the newest changes regularly until ctx ends, and calls fn for those that no notice has reported.
func (s *Store) poll(ctx context.Context, fn func(metastore.Notice)) {
	var pruned time.Time
	for first := true; ; first = false {
		if !first {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pgdb.Jitter(pollInterval)):
			}
		}
		begun := time.Since(start)
		limited, cancel := context.WithTimeout(ctx, pollTimeout)
		err := s.catchUp(limited, fn)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // NoticesUntil stays as it is, so callers stop trusting their caches
		}
		s.history.polled.Store(max(1, int64(begun)))
		if time.Since(pruned) > pruneInterval {
			pruned = time.Now()
			// After an error, the next prune removes the rows.
			_ = s.execRepeatable(ctx, "metastore/postgres.poll", "",
				`DELETE FROM change WHERE seq < (SELECT max(seq) FROM change) - $1`, keptChanges)
		}
	}
}

// catchUp reads the newest changes once.
func (s *Store) catchUp(ctx context.Context, fn func(metastore.Notice)) error {
	const op = "metastore/postgres.catchUp"
	var recent, lost []changeRecord
	var accepted int64
	err := s.db.Read(ctx, op, "", func(ctx context.Context) (err error) {
		// the rows carry the error
		r, _ := s.db.Pool().Query(ctx, `SELECT seq, id, key, at, change FROM change ORDER BY seq DESC LIMIT $1`,
			recentChanges)
		if recent, err = pgx.CollectRows(r, scanChange); err != nil {
			return err
		}
		r, _ = s.db.Pool().Query(ctx, selectLost) // the rows carry the error
		if lost, err = pgx.CollectRows(r, scanChange); err != nil {
			return err
		}
		if err := s.db.Pool().QueryRow(ctx, `SELECT coalesce((SELECT value::bigint FROM setting WHERE name = $1), 0)`,
			settingAccepted).Scan(&accepted); err != nil {
			return err
		}
		_, err = s.compare(ctx, s.db.Pool()) // a dump may have been restored while the connections stayed open
		return err
	})
	if err != nil {
		return err
	}
	resumed, err := s.syncLost(ctx, lost, accepted)
	if err != nil {
		return err
	}
	if resumed {
		fn(metastore.Notice{Change: metastore.Invalidated})
	}
	h := &s.history
	h.mu.Lock()
	loaded := h.loaded
	h.loaded = true
	h.mu.Unlock()
	reported := 0
	for _, c := range slices.Backward(recent) {
		if !h.isNew(c) {
			continue
		}
		s.remember(c)
		if loaded { // no cache is older than the first read, so that read reports no changes
			fn(metastore.Notice{Key: c.Key, Change: metastore.Change(c.Change)})
			reported++
		}
	}
	if reported == recentChanges { // there may be more new changes, which were not read
		fn(metastore.Notice{Change: metastore.Invalidated})
	}
	return nil
}

// syncLost exchanges lost changes with the other nodes through the table lost_change: inTable are its rows. If the
// table has rows, this node begins to refuse changes. This node also adds the lost changes that it has found itself. It
// changes keys again after all lost changes are back, or after an operator has given them up. accepted is the time at
// which an operator did so; 0 if none did.
func (s *Store) syncLost(ctx context.Context, inTable []changeRecord, accepted int64) (resumed bool, err error) {
	lost := s.history.lost.Load()
	if lost == nil {
		if len(inTable) > 0 {
			s.setLost(inTable)
		}
		return false, nil
	}
	if len(inTable) == 0 {
		resolved, err := s.allResolved(ctx, lost.changes, accepted)
		if resolved {
			h := &s.history
			h.mu.Lock()
			h.seen, h.known, h.loaded = nil, nil, false
			h.mu.Unlock()
			s.history.lost.Store(nil)
			s.log.Warn("the changes that the metastore lacked are back, or an operator has given them up; this node "+
				"changes keys again", "metastore", s.db.URI())
		}
		if resolved || err != nil {
			return resolved, err
		}
	}
	for _, m := range lost.changes {
		if m.At <= accepted || slices.Contains(inTable, m) {
			continue
		}
		if err := s.execRepeatable(ctx, "metastore/postgres.syncLost", m.Key, insertLost,
			m.ID, m.Seq, m.Key, m.At, millis(now()), m.Change, settingAccepted); err != nil {
			return false, err
		}
	}
	return false, nil
}

// allResolved reports whether the store has all changes again, except those that an operator gave up.
func (s *Store) allResolved(ctx context.Context, changes []changeRecord, accepted int64) (bool, error) {
	var ids []string
	for _, m := range changes {
		if m.At > accepted {
			ids = append(ids, m.ID)
		}
	}
	var present int
	err := s.db.Read(ctx, "metastore/postgres.allResolved", "", func(ctx context.Context) error {
		return s.db.Pool().QueryRow(ctx, `SELECT count(*) FROM change WHERE id = ANY($1)`, ids).Scan(&present)
	})
	return present == len(ids), err
}

// LostChange is a change that a node has seen, and that the store lacks.
type LostChange struct {
	Key    string
	At     time.Time
	Change metastore.Change // "" if an older release has recorded the change
}

// Lost returns the changes that any node has found missing, oldest first.
func (s *Store) Lost(ctx context.Context) (all []LostChange, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Lost", "", func(ctx context.Context) error {
		rows, _ := s.db.Pool().Query(ctx, selectLost) // the rows carry the error
		changes, err := pgx.CollectRows(rows, scanChange)
		all = nil
		for _, m := range changes {
			all = append(all, LostChange{m.Key, fromMillis(m.At), metastore.Change(m.Change)})
		}
		return err
	})
	return all, err
}

// Accept gives up the changes that the store lacks. Every node changes keys again after its next read of the changes.
func (s *Store) Accept(ctx context.Context) error {
	return s.db.Update(ctx, "metastore/postgres.Accept", "", pgx.ReadCommitted,
		func(ctx context.Context, tx pgx.Tx) error {
			// The times of the lost changes are from the clock of the old server, which may have been ahead.
			if _, err := tx.Exec(ctx, `INSERT INTO setting (name, value)
			SELECT $1, greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, max(at))::text FROM lost_change
			ON CONFLICT (`+digestName+`) DO UPDATE SET value = excluded.value`, settingAccepted); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DELETE FROM lost_change`)
			return err
		})
}

// payload is the payload of a notification.
type payload struct {
	Key    string           `json:"key"`
	Change metastore.Change `json:"change"`
	Token  int32            `json:"token,omitempty"`
	Record *changeRecord    `json:"mark,omitempty"` // nil if no key was changed
}

// parseNotice reads the payload of a notification. isNew is false if the change was reported before.
func (s *Store) parseNotice(text string) (n metastore.Notice, isNew bool) {
	var p payload
	if json.Unmarshal([]byte(text), &p) != nil {
		// Another program has sent it. An invalidation of all keys is always correct.
		return metastore.Notice{Change: metastore.Invalidated}, true
	}
	isNew = true
	if p.Record != nil {
		isNew = s.history.isNew(*p.Record)
		s.remember(*p.Record)
	}
	return metastore.Notice{Key: p.Key, Change: p.Change, Token: p.Token}, isNew
}
