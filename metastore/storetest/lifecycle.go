package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"claviger"
	"claviger/metastore"
)

func testConcurrency(t *testing.T, _ Backend, s metastore.Store, _ string) {
	writeConcurrently(t, s, s)
}

// testTwoStores writes through two stores at one location, like two processes.
func testTwoStores(t *testing.T, b Backend, s metastore.Store, location string) {
	writeConcurrently(t, s, b.open(t, location))
}

// workers write at the same time, each of them in this number of rounds.
const workers, rounds = 8, 12

// writeConcurrently writes from many goroutines, which use the stores in turn, and then checks the content of each
// store. The stores have one location.
func writeConcurrently(t *testing.T, stores ...metastore.Store) {
	ctx := t.Context()
	must(t, stores[0].Insert(ctx, key("shared", "00")))
	var wg sync.WaitGroup
	inserted := make(chan int, workers)
	for w := range workers {
		wg.Go(func() {
			s := stores[w%len(stores)]
			if err := s.Insert(ctx, key("one", fmt.Sprintf("1%02d", w))); err == nil {
				inserted <- w
			} else if !claviger.Is(err, claviger.KeyExists) {
				t.Errorf("insert: %v", err)
			}
			for r := range rounds {
				writeRound(t, s, w, r)
			}
		})
	}
	wg.Wait()
	if len(inserted) != 1 {
		t.Errorf("%d workers made the same key", len(inserted))
	}
	for _, s := range stores {
		checkConcurrent(t, s)
	}
}

// writeRound is round r of worker w. It creates a key, and adds a version to the key "shared".
func writeRound(t *testing.T, s metastore.Store, w, r int) {
	ctx := t.Context()
	id := fmt.Sprintf("%02d%02d", w, r)
	if _, err := s.Begin(ctx, metastore.Intent{Key: "own" + id, Op: "create", Refs: refs("f" + id)}); err != nil {
		t.Errorf("begin: %v", err)
	}
	if err := s.Append(ctx, "shared", version(id, int64(r))); err != nil {
		t.Errorf("append: %v", err)
	}
	if err := s.AddUse(ctx, []metastore.Use{{Source: "s", Version: "v", Op: "decrypt", Count: 1,
		Last: at(int64(r))}}); err != nil {
		t.Errorf("use: %v", err)
	}
	got, err := s.Get(ctx, "shared")
	if err != nil {
		t.Errorf("get: %v", err)
		return
	}
	if k := got[0]; k.Versions != len(k.List) ||
		!slices.ContainsFunc(k.List, func(v metastore.Version) bool { return v.ID == id }) {
		t.Errorf("Get misses a version that this worker wrote, or counts wrongly: %d, %v", k.Versions, k.List)
	}
	if _, _, err := s.ByVersion(ctx, "shared@"+id); err != nil {
		t.Errorf("by version: %v", err)
	}
	if err := s.Insert(ctx, key("own"+id, "f"+id)); err != nil {
		t.Errorf("insert: %v", err)
	}
}

// checkConcurrent checks a store after all workers have ended.
func checkConcurrent(t *testing.T, s metastore.Store) {
	t.Helper()
	ctx := t.Context()
	got, err := s.Get(ctx, "shared")
	must(t, err)
	if n := len(got[0].List); n != 1+workers*rounds {
		t.Errorf("%d versions, want %d", n, 1+workers*rounds)
	}
	// The versions of one worker are in the order in which this worker wrote them.
	last := make(map[string]string)
	for _, v := range got[0].List[1:] {
		if w := v.ID[:2]; last[w] >= v.ID {
			t.Errorf("version %s is after %s", v.ID, last[w])
		} else {
			last[w] = v.ID
		}
	}
	if us, err := s.Uses(ctx); err != nil || len(us) != 1 || us[0].Count != workers*rounds ||
		!us[0].Last.Equal(at(rounds-1)) {
		t.Errorf("uses %v, %v", us, err)
	}
	if names, err := s.Names(ctx); err != nil || len(names) != 2+workers*rounds {
		t.Errorf("%d names, %v", len(names), err)
	}
	if p, err := s.Pending(ctx); err != nil || len(p) != 0 {
		t.Errorf("intents %v, %v", p, err)
	}
}

func testReopen(t *testing.T, b Backend, _ metastore.Store, _ string) {
	ctx := t.Context()
	location := b.New(t)
	s, err := b.Open(ctx, location)
	must(t, err)
	k := key("k", "02", "01")
	must(t, s.Insert(ctx, k))
	must(t, s.Insert(ctx, key("gone", "03")))
	gone, err := s.Remove(ctx, "gone")
	must(t, err)
	must(t, s.AddUse(ctx, []metastore.Use{{Source: "s", Version: "k@0", Op: "decrypt", Count: 7, Last: at(9)}}))
	must(t, s.Put(ctx, "run", "item", []byte("record")))
	must(t, s.SetSetting(ctx, "token", "serial"))
	uri := s.URI()
	must(t, s.Close())

	s = b.open(t, location)
	if s.URI() != uri {
		t.Errorf("URI %q, before the reopening %q", s.URI(), uri)
	}
	got, err := s.Get(ctx, "k", "gone")
	must(t, err)
	wantKey(t, got[0], k)
	if got[1] != nil {
		t.Error("a removed key exists again")
	}
	if p, err := s.Pending(ctx); err != nil || len(p) != 1 || p[0].Key != "gone" ||
		!slices.Equal(p[0].Refs, gone.Refs) {
		t.Errorf("Pending %v, %v", p, err)
	}
	if us, err := s.Uses(ctx); err != nil || len(us) != 1 || us[0].Count != 7 || !us[0].Last.Equal(at(9)) {
		t.Errorf("Uses %v, %v", us, err)
	}
	if rs, err := s.Records(ctx, "run"); err != nil || len(rs) != 1 || string(rs[0].Data) != "record" {
		t.Errorf("Records %v, %v", rs, err)
	}
	if v, ok, err := s.Setting(ctx, "token"); v != "serial" || !ok || err != nil {
		t.Errorf("Setting %q, %v, %v", v, ok, err)
	}
}

