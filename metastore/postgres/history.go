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
	// pollEvery is how often the changes are read beside the notices, which may not
	// come; pollTimeout bounds one reading.
	pollEvery   = 2 * time.Second
	pollTimeout = 2 * time.Second
	// recentChanges is how many are read: more than can be on their way at once.
	recentChanges = 64
	// keptChanges is how many the table keeps, and pruneEvery how often others go.
	keptChanges = 10_000
	pruneEvery  = time.Hour
	// rememberedChanges is how many a node demands to find again. Several, since
	// numbers are given in another order than that of commits.
	rememberedChanges = 16
)

// settingAccepted is when an operator took the store as it was, with what it lacked.
const settingAccepted = "history.accepted"

// mark is one change, as it is in the table.
type mark struct {
	Seq int64  `json:"seq"`
	ID  string `json:"id"`
	Key string `json:"key"`
	At  int64  `json:"at"` // milliseconds since 1970, by the server's clock
	// Change is what was done; "" where an older program has remembered it.
	Change string `json:"change,omitempty"`
}

// history is what a node remembers of the changes that were committed.
type history struct {
	mu     sync.Mutex
	known  map[int64]string // recent changes by number, of which Watch has been told
	newest int64            // of known
	seen   []mark           // the newest ones, oldest first, each of which must be there
	loaded bool             // known was read from the store

	lost  atomic.Pointer[lostChanges]
	heard atomic.Int64 // when the last reading that was answered began, since start
}

// lostChanges says that the store lacks what was acknowledged.
type lostChanges struct {
	marks []mark
}

// changeTx is a transaction that changes a key, with the change.
type changeTx struct {
	pgx.Tx
	store *Store
	made  *mark
}

// update runs f, which changes a key, in one transaction, and remembers the change
// once it is committed. Nothing is changed where the store lacks changes that were
// acknowledged.
func (s *Store) update(ctx context.Context, op, key string, level pgx.TxIsoLevel,
	f func(context.Context, pgx.Tx) error) error {
	var made mark
	began := time.Now()
	// An older dump may have been restored under the connections since the last look. Not
	// in the transaction: serializable ones would be in each other's way at this table.
	err := s.db.Read(ctx, op, key, func(ctx context.Context) error {
		_, err := s.compare(ctx, s.db.Pool())
		return err
	})
	if err == nil {
		err = s.accompanied(ctx, op, key)
	}
	if err != nil {
		s.noteWrite(began, err)
		return err
	}
	err = s.db.Update(ctx, op, key, level, func(ctx context.Context, tx pgx.Tx) error {
		made = mark{}
		// The database has been asked for the changes that this node has seen. What
		// others miss is asked for where the change is written down.
		if err := s.whole(op, key); err != nil {
			return err
		}
		if err := s.fence(ctx, tx, op, key); err != nil {
			return err
		}
		return f(ctx, &changeTx{tx, s, &made})
	})
	if err == nil && made.ID != "" {
		s.saw(made)
	}
	s.noteWrite(began, err)
	return err
}

// writeDown adds a change to the table, unless a node misses one, and tells all who
// watch when the transaction is committed.
const writeDown = `
	WITH made AS (
		INSERT INTO change (id, key, change, at) SELECT $1, $2, $3, ` + clockMillis + `
		WHERE NOT EXISTS (SELECT FROM lost_change) RETURNING seq, at)
	SELECT made.seq, made.at, pg_notify($4, json_build_object('key', $5::text, 'change', $3::text,
		'mark', json_build_object('seq', made.seq, 'id', $1::text, 'key', $5::text, 'at', made.at, 'change',
			$3::text))::text) FROM made`

