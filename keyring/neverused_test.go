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

// TestDeletedVersionOfTwoKeys: a version that was used here, and is gone, has the name of one that its source has
// rolled to, before or since. No EDEK of that name is opened or re-encrypted by a guess, through a restart and a purge,
// until an operator decides; and once the key is back it is in conflict. If the version was never used here, the EDEKs
// are the source's alone.
func TestDeletedVersionOfTwoKeys(t *testing.T) {
	type row struct {
		used   bool
		source string // "has it", "lost it", "made anew" with a version of that name, "silent"
		word   string // the operator's: "", "ours", "theirs"
		opens  string // as TestShadowing writes it; "ok" is the source's DEK
	}
	for _, r := range []row{
		{false, "has it", "", "ok"},
		{false, "lost it", "", "404"},
		{false, "silent", "", "503"},
		{false, "has it", "ours", "404"},
		{true, "has it", "", "503"},
		{true, "lost it", "", "404"},
		{true, "made anew", "", "503"},
		{true, "silent", "", "503"},
		{true, "has it", "ours", "404"},
		{true, "silent", "ours", "404"},
		{true, "has it", "theirs", "ok"},
	} {
		for _, compared := range []bool{false, true} { // before the key is deleted
			for _, gone := range []string{"deleted", "purged", "made again", "purged, made again"} {
				name := fmt.Sprintf("used=%t/%s/%s/compared=%t/%s", r.used, r.source, r.word, compared, gone)
				t.Run(name, func(t *testing.T) {
					oneDeletedVersion(t, r.used, compared, gone, r.source, r.word,
						r.opens)
				})
			}
		}
	}
}

func oneDeletedVersion(t *testing.T, used, compared bool, gone, source, word, opens string) {
	w, store := newRecorded(t)
	w.delete(t, used, compared, gone)
	w.restartOn(t, store)
	w.changeSource(t, source)
	w.cfg.Ours, w.cfg.Theirs = map[string]bool{w.shared: word == "ours"}, map[string]bool{w.shared: word == "theirs"}
	for range 2 {
		w.decryptsAs(t, source, opens)
		w.reencryptsAs(t, gone, source, word, opens)
		_ = w.CompareSources(t.Context()) // changes nothing of this
	}
	shown := w.CheckConflicts(t.Context()) != nil
	if undecided := used && word == "" && (compared || source == "has it" && gone == "deleted"); undecided != shown {
		t.Errorf("readiness: %v", w.CheckConflicts(t.Context()))
	}
	if gone != "deleted" || source == "made anew" {
		return
	}
	if err := w.Undelete(t.Context(), caller("root"), "payroll", ""); err != nil {
		t.Fatal(err)
	}
	switch {
	case word == "ours" && source == "has it":
		w.opens(t, "back, by the operator's word", w.ours, w.mine)
	case word != "ours" && (compared || source == "has it"):
		w.refuses(t, "back")
	}
}

// delete deletes the key here, after a use and a comparison where these are wanted; gone says whether it is purged,
// too, and made again.
func (w *twice) delete(t *testing.T, used, compared bool, gone string) {
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
	if strings.HasSuffix(gone, "made again") { // as the next run of the migration does
		w.madeAgain(t)
	}
}

