package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// emptyStore returns the file of a new store. It is made once, because most of the time is spent on the schema.
var emptyStore = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "meta.db")
	s, err := sqlite.Open(context.Background(), path)
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

func openStore(t *testing.T) *sqlite.Store {
	t.Helper()
	file, err := emptyStore()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "meta.db")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// counts returns uses without their times, sorted, so that they can be compared.
func counts(uses []metastore.Use) []string {
	var list []string
	for _, u := range uses {
		list = append(list, fmt.Sprintf("%s %s %s %d", u.Source, u.Version, u.Op, u.Count))
	}
	slices.Sort(list)
	return list
}

// TestSourceUseOverRestarts: uses of a source's versions are counted in the store, across restarts.
func TestSourceUseOverRestarts(t *testing.T) {
	store := openStore(t)
	begun := time.Now().Add(-time.Second)
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 10)
	use := func(r *Ring) {
		t.Helper()
		for _, e := range es[:3] {
			if _, err := r.Decrypt(t.Context(), caller("u"), "k", true, e); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.ReencryptBatch(t.Context(), caller("nn"), "k", es); err != nil {
			t.Fatal(err)
		}
	}
	want := func(r *Ring, times int) {
		t.Helper()
		uses, err := r.SourceUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := counts(uses), []string{
			fmt.Sprintf("%s k@0 decrypt %d", farURI, 3*times), fmt.Sprintf("%s k@0 reencrypt %d", farURI, 10*times),
		}; !slices.Equal(got, want) {
			t.Errorf("use %q, want %q", got, want)
		}
		for _, u := range uses {
			if u.Last.Before(begun) || u.Last.After(time.Now().Add(time.Second)) {
				t.Errorf("last use at %v", u.Last)
			}
		}
	}
	use(l.Ring)
	want(l.Ring, 1)
	if err := l.usage.flush(); err != nil {
		t.Fatal(err)
	}
	want(l.Ring, 1)
	use(l.Ring)
	want(l.Ring, 2) // written and pending together
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	want(again, 2)
	use(again)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	uses, err := store.Uses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := counts(uses); got[0] != farURI+" k@0 decrypt 9" {
		t.Errorf("stored %q", got)
	}
}

// brittleStore is a store that fails while the test says so.
type brittleStore struct {
	mu     sync.Mutex
	broken bool
	uses   map[string]int64
}

func (s *brittleStore) AddUse(_ context.Context, uses []metastore.Use) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return claviger.E("store", claviger.Unavailable, "", errors.New("disk full"))
	}
	for _, u := range uses {
		s.uses[u.Version+" "+u.Op] += u.Count
	}
	return nil
}

func (s *brittleStore) Uses(context.Context) ([]metastore.Use, error) { return nil, nil }

// TestUsageIsKeptWhenNotWritten: uses that the store did not take are written later, once.
func TestUsageIsKeptWhenNotWritten(t *testing.T) {
	store := &brittleStore{broken: true, uses: map[string]int64{}}
	u := newUsage(store, nil, nil, slog.New(slog.DiscardHandler))
	u.add("s", "k@0", useDecrypt, 2)
	if err := u.flush(); err == nil {
		t.Error("no error")
	}
	u.add("s", "k@0", useDecrypt, 1)
	if err := u.flush(); err == nil {
		t.Error("no error")
	}
	store.mu.Lock()
	store.broken = false
	store.mu.Unlock()
	if err := u.close(); err != nil {
		t.Error(err)
	}
	if got := store.uses["k@0 decrypt"]; got != 3 {
		t.Errorf("%d uses written, want 3", got)
	}
}

// refusingStore refuses uses of one version, like a database that cannot store the version's name.
type refusingStore struct {
	*sqlite.Store
	refused string
}

func (s *refusingStore) AddUse(ctx context.Context, uses []metastore.Use) error {
	for _, u := range uses {
		if u.Version == s.refused {
			return claviger.Errorf("store", claviger.Invalid, "", "the name does not fit")
		}
	}
	return s.Store.AddUse(ctx, uses)
}