// record writes a change down.
func (t *changeTx) record(ctx context.Context, n metastore.Notice) error {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	m := mark{ID: hex.EncodeToString(id), Key: n.Key, Change: string(n.Change)}
	told := n.Key
	if len(told) > maxKey {
		told = "" // any key
	}
	err := t.QueryRow(ctx, writeDown, m.ID, m.Key, string(n.Change), channel, told).Scan(&m.Seq, &m.At, nil)
	if errors.Is(err, pgx.ErrNoRows) {
		rows, _ := t.Query(ctx, selectLost) // the rows carry the error
		others, err := pgx.CollectRows(rows, scanMark)
		if err != nil {
			return err
		}
		t.store.lose(others)
		return t.store.whole("metastore/postgres.change", n.Key)
	}
	*t.made = m
	return err
}

const selectLost = `SELECT seq, id, key, at, change FROM lost_change ORDER BY at`

func scanMark(r pgx.CollectableRow) (m mark, err error) {
	err = r.Scan(&m.Seq, &m.ID, &m.Key, &m.At, &m.Change)
	return m, err
}

// saw remembers changes that are committed.
func (s *Store) saw(marks ...mark) {
	h := &s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range marks {
		if !slices.Contains(h.seen, m) {
			h.seen = append(h.seen, m)
		}
	}
	slices.SortFunc(h.seen, func(a, b mark) int { return cmp.Compare(a.Seq, b.Seq) })
	if n := len(h.seen) - rememberedChanges; n > 0 {
		h.seen = slices.Delete(h.seen, 0, n)
	}
}

// fresh tells whether Watch has not been told of a change before.
func (h *history) fresh(m mark) bool {
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

// connected compares a new connection's database with what this node has seen. It may
// be another server than before, which its standby had not caught up with.
func (s *Store) connected(ctx context.Context, conn *pgx.Conn) error {
	missing, err := s.compare(ctx, conn)
	for _, m := range missing { // the other nodes are to know at once; where this fails, catchUp does it
		_, _ = conn.Exec(ctx, tellLost, pgx.QueryExecModeExec, m.ID, m.Seq, m.Key, m.At, millis(now()), m.Change,
			settingAccepted)
	}
	return err
}

// rower asks for one row: a connection, or a pool.
type rower interface {
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
}

// compare looks whether the database has each change that this node has seen, and returns
// those that are missing and not given up.
func (s *Store) compare(ctx context.Context, q rower) (missing []mark, err error) {
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
	var there []string
	var oldest int64 // of the table, which forgets
	var until string
	err = q.QueryRow(ctx, `SELECT ARRAY(SELECT id FROM change WHERE seq = ANY($1)), (SELECT coalesce(min(seq), 0)
		FROM change), coalesce((SELECT value FROM setting WHERE name = $2), '0')`,
		pgx.QueryExecModeExec, numbers, settingAccepted).Scan(&there, &oldest, &until)
	if err != nil && pgdb.Code(err) != pgdb.UndefinedTable { // a schema that is older than all that was seen
		return nil, err
	}
	accepted, _ := strconv.ParseInt(until, 10, 64) // only ever written by Accept
	var given []mark
	for _, m := range seen {
		switch {
		case slices.Contains(there, m.ID):
		case m.At <= accepted:
			given = append(given, m)
		case oldest == 0 || m.Seq >= oldest:
			missing = append(missing, m)
		}
	}
	if len(given) > 0 { // of the time before a restart; their numbers may be given anew
		h.mu.Lock()
		h.seen = slices.DeleteFunc(h.seen, func(m mark) bool { return slices.Contains(given, m) })
		h.mu.Unlock()
	}
	if len(missing) > 0 {
		s.lose(missing)
	}
	return missing, nil
}

// tellLost tells the other nodes of a change that is missing, unless it was given up
// meanwhile.
const tellLost = `INSERT INTO lost_change (id, seq, key, at, told, change) SELECT $1, $2, $3, $4, $5, $6
	WHERE $4 > coalesce((SELECT value::bigint FROM setting WHERE name = $7), 0) ON CONFLICT DO NOTHING`

// lose has this node change nothing any more.
func (s *Store) lose(missing []mark) {
	if !s.history.lost.CompareAndSwap(nil, &lostChanges{missing}) {
		return
	}
	s.log.Error("the metastore lacks changes that were acknowledged; nothing is changed until they are back or "+
		"given up", "error", s.whole("metastore/postgres.history", ""))
}

// whole tells what the store is known to lack.
func (s *Store) whole(op, key string) error {
	lost := s.history.lost.Load()
	if lost == nil {
		return nil
	}
	var keys []string
	for _, m := range lost.marks {
		if !slices.Contains(keys, m.Key) {
			keys = append(keys, m.Key)
		}
	}
	const told = 10
	more := ""
	if n := len(keys) - told; n > 0 {
		keys, more = keys[:told], fmt.Sprintf(" and %d more", n)
	}
	newest := lost.marks[len(lost.marks)-1]
	return claviger.Errorf(op, claviger.Unavailable, key,
		"metastore %s (property %s) lacks changes that were acknowledged, the newest at %s, of the keys %q%s: its "+
			"server was replaced by a standby that was behind, or by an older copy; nothing is changed, and what is "+
			"not found is not called missing; bring the server back that has them; or give up what is missing by "+
			"claviger metastore accept, and rebuild the records of keys from the HSM by claviger hsm adopt",
		s.db.URI(), s.cfg.Property, when(newest.At).Format(time.RFC3339), keys, more)
}

// absent is the answer to a question for what the store does not have: err, unless
// the store is known to lack something.
func (s *Store) absent(ctx context.Context, op, key string, err error) error {
	if metastore.IsAsItIs(ctx) {
		return err
	}
	if lost := s.whole(op, key); lost != nil {
		return lost
	}
	return err
}

// start is the moment from which Heard counts.
var start = time.Now()

// Heard is the time before which each change, whichever node made it, has been told
// to Watch's fn; zero where Watch has not read any yet.
func (s *Store) Heard() time.Time {
	at := s.history.heard.Load()
	if at == 0 {
		return time.Time{}
	}
	return start.Add(time.Duration(at))
}

// poll reads the changes until ctx ends, and tells fn of those that it has not heard
// of by a notice.
func (s *Store) poll(ctx context.Context, fn func(metastore.Notice)) {
	var pruned time.Time
	for first := true; ; first = false {
		if !first {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pgdb.Jitter(pollEvery)):
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
			continue // what is remembered is not believed for long; see Heard
		}
		s.history.heard.Store(max(1, int64(begun)))
		if time.Since(pruned) > pruneEvery {
			pruned = time.Now()
			// next time
			_ = s.change(ctx, "metastore/postgres.poll", "",
				`DELETE FROM change WHERE seq < (SELECT max(seq) FROM change) - $1`, keptChanges)
		}
	}
}

