package metastore_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/metastore/storetest"
)

var errInjected = errors.New("injected fault")

// failing is a store of which one call fails.
type failing struct {
	storetest.Intercepted
	calls int
	fail  int // the number of the call that fails, from 1; 0: none
	extra string
}

func (f *failing) call(context.Context, string) error {
	if f.calls++; f.calls == f.fail {
		return errInjected
	}
	return nil
}

// Names also returns the name extra, as if the key of that name were deleted before Get.
func (f *failing) Names(ctx context.Context) ([]string, error) {
	names, err := f.Intercepted.Names(ctx)
	if err == nil && f.extra != "" {
		names = append(names, f.extra)
	}
	return names, err
}

// opened returns a store with the keys "a" and "b", each with version 0.
func opened(t *testing.T) *failing {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "m.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for _, name := range []string{"a", "b"} {
		k := metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: claviger.DefaultCipher, BitLength: 256,
			Created: time.Now()}, List: []metastore.Version{{ID: "0", Object: "0" + name, Created: time.Now(),
			Check: make([]byte, 8)}}}
		if err := s.Insert(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	f := &failing{}
	f.Store, f.Before = s, f.call
	return f
}

// TestEachCallFails fails each call that an operation makes to the store. The operation must return that error.
func TestEachCallFails(t *testing.T) {
	s := opened(t)
	hold := func(wait bool) func(context.Context) error {
		return func(ctx context.Context) error {
			_, unlock, ok, err := metastore.Hold(ctx, s, "lock", wait)
			if ok != (err == nil) {
				t.Errorf("Hold: ok is %t, with error %v", ok, err)
			}
			if ok {
				unlock()
			}
			return err
		}
	}
	for name, do := range map[string]func(context.Context) error{
		"SetAlias": func(ctx context.Context) error { return metastore.SetAlias(ctx, s, "Finance") },
		"Alias": func(ctx context.Context) error { // of a name that older releases folded in another way
			_, _, err := metastore.Alias(ctx, s, "\u0130")
			return err
		},
		"Conflicts": func(ctx context.Context) error { _, err := metastore.Conflicts(ctx, s); return err },
		"SetConflicts": func(ctx context.Context) error {
			return metastore.SetConflicts(ctx, s, map[string][]string{"jceks://file/x": {"a@0"}})
		},
		"MayHaveUsed": func(ctx context.Context) error {
			_, err := metastore.MayHaveUsed(ctx, s, s, claviger.ParseVersion("a@0"))
			return err
		},
		"SetMoved":   func(ctx context.Context) error { return metastore.SetMoved(ctx, s, "file:///x") },
		"MovedTo":    func(ctx context.Context) error { _, err := metastore.MovedTo(ctx, s); return err },
		"ClearMoved": func(ctx context.Context) error { return metastore.ClearMoved(ctx, s) },
		"Each": func(ctx context.Context) error {
			return metastore.Each(ctx, s, func(*metastore.Key) {})
		},
		"Hold": hold(true), "Hold without waiting": hold(false),
	} {
		s.calls, s.fail = 0, 0
		if err := do(t.Context()); err != nil || s.calls == 0 {
			t.Errorf("%s: %v, after %d calls", name, err, s.calls)
		}
		for n, last := 1, s.calls; n <= last; n++ {
			s.calls, s.fail = 0, n
			if err := do(t.Context()); !errors.Is(err, errInjected) {
				t.Errorf("%s: call %d of %d fails: %v", name, n, last, err)
			}
		}
	}
}

// TestAliasPrefersJavaFolding checks that an alias of an older release does not hide the alias of today.
func TestAliasPrefersJavaFolding(t *testing.T) {
	s := settings{"alias.i": "I"}
	if err := metastore.SetAlias(t.Context(), s, "\u0130"); err != nil {
		t.Fatal(err)
	}
	if here, ok, err := metastore.Alias(t.Context(), s, "\u0130"); err != nil || !ok || here != "\u0130" {
		t.Errorf("%+q, %t, %v", here, ok, err)
	}
}

