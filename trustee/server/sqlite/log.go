package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"claviger"
	"claviger/durable"
	"claviger/sqlitedb"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// How many entries of the log are kept. keepShared is for entries that the peer has: the peer may be
// restored to an older state. keepAlone is for the time while the peer does not answer. A peer that
// lacks more entries gets a whole copy. A purged deposit stays in the log until that many further
// changes were made.
const (
	keepShared = 100
	keepAlone  = 10_000
)

var _ replica.Logged = (*Store)(nil)

// rowQuerier is a connection or a transaction.
type rowQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func readPosition(ctx context.Context, q rowQuerier) (st replica.Position, err error) {
	err = q.QueryRowContext(ctx, "SELECT role, epoch, alone, unshared, seq, made, digest FROM standing").
		Scan(&st.Role, &st.Epoch, &st.Alone, &st.Unshared, &st.Head.Seq, &st.Head.Epoch, &st.Head.Digest)
	return st, err
}

func writePosition(ctx context.Context, tx *sql.Tx, st *replica.Position) error {
	_, err := tx.ExecContext(ctx, "UPDATE standing SET role = ?, epoch = ?, alone = ?, unshared = ?, seq = ?, made = "+
		"?, digest = ?",
		st.Role, st.Epoch, st.Alone, st.Unshared, st.Head.Seq, st.Head.Epoch, st.Head.Digest)
	return err
}

// Position returns the store's position.
func (s *Store) Position(ctx context.Context) (replica.Position, error) {
	st, err := readPosition(ctx, s.db.Reader)
	if err != nil {
		return st, s.fail("trustee/server/sqlite.Position", "", err)
	}
	return st, nil
}

// Role returns the store's role.
func (s *Store) Role(ctx context.Context) (server.Role, error) {
	st, err := s.Position(ctx)
	return st.Role, err
}

// UpdatePosition changes the store's position.
func (s *Store) UpdatePosition(ctx context.Context, f func(*replica.Position) error) (st replica.Position, err error) {
	err = s.change(ctx, "trustee/server/sqlite.UpdatePosition", "", func(ctx context.Context, tx *sql.Tx) error {
		if st, err = readPosition(ctx, tx); err != nil {
			return err
		}
		was := st
		if err := f(&st); err != nil {
			return err
		}
		if was.Role == server.RoleSingle && st.Role == server.RoleActive {
			st.Head = st.Head.NewBranch(st.Epoch)
		}
		if st.Unshared == 0 && was.Unshared != 0 {
			if err := prune(ctx, tx, &st, keepShared); err != nil {
				return err
			}
		}
		return writePosition(ctx, tx, &st)
	})
	return st, err
}

// Guard makes the store call g before each change of this process.
func (s *Store) Guard(g replica.Guard) { s.guard.Store(&g) }

// mutate makes a change, and logs it.
func (s *Store) mutate(ctx context.Context, op, key string, ch *replica.Change) error {
	payload, err := json.Marshal(ch)
	if err != nil {
		return claviger.E(op, claviger.Internal, key, err)
	}
	return s.change(ctx, op, key, func(ctx context.Context, tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err != nil {
			return err
		}
		if err := st.Role.MayChange(op, key); err != nil {
			return err
		}
		if err := apply(ctx, tx, op, ch); err != nil || st.Role == server.RoleSingle {
			return err
		}
		e, shared, err := st.Admit(ctx, s.guard.Load(), payload)
		if err != nil {
			return err
		}
		return addToLog(ctx, tx, &st, e, shared)
	})
}

// addToLog adds an entry to the log.
func addToLog(ctx context.Context, tx *sql.Tx, st *replica.Position, e replica.Entry, shared bool) error {
	if _, err := tx.ExecContext(ctx, "INSERT INTO change (seq, epoch, digest, payload) VALUES (?, ?, ?, ?)", e.Seq,
		e.Epoch, e.Digest, []byte(e.Change)); err != nil {
		return err
	}
	keep := uint64(keepAlone)
	if shared {
		keep = keepShared
	}
	st.Head = e.Head
	if err := prune(ctx, tx, st, keep); err != nil {
		return err
	}
	return writePosition(ctx, tx, st)
}

// prune keeps the newest entries, and the last entry that the peer has. If the peer returns with a log
// that ends there, that entry proves that the peer has nothing that this store lacks.
func prune(ctx context.Context, tx *sql.Tx, st *replica.Position, keep uint64) error {
	_, err := tx.ExecContext(ctx, "DELETE FROM change WHERE seq + ?1 <= ?2 AND seq + 1 <> ?3", keep, st.Head.Seq,
		st.Unshared)
	return err
}