// catchUp reads the newest changes once.
func (s *Store) catchUp(ctx context.Context, fn func(metastore.Notice)) error {
	const op = "metastore/postgres.catchUp"
	var rows, others []mark
	var given int64
	err := s.db.Read(ctx, op, "", func(ctx context.Context) (err error) {
		// the rows carry the error
		r, _ := s.db.Pool().Query(ctx, `SELECT seq, id, key, at, change FROM change ORDER BY seq DESC LIMIT $1`,
			recentChanges)
		if rows, err = pgx.CollectRows(r, scanMark); err != nil {
			return err
		}
		r, _ = s.db.Pool().Query(ctx, selectLost) // as above
		if others, err = pgx.CollectRows(r, scanMark); err != nil {
			return err
		}
		if err := s.db.Pool().QueryRow(ctx, `SELECT coalesce((SELECT value::bigint FROM setting WHERE name = $1), 0)`,
			settingAccepted).Scan(&given); err != nil {
			return err
		}
		_, err = s.compare(ctx, s.db.Pool()) // connections outlive a dump that is restored
		return err
	})
	if err != nil {
		return err
	}
	resumed, err := s.settle(ctx, others, given)
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
	told := 0
	for _, c := range slices.Backward(rows) {
		if !h.fresh(c) {
			continue
		}
		s.saw(c)
		if loaded { // what was changed before that is not remembered otherwise
			fn(metastore.Notice{Key: c.Key, Change: metastore.Change(c.Change)})
			told++
		}
	}
	if told == recentChanges { // there may be others before them
		fn(metastore.Notice{Change: metastore.Invalidated})
	}
	return nil
}

