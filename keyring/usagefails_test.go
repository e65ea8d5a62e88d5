package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// logTo returns a logger that writes to b.
func logTo(b *strings.Builder) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// stillUsage is a usage whose uses are written only by the test: run does not write.
func stillUsage(store metastore.Usage, clock metastore.Clock, kept UsesKept, log *slog.Logger) *usage {
	u := newUsage(nil, clock, kept, log)
	u.store = store
	return u
}

// pendingUse adds a use that is not written yet.
func (u *usage) pendingUse(version string, n int64, last time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.merge(useName{"s", version, useDecrypt}, n, last)
}

// TestUsesWithoutTheStoresTime: while the store's time is not known, no use is
// written: it would have a wrong time. It is written later.
func TestUsesWithoutTheStoresTime(t *testing.T) {
	store, clock := &brittleStore{uses: map[string]int64{}}, &clocks{err: errInjected}
	u := stillUsage(store, clock, nil, slog.New(slog.DiscardHandler))
	u.pendingUse("k@0", 2, time.Now())
	if err := u.write(); !errors.Is(err, errInjected) || len(store.uses) > 0 {
		t.Errorf("%v; written: %v", err, store.uses)
	}
	clock.err = nil
	if err := u.write(); err != nil || store.uses["k@0 decrypt"] != 2 {
		t.Errorf("%v; written: %v", err, store.uses)
	}
}

// closedStore accepts no use, and counts the attempts.
type closedStore struct {
	metastore.Usage
	err      error
	attempts int
}

func (s *closedStore) AddUse(context.Context, []metastore.Use) error { s.attempts++; return s.err }

// TestUsesThatTheStoreRefuses: a use that the store accepts under no name stays pending, and is an error. A store that
// is unreachable or closed gets one attempt only.
func TestUsesThatTheStoreRefuses(t *testing.T) {
	for kind, attempts := range map[claviger.Kind]int{
		claviger.Unavailable: 1, claviger.Closed: 1, claviger.Invalid: 5, // both, and each under two names
	} {
		store := &closedStore{err: claviger.E("test", kind, "", errInjected)}
		u := stillUsage(store, nil, nil, slog.New(slog.DiscardHandler))
		u.pendingUse("k@0", 1, time.Now())
		u.pendingUse("k@1", 2, time.Now())
		err := u.flush()
		if got := counts(uses(u.pending)); !errors.Is(err, errInjected) || store.attempts != attempts ||
			!slices.Equal(got, []string{"s k@0 decrypt 1", "s k@1 decrypt 2"}) {
			t.Errorf("%v: %v, %d attempts, pending %q", kind, err, store.attempts, got)
		}
	}
}

// TestWritePartsStopsWhenTheStoreGoes: if the store can no longer be reached after
// it has refused the whole list, the rest is not tried, and nothing is lost.
func TestWritePartsStopsWhenTheStoreGoes(t *testing.T) {
	var calls []int
	var kept []string
	err := writeParts([]string{"a", "b", "c", "d"}, func(list []string) error {
		calls = append(calls, len(list))
		if len(list) == 4 {
			return claviger.E("test", claviger.Invalid, "", nil)
		}
		return claviger.E("test", claviger.Unavailable, "", errInjected)
	}, func(list []string) { kept = append(kept, list...) })
	if !errors.Is(err, errInjected) || !slices.Equal(calls, []int{4, 2}) ||
		!slices.Equal(kept, []string{"a", "b", "c", "d"}) {
		t.Errorf("%v, calls %v, kept %q", err, calls, kept)
	}
}

// brittleKept is UsesKept that fails while err is set, and counts its calls.
type brittleKept struct {
	heldUses
	err   error
	calls int
}

func (k *brittleKept) Load() ([]metastore.Use, error) { return k.list, k.err }
func (k *brittleKept) Keep(list []metastore.Use) error {
	k.calls++
	if k.err == nil {
		k.list = list
	}
	return k.err
}