func (s *refusingStore) RecordUses(ctx context.Context, uses []metastore.LastUse) error {
	for _, u := range uses {
		if u.Version == s.refused {
			return claviger.Errorf("store", claviger.Invalid, "", "the name does not fit")
		}
	}
	return s.Store.RecordUses(ctx, uses)
}

// TestUsesWithOneRefused: if the store refuses uses of one version, uses of other versions are written, and the
// version's source still counts as needed.
func TestUsesWithOneRefused(t *testing.T) {
	store := &refusingStore{openStore(t), "bad@0"}
	u := newUsage(store, nil, nil, slog.New(slog.DiscardHandler))
	last := newLastUses(store, slog.New(slog.DiscardHandler))
	versions := []string{"a@0", "b@0", "bad@0", "c@0", "d@0"}
	u.mu.Lock() // so that they are written together
	for _, v := range versions {
		u.merge(useName{"s", v, useDecrypt}, 2, time.Now())
		last.record(v)
	}
	u.mu.Unlock()
	if err := errors.Join(u.flush(), u.close()); err != nil {
		t.Error(err)
	}
	uses, err := store.Uses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(uses), []string{"s (others) decrypt 2", "s a@0 decrypt 2", "s b@0 decrypt 2",
		"s c@0 decrypt 2", "s d@0 decrypt 2"}; !slices.Equal(got, want) {
		t.Errorf("in the store %q, want %q", got, want)
	}
	if err := last.flush(); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("the last use that is not written: %v", err)
	}
	times, _, err := store.LastUses(t.Context(), versions...)
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range times {
		if at.IsZero() != (versions[i] == "bad@0") {
			t.Errorf("last use of %s: %v", versions[i], at)
		}
	}
	_ = last.close() // the refused use is left
}

// TestUsageIsBounded: above the limit no use is lost, but uses of several versions are counted together.
func TestUsageIsBounded(t *testing.T) {
	u := newUsage(nil, nil, nil, slog.New(slog.DiscardHandler))
	u.limit = 10
	for i := range 25 {
		u.add("s", fmt.Sprintf("k@%d", i), useDecrypt, 1)
	}
	uses, err := u.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(uses) != 11 || !slices.Contains(counts(uses), "s "+OtherVersions+" decrypt 15") {
		t.Errorf("use %q", counts(uses))
	}
}