// TestConflicts checks that the conflicts are read as they were stored, and that a damaged setting is an error.
func TestConflicts(t *testing.T) {
	s := settings{}
	if got, err := metastore.Conflicts(t.Context(), s); err != nil || got != nil {
		t.Errorf("a new store: %v, %v", got, err)
	}
	if err := metastore.SetConflicts(t.Context(), s, map[string][]string{"x": {"a@0", "a@1"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := metastore.Conflicts(t.Context(), s); err != nil || len(got) != 1 ||
		!slices.Equal(got["x"], []string{"a@0", "a@1"}) {
		t.Errorf("%v, %v", got, err)
	}
	for name := range s {
		s[name] = "{"
	}
	if got, err := metastore.Conflicts(t.Context(), s); !claviger.Is(err, claviger.Internal) || got != nil {
		t.Errorf("half a setting: %v, %v", got, err)
	}
}

// TestMayHaveUsed checks which versions may have been used here.
func TestMayHaveUsed(t *testing.T) {
	s := opened(t)
	for name, want := range map[string]bool{"a@0": true, "a@1": false, "other@0": false, "a@0123456789abcdef": false,
		"a": false} {
		got, err := metastore.MayHaveUsed(t.Context(), s, s, claviger.ParseVersion(name))
		if err != nil || got != want {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

// TestMoved checks that a store is marked as moved until the mark is cleared.
func TestMoved(t *testing.T) {
	s := settings{}
	if m, err := metastore.MovedTo(t.Context(), s); err != nil || m != nil {
		t.Errorf("a new store: %v, %v", m, err)
	}
	if err := metastore.SetMoved(t.Context(), s, "file:///x"); err != nil {
		t.Fatal(err)
	}
	if m, err := metastore.MovedTo(t.Context(), s); err != nil || m == nil || m.To != "file:///x" || m.At.IsZero() {
		t.Errorf("%v, %v", m, err)
	}
	if err := metastore.ClearMoved(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if m, err := metastore.MovedTo(t.Context(), s); err != nil || m != nil {
		t.Errorf("after ClearMoved: %v, %v", m, err)
	}
	if m, err := metastore.ParseMoved("{"); !claviger.Is(err, claviger.Internal) || m != nil {
		t.Errorf("half a setting: %v, %v", m, err)
	}
}

// TestEach checks that Each finds all keys, and omits a key that is deleted during the call.
func TestEach(t *testing.T) {
	s := opened(t)
	s.extra = "deleted"
	var got []string
	if err := metastore.Each(t.Context(), s, func(k *metastore.Key) { got = append(got, k.Name) }); err != nil ||
		!slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// holder is a store that can lose a held lock.
type holder struct {
	metastore.Store
	wait []bool
}

func (h *holder) Hold(ctx context.Context, _ string, wait bool) (context.Context, func(), bool, error) {
	h.wait = append(h.wait, wait)
	return ctx, func() {}, true, nil
}

// TestHold checks that Hold waits for a lock only if it should, and that it uses the Hold of a store.
func TestHold(t *testing.T) {
	s := opened(t)
	_, unlock, ok, err := metastore.Hold(t.Context(), s, "lock", false)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, ok, err := metastore.Hold(ctx, s, "lock", true); ok || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a lock that is taken, with waiting: %t, %v", ok, err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, _, ok, err := metastore.Hold(ctx, s, "lock", false); ok || err != nil {
		t.Errorf("a lock that is taken, without waiting: %t, %v", ok, err)
	}
	h := &holder{Store: s}
	for _, wait := range []bool{true, false} {
		if _, _, ok, err := metastore.Hold(t.Context(), h, "lock", wait); !ok || err != nil {
			t.Errorf("a Holder: %t, %v", ok, err)
		}
	}
	if !slices.Equal(h.wait, []bool{true, false}) {
		t.Errorf("a Holder got %v", h.wait)
	}
}

// TestContentCompare checks what counts as an empty content, and as a difference.
func TestContentCompare(t *testing.T) {
	since := []any{metastore.SettingLastUsesSince, "0"}
	for what, tt := range map[string]struct {
		rows  map[string][][]any
		empty bool
	}{
		"nothing":         {nil, true},
		"a new store":     {map[string][][]any{"setting": {since}, "ez_key": nil}, true},
		"another setting": {map[string][][]any{"setting": {since, {"token", "x"}}}, false},
		"a key":           {map[string][][]any{"ez_key": {{metastore.SettingLastUsesSince}}}, false},
	} {
		if c := (&metastore.Content{Rows: tt.rows}); c.Empty() != tt.empty {
			t.Errorf("%s: empty is %t", what, c.Empty())
		}
	}
	from := &metastore.Content{NextToken: 5, NextMasterKey: 5}
	for _, tt := range []struct {
		token, masterKey int64
		same             bool
	}{{5, 5, true}, {6, 6, true}, {4, 5, false}, {5, 4, false}} {
		got := from.Differ(&metastore.Content{NextToken: tt.token, NextMasterKey: tt.masterKey})
		if slices.Contains(got, "counters") == tt.same || len(got) > 1 {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

// TestClockCure checks that only the error about a lower bound says how to correct the store.
func TestClockCure(t *testing.T) {
	for _, bound := range []bool{false, true} {
		err := metastore.Clocks{LowerBound: bound, Ahead: -time.Hour}.Check()
		if err == nil || strings.Contains(err.Error(), "claviger metastore clock") != bound {
			t.Errorf("bound %t: %v", bound, err)
		}
	}
}