// TestUsesAreKeptOnce: if uses can neither be written nor kept, each write tries
// to keep them again, until that has succeeded once. While they are not kept, a write says so.
func TestUsesAreKeptOnce(t *testing.T) {
	errKept := errors.New("disk full")
	var logged strings.Builder
	kept := &brittleKept{err: errKept}
	store := &closedStore{err: claviger.E("test", claviger.Unavailable, "", errInjected)}
	u := stillUsage(store, nil, kept, logTo(&logged))
	u.pendingUse("k@0", 3, time.Now())
	for i := range 4 {
		err := u.write()
		if !errors.Is(err, errInjected) || errors.Is(err, errKept) != (i < 2) {
			t.Errorf("write %d: %v", i, err)
		}
		if i == 1 {
			kept.err = nil
		}
	}
	if got := counts(kept.list); kept.calls != 3 || !slices.Equal(got, []string{"s k@0 decrypt 3"}) {
		t.Errorf("kept %d times: %q", kept.calls, got)
	}
	if n := strings.Count(logged.String(), "could not be written"); n != 4 {
		t.Errorf("logged %d times: %s", n, logged.String())
	}
	store.err = nil
	err := u.write()
	if n := strings.Count(logged.String(), "could not be written"); err != nil || len(kept.list) > 0 || n != 4 {
		t.Errorf("%v, kept %v, logged %s", err, kept.list, logged.String())
	}
}

// TestSinceWhenUsesAreNotWritten: CheckUses returns an error while uses are not
// written. The error has the time of the first failing write.
func TestSinceWhenUsesAreNotWritten(t *testing.T) {
	l := newTestRing(t, nil)
	l.usage.store = &closedStore{err: claviger.E("test", claviger.Unavailable, "", errInjected)}
	t.Cleanup(func() { l.usage.store = nil }) // the Ring's end closes no store
	l.usage.pendingUse("k@0", 1, time.Now())
	if err := l.CheckUses(t.Context()); err != nil {
		t.Error(err)
	}
	began := time.Now()
	_ = l.usage.write()
	first := l.usage.since
	_ = l.usage.write()
	if first.Before(began) || !l.usage.since.Equal(first) {
		t.Errorf("since %v, then %v", first, l.usage.since)
	}
	if err := l.CheckUses(t.Context()); !errors.Is(err, errInjected) {
		t.Error(err)
	}
}

// TestFirstUsesAreBounded: with a store, the last uses in memory are bounded too.
func TestFirstUsesAreBounded(t *testing.T) {
	u := newUsage(&brittleStore{uses: map[string]int64{}}, nil, nil, slog.New(slog.DiscardHandler))
	u.limit = 3
	for i := range 8 {
		u.add("s", fmt.Sprintf("k@%d", i), useDecrypt, 1)
	}
	if err := u.close(); err != nil || len(u.used) != u.limit {
		t.Errorf("%d in memory, %v", len(u.used), err)
	}
}

// storedUse is a store with one use.
type storedUse struct {
	closedStore
	use metastore.Use
}

func (s *storedUse) Uses(context.Context) ([]metastore.Use, error) {
	return []metastore.Use{s.use}, nil
}

// TestLastUseIsTheLatest: the last use is the later of the stored use and the use that is not written yet.
func TestLastUseIsTheLatest(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ stored, pending time.Duration }{{-time.Hour, 0}, {0, -time.Hour}} {
		store := &storedUse{use: metastore.Use{Source: "s", Version: "k@0", Op: useDecrypt, Count: 1,
			Last: now.Add(c.stored)}}
		u := stillUsage(store, nil, nil, slog.New(slog.DiscardHandler))
		u.pendingUse("k@0", 1, now.Add(c.pending))
		list, err := u.all(t.Context())
		if err != nil || len(list) != 1 || list[0].Count != 2 || !list[0].Last.Equal(now) {
			t.Errorf("%+v: %+v, %v", c, list, err)
		}
	}
}

// unreadStore is a store whose uses cannot be read.
type unreadStore struct{ brittleStore }

func (*unreadStore) Uses(context.Context) ([]metastore.Use, error) { return nil, errInjected }

// TestStartWithoutEarlierUses: the server starts although the uses of earlier runs
// cannot be read. The log says so.
func TestStartWithoutEarlierUses(t *testing.T) {
	var logged strings.Builder
	l, _ := withSource(t, func(c *Config) {
		c.Usage, c.Log = &unreadStore{brittleStore{uses: map[string]int64{}}}, logTo(&logged)
		c.UsesKept = &brittleKept{err: errInjected}
	}, "k")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"the counters of source key versions could not be read",
		"uses of source key versions that an earlier process kept cannot be read"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log has no %q: %s", want, logged.String())
		}
	}
}