// calls returns a call of each method that takes a context, with valid arguments, by the method's name.
func calls(s metastore.Store) map[string]func(context.Context) error {
	all := map[string]func(context.Context) error{
		"Names":     func(ctx context.Context) error { _, err := s.Names(ctx); return err },
		"Page":      func(ctx context.Context) error { _, _, err := s.Page(ctx, "", 1); return err },
		"Get":       func(ctx context.Context) error { _, err := s.Get(ctx, "k"); return err },
		"ByVersion": func(ctx context.Context) error { _, _, err := s.ByVersion(ctx, "k@01"); return err },
		"Insert":    func(ctx context.Context) error { return s.Insert(ctx, key("new", "0f")) },
		"Prepend":   func(ctx context.Context) error { return s.Prepend(ctx, "k", version("02", 1)) },
		"Amend":     func(ctx context.Context) error { return s.Amend(ctx, key("k", "01").Metadata) },
		"Append":    func(ctx context.Context) error { return s.Append(ctx, "k", version("02", 1)) },
		"Remove":    func(ctx context.Context) error { _, err := s.Remove(ctx, "k"); return err },
		"RemoveVersion": func(ctx context.Context) error {
			_, err := s.RemoveVersion(ctx, "k", "01")
			return err
		},
		"Begin": func(ctx context.Context) error {
			_, err := s.Begin(ctx, metastore.Intent{Key: "i", Op: "create"})
			return err
		},
		"Pending":    func(ctx context.Context) error { _, err := s.Pending(ctx); return err },
		"Drop":       func(ctx context.Context) error { return s.Drop(ctx, "k") },
		"AddUse":     func(ctx context.Context) error { return s.AddUse(ctx, []metastore.Use{{Source: "s"}}) },
		"Uses":       func(ctx context.Context) error { _, err := s.Uses(ctx); return err },
		"Put":        func(ctx context.Context) error { return s.Put(ctx, "run", "item", nil) },
		"Records":    func(ctx context.Context) error { _, err := s.Records(ctx, "run"); return err },
		"Runs":       func(ctx context.Context) error { _, err := s.Runs(ctx); return err },
		"Setting":    func(ctx context.Context) error { _, _, err := s.Setting(ctx, "n"); return err },
		"SetSetting": func(ctx context.Context) error { return s.SetSetting(ctx, "n", "v") },
		"Lock":       func(ctx context.Context) error { _, err := s.Lock(ctx, "l"); return err },
		"TryLock":    func(ctx context.Context) error { _, _, err := s.TryLock(ctx, "l"); return err },
		"Check":      s.Check,
	}
	maps.Copy(all, stepCalls(s))
	maps.Copy(all, deletedKeysCalls(s))
	maps.Copy(all, claimCalls(s))
	maps.Copy(all, numberCalls(s))
	return all
}

func testClosed(t *testing.T, _ Backend, s metastore.Store, _ string) {
	must(t, s.Insert(t.Context(), key("k", "01")))
	must(t, s.Close())
	for name, call := range calls(s) {
		if err := call(t.Context()); !claviger.Is(err, claviger.Closed) {
			t.Errorf("%s after Close: %v, want kind %q", name, err, claviger.Closed)
		}
	}
	wantKind(t, s.AddUse(t.Context(), nil), claviger.Closed)
	wantKind(t, s.RecordUses(t.Context(), nil), claviger.Closed)
	_, err := s.DeletedKeys(t.Context(), "\x00")
	wantKind(t, err, claviger.Closed)
	_, err = s.Pending(t.Context(), "\x00")
	wantKind(t, err, claviger.Closed)
	if _, _, err := s.ByVersion(t.Context(), "no version"); !claviger.Is(err, claviger.Closed) {
		t.Errorf("ByVersion of a name that no version can have, after Close: %v", err)
	}
	must(t, s.Close())
}

func testCancelled(t *testing.T, _ Backend, s metastore.Store, _ string) {
	want := key("k", "01")
	must(t, s.Insert(t.Context(), want))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range calls(s) {
		err := call(ctx)
		if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context: %v, want kind %q and context.Canceled", name, err,
				claviger.Unavailable)
		}
	}
	// No call changed anything, and the store still works.
	got, err := s.Get(t.Context(), "k", "new")
	must(t, err)
	wantKey(t, got[0], want)
	if got[1] != nil {
		t.Error("a cancelled Insert wrote the key")
	}
	free, ok, err := s.TryLock(t.Context(), "l")
	if !ok || err != nil {
		t.Fatalf("TryLock after cancelled calls: %v, %v", ok, err)
	}
	free()
}
