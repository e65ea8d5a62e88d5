package keyring

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/eek"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/provider"
)

// TestDeletedVersionOfTwoKeys: a version that was used here was deleted, and the source has rolled to a version of the
// same name. No EDEK of that name is opened or re-encrypted until an operator decides, also after a restart and a
// purge. If the key is undeleted, it is in conflict. If the version was never used here, the EDEKs belong to the
// source's version.
func TestDeletedVersionOfTwoKeys(t *testing.T) {
	type row struct {
		used bool
		// The source "has it", "lost it", has another key with such a version ("made again"), or is "silent".
		source   string
		decision string // the operator's: "", "ours", "theirs"
		opens    string // an outcome of TestShadowing; "ok" is the source's DEK
	}
	for _, r := range []row{
		{false, "has it", "", "ok"},
		{false, "lost it", "", "404"},
		{false, "silent", "", "503"},
		{false, "has it", "ours", "404"},
		{true, "has it", "", "503"},
		{true, "lost it", "", "404"},
		{true, "made again", "", "503"},
		{true, "silent", "", "503"},
		{true, "has it", "ours", "404"},
		{true, "silent", "ours", "404"},
		{true, "has it", "theirs", "ok"},
	} {
		for _, compared := range []bool{false, true} { // the sources were compared before the key was deleted
			for _, gone := range []string{"deleted", "purged", "made again", "purged, made again"} {
				name := fmt.Sprintf("used=%t/%s/%s/compared=%t/%s", r.used, r.source, r.decision, compared, gone)
				t.Run(name, func(t *testing.T) {
					oneDeletedVersion(t, r.used, compared, gone, r.source, r.decision, r.opens)
				})
			}
		}
	}
}

func oneDeletedVersion(t *testing.T, used, compared bool, gone, source, decision, opens string) {
	w, store := newRecorded(t)
	w.delete(t, used, compared, gone)
	w.restartOn(t, store)
	w.changeSource(t, source)
	w.cfg.OwnVersions = map[string]bool{w.shared: decision == "ours"}
	w.cfg.SourceVersions = map[string]bool{w.shared: decision == "theirs"}
	for range 2 {
		w.decryptsAs(t, source, opens)
		w.reencryptsAs(t, gone, source, decision, opens)
		_ = w.CompareSources(t.Context()) // must not change these results
	}
	shown := w.CheckConflicts(t.Context()) != nil
	undecided := used && decision == "" && (compared || source == "has it" && gone == "deleted")
	if undecided != shown {
		t.Errorf("readiness: %v", w.CheckConflicts(t.Context()))
	}
	if gone != "deleted" || source == "made again" {
		return
	}
	if err := w.Undelete(t.Context(), caller("root"), "payroll", ""); err != nil {
		t.Fatal(err)
	}
	switch {
	case decision == "ours" && source == "has it":
		w.opens(t, "undeleted, decided by the operator", w.ownEDEK, w.ownDEK)
	case decision != "ours" && (compared || source == "has it"):
		w.refuses(t, "undeleted")
	}
}

// delete deletes the key here. used: the key is used before. compared: the sources are compared before. gone says
// whether the key is also purged, and migrated again.
func (w *conflictRing) delete(t *testing.T, used, compared bool, gone string) {
	t.Helper()
	const key = "payroll"
	if used {
		if _, err := w.Generate(t.Context(), caller("alice"), key, 1); err != nil {
			t.Fatal(err)
		}
	}
	if compared {
		w.compare(t)
	}
	if err := w.Delete(t.Context(), caller("alice"), key); err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(gone, "purged") {
		if err := w.Purge(t.Context(), caller("alice"), key, ""); err != nil {
			t.Fatal(err)
		}
	}
	if strings.HasSuffix(gone, "made again") { // by the next run of the migration
		w.madeAgain(t)
	}
}