// TestUsageConcurrently: no use is lost if uses are added and written at the same time.
func TestUsageConcurrently(t *testing.T) {
	store := &brittleStore{uses: map[string]int64{}}
	u := newUsage(store, nil, nil, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				u.add("s", fmt.Sprintf("k@%d", i%3), useReencrypt, 2)
				if i%100 == 0 {
					if err := u.flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := u.close(); err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, n := range store.uses {
		total += n
	}
	if total != 8*500*2 {
		t.Errorf("%d uses written of %d", total, 8*500*2)
	}
}

// TestUnservedUses: a source is not configured although its migration is not finished. A request for one of its EDEKs
// counts as a use, so that the migration does not end while clients need the source. Requests of users without the
// right, and EDEKs that a client made up, do not count.
func TestUnservedUses(t *testing.T) {
	want := func(s *shadowRing, what string, list ...string) {
		t.Helper()
		uses, err := s.SourceUse(t.Context())
		if err != nil || !slices.Equal(counts(uses), list) {
			t.Errorf("%s: %q, %v, want %q", what, counts(uses), err, list)
		}
	}
	for _, here := range []string{migrated, softly, purged} {
		s := newShadowRing(t, here, "gone", "payroll", false)
		s.past.list[0].Numbered, s.past.list[0].Counted = true, 1
		s.origins.forget()
		requests := func(user string, e claviger.EDEK) {
			t.Helper()
			_, err := s.Decrypt(t.Context(), caller(user), "payroll", true, e)
			wantKind(t, err, claviger.SourceUnreachable)
		}
		requests("bob", s.edek)
		made := s.edek
		made.Version = "payroll@7"
		requests("alice", made)
		want(s, here)
		requests("alice", s.edek)
		requests("alice", s.edek)
		want(s, here, farURI+" payroll@0 unserved 2")
		if here == migrated {
			if _, err := s.ReencryptBatch(t.Context(), caller("nn"), "payroll", []claviger.EDEK{s.edek,
				s.edek}); !claviger.Is(err, claviger.SourceUnreachable) {
				t.Error(err)
			}
			want(s, "re-encrypted", farURI+" payroll@0 unserved 4")
		}
	}
	// A client can make up opaque names. No more of them count than the source has versions.
	s := newShadowRing(t, migrated, "gone", "payroll", false)
	s.past.list[0].Counted = 2
	for i := range 5 {
		e := s.edek
		e.Version = fmt.Sprintf("payroll@x%d", i)
		_, err := s.Decrypt(t.Context(), caller("alice"), "payroll", true, e)
		wantKind(t, err, claviger.SourceUnreachable)
	}
	want(s, "made up", farURI+" payroll@x0 unserved 1", farURI+" payroll@x1 unserved 1")
	s = newShadowRing(t, ended, "gone", "payroll", false)
	_, err := s.Decrypt(t.Context(), caller("alice"), "payroll", true, s.edek)
	wantKind(t, err, claviger.VersionNotFound)
	want(s, "finished")
}

// heldUses is a UsesKept in memory.
type heldUses struct{ list []metastore.Use }

func (h *heldUses) Load() ([]metastore.Use, error) { return h.list, nil }
func (h *heldUses) Keep(l []metastore.Use) error   { h.list = l; return nil }

// TestUsesOutlastTheProcess: uses that the store does not take are kept when the process ends, are reported, and are
// written once by the next process.
func TestUsesOutlastTheProcess(t *testing.T) {
	store, held := &brittleStore{broken: true, uses: map[string]int64{}}, &heldUses{}
	u := newUsage(store, nil, held, slog.New(slog.DiscardHandler))
	u.add("s", "k@0", useDecrypt, 2)
	for began := time.Now(); u.checkWritten() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("no error says that counts are behind")
		}
	}
	u.add("s", "k@0", useDecrypt, 1)
	if err := u.close(); err == nil {
		t.Error("the error at the end does not name what is not written")
	}
	if got := counts(held.list); !slices.Equal(got, []string{"s k@0 decrypt 3"}) {
		t.Errorf("kept: %q", got)
	}
	store.broken = false
	again := newUsage(store, nil, held, slog.New(slog.DiscardHandler))
	if err := again.close(); err != nil {
		t.Error(err)
	}
	if got := store.uses["k@0 decrypt"]; got != 3 || len(held.list) != 0 || again.checkWritten() != nil {
		t.Errorf("%d uses written, want 3; kept still %v; %v", got, held.list, again.checkWritten())
	}
}

// TestUsesAreDatedByTheStore: a use gets the later of two times: the host's and the store's. A use that an earlier
// process kept gets the time at which it is written.
func TestUsesAreDatedByTheStore(t *testing.T) {
	const day = 24 * time.Hour
	for ahead, want := range map[time.Duration]time.Duration{-3 * day: 3 * day, 3 * day: 0, 0: 0} {
		store := openStore(t)
		u := newUsage(store, &clocks{there: -ahead}, nil, slog.New(slog.DiscardHandler))
		u.add("kms://old", "k@0", useDecrypt, 1)
		if err := u.flush(); err != nil {
			t.Fatal(err)
		}
		list, err := store.Uses(t.Context())
		if err != nil || len(list) != 1 || list[0].Last.Sub(time.Now().Add(want)).Abs() > 5*time.Second {
			t.Errorf("a clock that is %v ahead: %+v, %v, want %v from now", ahead, list, err, want)
		}
		if err := u.close(); err != nil {
			t.Error(err)
		}
	}
	// A use that an earlier process kept, with any clock, gets the time at which it is written.
	store := openStore(t)
	u := newUsage(store, &clocks{}, &heldUses{list: []metastore.Use{{Source: "kms://old", Version: "k@0",
		Op: useDecrypt, Count: 2,
		Last: time.Now().Add(-3 * day)}}}, slog.New(slog.DiscardHandler))
	if err := u.close(); err != nil {
		t.Fatal(err)
	}
	list, err := store.Uses(t.Context())
	if err != nil || len(list) != 1 || list[0].Count != 2 || time.Since(list[0].Last).Abs() > 5*time.Second {
		t.Errorf("kept uses: %+v, %v", list, err)
	}
}