// settle tells the other nodes of what this one misses, learns what they miss, and
// goes on where an operator has given it up.
func (s *Store) settle(ctx context.Context, others []mark, given int64) (resumed bool, err error) {
	lost := s.history.lost.Load()
	if lost == nil {
		if len(others) > 0 {
			s.lose(others)
		}
		return false, nil
	}
	if len(others) == 0 {
		back, err := s.back(ctx, lost.marks, given)
		if back {
			h := &s.history
			h.mu.Lock()
			h.seen, h.known, h.loaded = nil, nil, false
			h.mu.Unlock()
			s.history.lost.Store(nil)
			s.log.Warn("what the metastore lacked is back, or was given up by an operator; this node changes keys "+
				"again", "metastore", s.db.URI())
		}
		if back || err != nil {
			return back, err
		}
	}
	for _, m := range lost.marks {
		if m.At <= given || slices.Contains(others, m) {
			continue
		}
		if err := s.change(ctx, "metastore/postgres.settle", m.Key, tellLost,
			m.ID, m.Seq, m.Key, m.At, millis(now()), m.Change, settingAccepted); err != nil {
			return false, err
		}
	}
	return false, nil
}

// back tells whether all changes are in the store again, or were given up.
func (s *Store) back(ctx context.Context, marks []mark, given int64) (bool, error) {
	var ids []string
	for _, m := range marks {
		if m.At > given {
			ids = append(ids, m.ID)
		}
	}
	var there int
	err := s.db.Read(ctx, "metastore/postgres.back", "", func(ctx context.Context) error {
		return s.db.Pool().QueryRow(ctx, `SELECT count(*) FROM change WHERE id = ANY($1)`, ids).Scan(&there)
	})
	return there == len(ids), err
}

// LostChange is a change that a node has seen and that the store lacks.
type LostChange struct {
	Key    string
	At     time.Time
	Change metastore.Change // "" where an older program has told of it
}

// Lost returns what nodes have found missing, oldest first.
func (s *Store) Lost(ctx context.Context) (all []LostChange, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Lost", "", func(ctx context.Context) error {
		rows, _ := s.db.Pool().Query(ctx, selectLost) // the rows carry the error
		marks, err := pgx.CollectRows(rows, scanMark)
		all = nil
		for _, m := range marks {
			all = append(all, LostChange{m.Key, when(m.At), metastore.Change(m.Change)})
		}
		return err
	})
	return all, err
}

// Accept gives up what the store lacks: every node changes keys again, soon.
func (s *Store) Accept(ctx context.Context) error {
	return s.db.Update(ctx, "metastore/postgres.Accept", "", pgx.ReadCommitted,
		func(ctx context.Context, tx pgx.Tx) error {
			// The clock of the server that is gone may have been ahead of this one's.
			if _, err := tx.Exec(ctx, `INSERT INTO setting (name, value)
			SELECT $1, greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, max(at))::text FROM lost_change
			ON CONFLICT (`+digestName+`) DO UPDATE SET value = excluded.value`, settingAccepted); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DELETE FROM lost_change`)
			return err
		})
}

// payload is a notice on its way.
type payload struct {
	Key    string           `json:"key"`
	Change metastore.Change `json:"change"`
	Mark   *mark            `json:"mark,omitempty"` // nil where nothing was changed
}

// hear reads a notice's payload. fresh is false where it was told before.
func (s *Store) hear(text string) (n metastore.Notice, fresh bool) {
	var p payload
	if json.Unmarshal([]byte(text), &p) != nil {
		return metastore.Notice{Change: metastore.Invalidated}, true // someone else's: to forget too much does no harm
	}
	fresh = true
	if p.Mark != nil {
		fresh = s.history.fresh(*p.Mark)
		s.saw(*p.Mark)
	}
	return metastore.Notice{Key: p.Key, Change: p.Change}, fresh
}