// changeSource has the source do to its key what the word says.
func (w *twice) changeSource(t *testing.T, source string) {
	t.Helper()
	const key = "payroll"
	switch source {
	case "lost it", "made anew":
		if err := w.far.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	case "silent":
		w.far.setFail(failing(claviger.Unavailable, "connection refused"))
	}
	if source == "made anew" {
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

// decryptsAs wants that the EDEKs under the shared name are opened by the source, or not: "ok", "503" or "404".
func (w *twice) decryptsAs(t *testing.T, source, opens string) {
	t.Helper()
	for what, e := range w.both() {
		dek, err := w.decrypt(t, e)
		if got := outcomeOf(err); got != opens {
			t.Errorf("decrypt of %s: %s (%v), want %s", what, got, err, opens)
		}
		if err == nil && what == "the source's" && !dek.Equal(w.theirDEK) {
			t.Error("opened to another DEK than the source's")
		}
		cure := "claviger.migration.theirs to " + w.shared
		if err != nil && opens == "503" && source != "silent" && !strings.Contains(err.Error(), cure) {
			t.Errorf("%v says nothing of what to do", err)
		}
	}
}

// reencryptsAs wants that the source's EDEK is re-encrypted where decryptsAs wants it opened, and refused elsewhere.
func (w *twice) reencryptsAs(t *testing.T, gone, source, word, opens string) {
	t.Helper()
	out, err := w.reencryptOne(t, w.theirs)
	want := map[string]string{"503": "no", "ok": "ok", "404": "404"}[opens]
	switch {
	case word == "ours": // no source is asked
	case !strings.HasSuffix(gone, "made again"):
		want = "none"
	case source == "silent" && opens == "503":
		want = "503"
	}
	if got := outcomeOf(err); got != want {
		t.Errorf("re-encryption: %s (%v), want %s", got, err, want)
	}
	if err == nil {
		w.opens(t, "after the re-encryption", out, w.theirDEK)
	}
}

// TestUndeletedIntoAConflict: the source has rolled to a version of a deleted key, and nobody
// has compared them since. The key comes back in conflict, whether the journal has noted it or not.
func TestUndeletedIntoAConflict(t *testing.T) {
	for _, noted := range []bool{false, true} {
		w := newTwice(t)
		if err := w.Delete(t.Context(), caller("alice"), "payroll"); err != nil {
			t.Fatal(err)
		}
		if noted {
			w.past.mu.Lock()
			w.past.list[0].TakenOver, w.past.list[0].Rolled = false, 2
			w.past.mu.Unlock()
			w.origins.forget()
		}
		if err := w.Undelete(t.Context(), caller("root"), "payroll", ""); err != nil {
			t.Fatalf("noted=%t: %v", noted, err)
		}
		w.refuses(t, fmt.Sprintf("noted=%t", noted))
	}
}

// TestConflictCure: a key is to be deleted for a conflict only where no version of it was ever
// used here.
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
		_, decrypted := w.decrypt(t, w.ours)
		_, reencrypted := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.ours)
		for _, err := range []error{decrypted, reencrypted, w.CheckConflicts(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), not) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	says("never used", "delete the key here", "Do not delete")
	// What is used is another version of the key.
	if _, err := w.Generate(t.Context(), caller("alice"), "payroll", 1); err != nil {
		t.Fatal(err)
	}
	says("used", "Do not delete key payroll here", "delete the key here")
	w.restartOn(t, store)
	w.compare(t)
	says("used, after a restart", "Do not delete key payroll here", "delete the key here")

	// Requests that are refused for it ask the store no more.
	asked := &askedUses{Store: store}
	w.cfg.LastUses = asked
	for range 10 {
		w.refuses(t, "again")
	}
	if n := asked.n.Load(); n > 0 {
		t.Errorf("the store was asked %d times for what cannot change", n)
	}
}

// askedUses counts the questions after versions that were never used.
type askedUses struct {
	*sqlite.Store
	n atomic.Int64
}

func (a *askedUses) NeverUsed(ctx context.Context, version string) (bool, error) {
	a.n.Add(1)
	return a.Store.NeverUsed(ctx, version)
}

// newRecorded is newTwice with a store that knows whether the version here was used.
func newRecorded(t *testing.T) (*twice, *sqlite.Store) {
	t.Helper()
	store := openStore(t) // it outlives the ring
	w := newTwice(t)
	w.number(t, store, w.shared)
	w.cfg.Settings, w.cfg.Numbers, w.cfg.LastUses = store, store, store
	w.used = newLastUses(store, w.log)
	return w, store
}

// number has the store give a version's number, as it does when the HSM provider makes one.
func (w *twice) number(t *testing.T, store *sqlite.Store, version string) {
	t.Helper()
	n, _ := claviger.VersionNumber(version)
	numbered(t, store, "payroll", n)
}

// numbered has the store give a key's version that number, and then forget the making of it.
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

// madeAgain takes the source's key over once more, under the next number.
func (w *twice) madeAgain(t *testing.T) {
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

// restartOn is a restart of a process that was killed, on the same store.
func (w *twice) restartOn(t *testing.T, store *sqlite.Store) {
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