// Entries returns a part of the log.
func (s *Store) Entries(ctx context.Context, after replica.Head, limit, bytes int) (list []replica.Entry, err error) {
	const op = "trustee/server/sqlite.Entries"
	broken := claviger.E(op, claviger.Invalid, "", replica.ErrChain)
	err = s.snapshot(ctx, op, func(tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err != nil || st.Head == after {
			return err
		}
		if after.Seq > st.Head.Seq {
			return broken
		}
		size, before := 0, after
		enough := errors.New("enough")
		err = eachRow(ctx, tx, "SELECT seq, epoch, digest, payload FROM change WHERE seq > ? ORDER BY seq LIMIT ?",
			[]any{after.Seq, limit}, func(rows *sql.Rows) error {
				var e replica.Entry
				var payload []byte
				if err := rows.Scan(&e.Seq, &e.Epoch, &e.Digest, &payload); err != nil {
					return err
				}
				if e = before.Next(e.Epoch, payload); size > 0 && size+len(payload) > bytes {
					return enough
				}
				size += len(payload)
				before, list = e.Head, append(list, e)
				return nil
			})
		if err != nil && !errors.Is(err, enough) {
			return err
		}
		// The loop computed the digests again, starting at after. If the last digest equals the digest
		// in the log, all entries follow after.
		had, err := has(ctx, tx, &st, before)
		if err == nil && (len(list) == 0 || !had) {
			err = broken
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Apply makes changes from the log of the peer.
func (s *Store) Apply(ctx context.Context, as server.Role, epoch uint64, list []replica.Entry) error {
	const op = "trustee/server/sqlite.Apply"
	return s.change(ctx, op, "", func(ctx context.Context, tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err != nil {
			return err
		}
		if err := st.MayApply(op, as, epoch); err != nil {
			return err
		}
		st.Epoch = max(st.Epoch, epoch)
		for _, e := range list {
			if e.Seq <= st.Head.Seq {
				had, err := has(ctx, tx, &st, e.Head)
				if err != nil {
					return err
				}
				if !had {
					return claviger.E(op, claviger.Invalid, "", replica.ErrChain)
				}
				continue
			}
			if st.Head.Next(e.Epoch, e.Change).Head != e.Head {
				return claviger.E(op, claviger.Invalid, "", replica.ErrChain)
			}
			var ch replica.Change
			if err := json.Unmarshal(e.Change, &ch); err != nil {
				return claviger.Errorf(op, claviger.Invalid, "", "change %d cannot be read: %w", e.Seq, err)
			}
			if err := apply(ctx, tx, op, &ch); unfit(err) {
				return claviger.Errorf(op, claviger.Invalid, "", "change %d, which the peer has made, cannot be made "+
					"here, so the two stores are not equal: %w: %w", e.Seq, replica.ErrChain, err)
			} else if err != nil {
				return err
			}
			if as == server.RolePassive {
				st.Unshared = 0 // the active server has every change before e
			}
			if err := addToLog(ctx, tx, &st, e, true); err != nil {
				return err
			}
		}
		return writePosition(ctx, tx, &st)
	})
}

// has reports whether the log has an entry with this head.
func has(ctx context.Context, tx *sql.Tx, st *replica.Position, h replica.Head) (bool, error) {
	if h == st.Head {
		return true, nil
	}
	var digest string
	err := tx.QueryRowContext(ctx, "SELECT digest FROM change WHERE seq = ?", h.Seq).Scan(&digest)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return digest == h.Digest, err
}

// Has reports whether the log has an entry with this head.
func (s *Store) Has(ctx context.Context, h replica.Head) (had bool, err error) {
	const op = "trustee/server/sqlite.Has"
	err = s.snapshot(ctx, op, func(tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err == nil {
			had, err = has(ctx, tx, &st, h)
		}
		return err
	})
	return had, err
}

// Snapshot is Export with the head of the log.
func (s *Store) Snapshot(ctx context.Context, head func(replica.Head) error, f func(server.Record) error) error {
	return s.snapshot(ctx, "trustee/server/sqlite.Snapshot", func(tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err != nil {
			return err
		}
		if err := head(st.Head); err != nil {
			return err
		}
		return export(ctx, tx, f)
	})
}

// Load replaces all records with a peer's snapshot.
func (s *Store) Load(ctx context.Context, epoch uint64, head replica.Head, next func() (server.Record, error)) error {
	const op = "trustee/server/sqlite.Load"
	return s.change(ctx, op, "", func(ctx context.Context, tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err != nil {
			return err
		}
		if err := st.MayApply(op, server.RolePassive, epoch); err != nil {
			return err
		}
		if err := replace(ctx, tx, op, next); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM change"); err != nil {
			return err
		}
		return writePosition(ctx, tx, &replica.Position{Role: server.RolePassive, Epoch: epoch, Head: head})
	})
}

// Save copies the store to a file beside it, which only the owner may read. The copy is complete, or
// does not exist.
func (s *Store) Save(ctx context.Context, why string) (string, error) {
	const op = "trustee/server/sqlite.Save"
	name := fmt.Sprintf("%s.%s-%s", s.db.Path(), why, time.Now().UTC().Format("20060102T150405.000000000Z"))
	work, err := sqlitedb.NewWork(name, "backup")
	if err != nil {
		return "", s.fail(op, "", err)
	}
	defer work.Discard()
	if err = s.db.CopyTo(ctx, work.Path); err == nil {
		err = durable.Publish(work.Path, name)
	}
	if err != nil {
		return "", s.fail(op, "", err)
	}
	return name, nil
}
