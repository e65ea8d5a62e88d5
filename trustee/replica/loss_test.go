package replica_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/trustee/server/storetest"
)

// replaceStore gives a stopped server another store, which fill makes.
func (h *pairServer) replaceStore(fill func(path string)) {
	h.t.Helper()
	must(h.t, h.store.Close())
	for _, end := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(h.path + end); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Fatal(err)
		}
	}
	fill(h.path)
	var err error
	if h.store, err = sqlite.Open(h.t.Context(), h.path, true); err != nil {
		h.t.Fatal(err)
	}
}

// restored returns a function that makes a store from records, like claviger trustee restore.
func restored(t *testing.T, list []server.Record) func(path string) {
	return func(path string) {
		s, err := sqlite.Open(t.Context(), path, true)
		must(t, err)
		must(t, s.Import(t.Context(), storetest.NextOf(list)))
		must(t, s.Close())
	}
}

// copyTo writes a copy of the server's store to a file.
func (h *pairServer) copyTo(path string) {
	h.t.Helper()
	kept, err := h.store.Save(h.t.Context(), "copy")
	must(h.t, err)
	must(h.t, os.Rename(kept, path))
}

// dropped returns the files with the records that a resync --drop has removed from the server's store.
func (h *pairServer) dropped() []string {
	kept, _ := filepath.Glob(h.path + ".dropped-*") // the pattern is valid
	return kept
}

func digestOf(t *testing.T, s server.Store) string {
	t.Helper()
	d, err := server.StateDigest(t.Context(), s)
	must(t, err)
	return d
}

// TestNothingIsReplaced: the store of an active server was replaced: it was lost and made again, restored from an
// older backup, replaced by an older copy or by that of another organization, or has lost records. The active
// server replaces no record of the passive server before an operator says so.
func TestNothingIsReplaced(t *testing.T) {
	for name, c := range replacements() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.test(t)
		})
	}
}

// replacement is an active server whose store was replaced.
type replacement struct {
	older   bool // the store has the records before the last changes
	fill    func(t *testing.T, records []server.Record, copied string) func(path string)
	alone   bool   // the active server makes a change alone, before the passive server starts
	why     string // the message about the records that would be lost
	paired  bool   // the store belongs to one of two servers already
	promote string // the error of promote at the passive server; "" for success
}

func replacements() map[string]replacement {
	lostAll := "1 organizations, 1 clients and 3 deposits"
	return map[string]replacement{
		"lost and created again": {why: lostAll, fill: func(*testing.T, []server.Record,
			string) func(string) {
			return func(string) {}
		}},
		"an older backup": {older: true, why: `0 organizations, 0 clients and 1 deposits: deposit "late"`,
			fill: func(t *testing.T, records []server.Record, _ string) func(string) { return restored(t, records) }},
		"an older copy that worked alone": {older: true, paired: true, alone: true, why: `deposit "late"`,
			promote: `deposit "alone"`,
			fill: func(t *testing.T, _ []server.Record, copied string) func(string) {
				return func(path string) { must(t, os.Rename(copied, path)) }
			}},
		"another organization's": {why: lostAll, promote: `organization "OTHER"`,
			fill: func(t *testing.T, _ []server.Record, _ string) func(string) {
				return restored(t, []server.Record{{Org: &server.Org{Name: "OTHER", UUID: "u2",
					Created: time.UnixMilli(1)}}})
			}},
		"half of it, with the whole log": {paired: true, why: "0 organizations, 0 clients and 3 deposits",
			fill: func(t *testing.T, _ []server.Record, copied string) func(string) {
				return func(path string) {
					must(t, os.Rename(copied, path))
					db, err := sql.Open("sqlite", path)
					must(t, err)
					_, err = db.Exec("DELETE FROM deposit") //nolint:noctx // a file of this test's own
					must(t, errors.Join(err, db.Close()))
				}
			}},
	}
}