// changeSource brings the source into the state that the test row names.
func (w *conflictRing) changeSource(t *testing.T, source string) {
	t.Helper()
	const key = "payroll"
	switch source {
	case "lost it", "made again":
		if err := w.far.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	case "silent":
		w.far.setFail(failing(claviger.Unavailable, "connection refused"))
	}
	if source == "made again" {
		time.Sleep(2 * time.Millisecond) // another time of creation
		spec := provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128}
		if _, err := w.far.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if _, err := w.far.Roll(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// decryptsAs checks the outcome of decrypting the EDEKs under the shared name: "ok" (by the source), "503" or "404".
func (w *conflictRing) decryptsAs(t *testing.T, source, opens string) {
	t.Helper()
	for what, e := range w.both() {
		dek, err := w.decrypt(t, e)
		if got := outcomeOf(err); got != opens {
			t.Errorf("decrypt of %s: %s (%v), want %s", what, got, err, opens)
		}
		if err == nil && what == "the source's" && !dek.Equal(w.sourceDEK) {
			t.Error("opened to another DEK than the source's")
		}
		cure := "claviger.migration.theirs to " + w.shared
		if err != nil && opens == "503" && source != "silent" && !strings.Contains(err.Error(), cure) {
			t.Errorf("%v does not have the cure", err)
		}
	}
}

// reencryptsAs checks that the source's EDEK is re-encrypted if decryptsAs wants it opened, and is refused otherwise.
func (w *conflictRing) reencryptsAs(t *testing.T, gone, source, decision, opens string) {
	t.Helper()
	out, err := w.reencryptOne(t, w.sourceEDEK)
	want := map[string]string{"503": "no", "ok": "ok", "404": "404"}[opens]
	switch {
	case decision == "ours": // no source is called
	case !strings.HasSuffix(gone, "made again"):
		want = "none"
	case source == "silent" && opens == "503":
		want = "503"
	}
	if got := outcomeOf(err); got != want {
		t.Errorf("re-encryption: %s (%v), want %s", got, err, want)
	}
	if err == nil {
		w.opens(t, "after the re-encryption", out, w.sourceDEK)
	}
}

// TestUndeletedIntoAConflict: the source has rolled to a version of a deleted key, and the sources were not compared
// since. After its undeletion the key is in conflict, whether the journal has recorded the conflict or not.
func TestUndeletedIntoAConflict(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		w := newConflictRing(t)
		if err := w.Delete(t.Context(), caller("alice"), "payroll"); err != nil {
			t.Fatal(err)
		}
		if recorded {
			w.past.mu.Lock()
			w.past.list[0].TakenOver, w.past.list[0].Rolled = false, 2
			w.past.mu.Unlock()
			w.origins.forget()
		}
		if err := w.Undelete(t.Context(), caller("root"), "payroll", ""); err != nil {
			t.Fatalf("recorded=%t: %v", recorded, err)
		}
		w.refuses(t, fmt.Sprintf("recorded=%t", recorded))
	}
}

// TestConflictCure: the cure of a conflict says to delete the key only if no version of it was ever used here.
func TestConflictCure(t *testing.T) {
	w, store := newRecorded(t)
	w.compare(t)
	next, err := w.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.number(t, store, next.Name)
	w.forget("payroll")
	says := func(when, want, not string) {
		t.Helper()
		_, decrypted := w.decrypt(t, w.ownEDEK)
		_, reencrypted := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.ownEDEK)
		for _, err := range []error{decrypted, reencrypted, w.CheckConflicts(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), not) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	says("never used", "delete the key here", "Do not delete")
	// A use of another version of the key also counts.
	if _, err := w.Generate(t.Context(), caller("alice"), "payroll", 1); err != nil {
		t.Fatal(err)
	}
	says("used", "Do not delete key payroll here", "delete the key here")
	w.restartOn(t, store)
	w.compare(t)
	says("used, after a restart", "Do not delete key payroll here", "delete the key here")

	// The answer "used" is cached: refused requests do not read the store again.
	counted := &countedUses{Store: store}
	w.cfg.LastUses = counted
	for range 10 {
		w.refuses(t, "again")
	}
	if n := counted.n.Load(); n > 0 {
		t.Errorf("the store was read %d times for what cannot change", n)
	}
}

// countedUses counts the calls of NeverUsed.
type countedUses struct {
	*sqlite.Store
	n atomic.Int64
}

func (a *countedUses) NeverUsed(ctx context.Context, version string) (bool, error) {
	a.n.Add(1)
	return a.Store.NeverUsed(ctx, version)
}

// newRecorded is newConflictRing with a store that records whether the version here was used.
func newRecorded(t *testing.T) (*conflictRing, *sqlite.Store) {
	t.Helper()
	store := openStore(t) // it outlives the ring
	w := newConflictRing(t)
	w.number(t, store, w.shared)
	w.cfg.Settings, w.cfg.Numbers, w.cfg.LastUses = store, store, store
	w.used = newLastUses(store, w.log)
	return w, store
}

// number makes the store assign a version's number, as it does when the HSM provider makes the version.
func (w *conflictRing) number(t *testing.T, store *sqlite.Store, version string) {
	t.Helper()
	n, _ := claviger.VersionNumber(version)
	numbered(t, store, "payroll", n)
}

// numbered makes the store assign the number to a version of the key, with an intent that is then dropped.
func numbered(t *testing.T, store *sqlite.Store, key string, n int) {
	t.Helper()
	err := store.SkipNumbers(t.Context(), key, n)
	if err == nil {
		_, err = store.Begin(t.Context(), metastore.Intent{Key: key, Op: "import",
			Refs: []metastore.Ref{{Object: fmt.Sprint(key, n)}}})
	}
	if err == nil {
		err = store.Drop(t.Context(), key)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// madeAgain migrates the source's key once more, under the next number.
func (w *conflictRing) madeAgain(t *testing.T) {
	t.Helper()
	ms, err := w.far.Provider.Metadata(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.primary.Import(t.Context(), *ms[0], 1, 2, nil); err != nil {
		t.Fatal(err)
	}
	w.past.mu.Lock()
	w.past.list[0].Counted = 2
	w.past.mu.Unlock()
	w.origins.forget()
	w.forget("payroll")
}

// restartOn imitates a restart, on the same store, of a process that was killed.
func (w *conflictRing) restartOn(t *testing.T, store *sqlite.Store) {
	t.Helper()
	w.queue.Close() // a refill reads what is replaced here
	queue, err := eek.NewQueue(eek.QueueConfig{
		Fill: w.makeEDEKs, Size: w.cfg.QueueSize, LowWatermark: w.cfg.QueueLowWatermark, Expiry: w.cfg.QueueExpiry,
		Workers: w.cfg.QueueFillers, FillTimeout: fillTimeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.queue = queue
	close(w.used.stop)
	<-w.used.stopped
	w.used = newLastUses(store, w.log)
	w.restart()
	w.forgetAll()
	w.sources.list[0].has.Clear()
}