func (c *replacement) test(t *testing.T) {
	t.Helper()
	owner := identities()[1].Fingerprint()
	a, b, client := startedPair(t)
	must(t, put(t, client, "one", "1"))
	must(t, put(t, client, "two", "2"))
	copied := filepath.Join(t.TempDir(), "copied")
	var records []server.Record
	keep := func() { a.copyTo(copied); records = storetest.Records(t, a.store) }
	if c.older {
		keep()
	}
	must(t, put(t, client, "late", "3"))
	if !c.older {
		keep()
	}
	a.await("both servers being synchronized", synchronized)
	a.stop()
	before := digestOf(t, b.store)
	if c.alone {
		b.stop()
	}
	a.replaceStore(c.fill(t, records, copied))
	a.start()
	if c.alone {
		must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
		must(t, put(t, a.client(identities()[1]), "alone", "4"))
		b.start()
	}
	a.await("the refusal", func(r replica.StatusReport) bool {
		return strings.Contains(r.Why, c.why) && strings.Contains(r.Why, "claviger trustee resync --drop "+
			"here") && !r.Synced
	})
	if c.paired {
		// The passive server has this head, or the logs have diverged, so its status does not report the loss.
	} else if r := b.status(); !r.Diverged || !strings.Contains(r.Why, c.why) ||
		!strings.Contains(r.Why, "claviger trustee promote here") {
		t.Errorf("the passive's status: %+v", r)
	}
	err := a.operatorRequest(trustee.VerbResync, replica.ResyncArgs{})
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), c.why) {
		t.Errorf("resync without --drop: %v", err)
	}
	if digestOf(t, b.store) != before || len(b.dropped()) > 0 {
		t.Fatal("the passive server has lost something")
	}
	if d, err := b.client(identities()[1]).Find(t.Context(), "late"); err != nil || string(d.Content) != "3" {
		t.Errorf("the passive server does not answer: %+v, %v", d, err)
	}
	// The cure in the message drops nothing that only the active server holds.
	err = b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{})
	if c.promote == "" {
		must(t, err)
		b.await("both servers being synchronized", synchronized)
	} else if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), c.promote) {
		t.Errorf("promote of the passive: %v", err)
	} else {
		// The operator decides for the store of the active server.
		must(t, a.operatorRequest(trustee.VerbResync, replica.ResyncArgs{Drop: true}))
		a.await("both servers being synchronized", synchronized)
		kept := b.dropped()
		if len(kept) != 1 {
			t.Fatalf("%q", kept)
		}
		old, err := sqlite.Open(t.Context(), kept[0], false)
		must(t, err)
		defer old.Close()
		if _, err := old.Find(t.Context(), owner, "late"); err != nil || digestOf(t, old) != before {
			t.Errorf("the file lacks dropped records: %v", err)
		}
		return
	}
	if digestOf(t, a.store) != before || digestOf(t, b.store) != before {
		t.Error("the two servers lack records that the passive server held")
	}
}

// TestActiveLostAfterPromotions: a new store begins at epoch 1, so its server becomes passive when it sees the higher
// epoch of the other server. Then both are passive. The server that holds all records can be promoted without
// --force, and the other cannot.
func TestActiveLostAfterPromotions(t *testing.T) {
	a, b, client := startedPair(t)
	must(t, put(t, client, "one", "1"))
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{}))
	must(t, a.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{}))
	a.await("both servers being synchronized", synchronized)
	before := digestOf(t, b.store)
	a.stop()
	a.replaceStore(func(string) {})
	a.start()
	a.await("stepping down", func(r replica.StatusReport) bool { return r.Role == server.RolePassive })
	err := a.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{})
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "1 organizations, 1 clients and 1 "+
		"deposits") {
		t.Errorf("promote of the empty server: %v", err)
	}
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{}))
	b.await("both servers being synchronized", synchronized)
	if digestOf(t, a.store) != before || digestOf(t, b.store) != before {
		t.Error("something was lost")
	}
}

// TestFirstStartKeepsBoth: a server with records of its own is made passive at its first start. It keeps them until
// an operator drops them. A restored store that lacks nothing needs no operator.
func TestFirstStartKeepsBoth(t *testing.T) {
	a, b := newPair(t)
	b.replaceStore(restored(t, []server.Record{{Org: &server.Org{Name: "OTHER", UUID: "u2",
		Created: time.UnixMilli(1)}}}))
	a.start()
	b.start()
	a.await("the refusal", func(r replica.StatusReport) bool { return strings.Contains(r.Why, `organization "OTHER"`) })
	must(t, a.operatorRequest(trustee.VerbResync, replica.ResyncArgs{Drop: true}))
	a.await("both servers being synchronized", synchronized)
	if kept := b.dropped(); len(kept) != 1 {
		t.Errorf("the records of the passive server are not kept: %q", kept)
	}
	records := storetest.Records(t, a.store)
	a.stop()
	a.replaceStore(restored(t, records))
	a.start()
	a.await("both servers being synchronized", synchronized)
}

// TestLongAway: a passive server was away for more changes than the log keeps. It gets a whole copy without an
// operator, although the active server has replaced a deposit that the passive server holds.
func TestLongAway(t *testing.T) {
	a, b, client := startedPair(t)
	must(t, put(t, client, "old", "1"))
	d, err := client.Find(t.Context(), "old")
	must(t, err)
	a.await("both servers being synchronized", synchronized)
	b.stop()
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	active := a.client(identities()[1])
	if _, err := active.Put(t.Context(), trustee.Deposit{Label: "old", Content: []byte("2")}, d.UUID); err != nil {
		t.Fatal(err)
	}
	// Remove an entry from the log, as after 10,000 changes.
	must(t, active.Delete(t.Context(), func() string {
		d, err := active.Find(t.Context(), "old")
		must(t, err)
		return d.UUID
	}()))
	st, err := a.store.Position(t.Context())
	must(t, err)
	db, err := sql.Open("sqlite", a.path)
	must(t, err)
	_, err = db.Exec("DELETE FROM change WHERE seq = ?", st.Unshared) //nolint:noctx // a file of this test's own
	must(t, errors.Join(err, db.Close()))
	b.start()
	a.await("both servers being synchronized", synchronized)
}
