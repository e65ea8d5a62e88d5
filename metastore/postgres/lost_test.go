package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// lostMessage is a part of the error of a store that lacks changes.
const lostMessage = "lacks changes that were acknowledged"

// wantLost demands that each error says that the store lacks changes, or that there is none.
func wantLost(t *testing.T, when string, lost bool, errs map[string]error) {
	t.Helper()
	for what, err := range errs {
		if lost && (!claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), lostMessage)) ||
			!lost && err != nil {
			t.Errorf("%s, %s: %v", when, what, err)
		}
	}
}

// missing returns the errors of calls whose results say that the key "missing" does not exist.
func missing(ctx context.Context, s *postgres.Store) map[string]error {
	_, names := s.Names(ctx)
	_, _, page := s.Page(ctx, "", 1)
	_, get := s.Get(ctx, "k", "missing")
	_, _, version := s.ByVersion(ctx, "missing@0")
	if claviger.Is(version, claviger.VersionNotFound) {
		version = nil
	}
	_, epoch := s.Epoch(ctx, "missing")
	return map[string]error{"Names": names, "Page": page, "Get": get, "ByVersion": version, "Epoch": epoch}
}

// changes returns the errors of calls that change the store, or copy it.
func changes(ctx context.Context, s *postgres.Store, name string) map[string]error {
	_, content := s.Content(ctx)
	return map[string]error{"Insert": s.Insert(ctx, key(name, name)), "CheckWrites": s.CheckWrites(ctx),
		"Content": content}
}

// TestLostChanges follows two nodes from the moment in which one of them finds changes missing, until an operator has
// given the changes up.
func TestLostChanges(t *testing.T) {
	ctx := t.Context()
	incomplete := metastore.AllowIncomplete(ctx)
	a, b := openTwice(t)
	if err := a.Insert(ctx, key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	catchUp := func(s *postgres.Store) (notices []metastore.Notice) {
		t.Helper()
		if err := s.CatchUp(ctx, func(n metastore.Notice) { notices = append(notices, n) }); err != nil {
			t.Fatal(err)
		}
		return notices
	}
	catchUp(a)
	catchUp(b)
	wantLost(t, "before", false, missing(ctx, a))
	a.Lose("x", "x", "y")
	wantLost(t, "after the loss", true, missing(ctx, a))
	wantLost(t, "after the loss", true, changes(ctx, a, "bb"))
	wantLost(t, "with AllowIncomplete", false, missing(incomplete, a))
	if keys, err := a.Get(ctx, "k"); err != nil || keys[0] == nil {
		t.Errorf("a key that is there: %v, %v", keys, err)
	}
	if _, _, err := a.ByVersion(ctx, "k@aa"); err != nil {
		t.Errorf("a version that is there: %v", err)
	}
	if last, ok := a.LastWrite(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), lostMessage) {
		t.Errorf("LastWrite: %+v, %t", last, ok)
	}
	wantLost(t, "the other node, before it knows", false, missing(ctx, b))
	for range 2 {
		if n := catchUp(a); len(n) > 0 {
			t.Errorf("notices %v", n)
		}
	}
	wantLost(t, "the other node changes a key", true, map[string]error{"Insert": b.Insert(ctx, key("cc", "cc"))})
	catchUp(b)
	wantLost(t, "the other node", true, missing(ctx, b))
	lost, err := b.Lost(ctx)
	var names []string
	for _, c := range lost {
		names = append(names, c.Key)
	}
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"x", "y"}) {
		t.Errorf("Lost: %+v, %v", lost, err)
	}
	if err := b.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	for i, s := range []*postgres.Store{a, b} {
		if n := catchUp(s); len(n) != 1 || n[0] != (metastore.Notice{Change: metastore.Invalidated}) {
			t.Errorf("node %d gets the notices %v", i, n)
		}
		wantLost(t, "after Accept", false, missing(ctx, s))
		wantLost(t, "after Accept", false, changes(ctx, s, []string{"dd", "ee"}[i]))
	}
	if lost, err := a.Lost(ctx); err != nil || len(lost) > 0 {
		t.Errorf("Lost after Accept: %+v, %v", lost, err)
	}
}

// TestLostChangesOfOthers checks that a node finds the lost changes that another node has reported, when the node
// copies the store or reads the changes.
func TestLostChangesOfOthers(t *testing.T) {
	ctx := t.Context()
	nothing := func(metastore.Notice) {}
	for what, find := range map[string]func(s *postgres.Store) error{
		"Content": func(s *postgres.Store) error {
			_, err := s.Content(ctx)
			wantLost(t, "the other node", true, map[string]error{"Content": err})
			return nil
		},
		"CatchUp": func(s *postgres.Store) error { return s.CatchUp(ctx, nothing) },
	} {
		a, b := openTwice(t)
		a.Lose("x")
		if err := errors.Join(a.CatchUp(ctx, nothing), find(b)); err != nil {
			t.Fatal(err)
		}
		wantLost(t, "the other node after "+what, true, map[string]error{"Names": missing(ctx, b)["Names"]})
	}
}

// TestChangesOfOthersAreRemembered checks that a node which has read another node's change demands the change.
func TestChangesOfOthersAreRemembered(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	var log syncBuffer
	a := openConfig(t, postgres.Config{URI: uri})
	b := openConfig(t, postgres.Config{URI: uri, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err := a.Insert(ctx, key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	if err := b.CatchUp(ctx, func(metastore.Notice) {}); err != nil {
		t.Fatal(err)
	}
	exec(t, uri, `DELETE FROM change`)
	for range 2 {
		wantLost(t, "after the loss", true, map[string]error{"Insert": b.Insert(ctx, key("l", "bb"))})
		if n := strings.Count(log.String(), "the metastore lacks changes"); n != 1 {
			t.Errorf("the log has the loss %d times:\n%s", n, log.String())
		}
	}
}

// TestLostMessage checks which keys the error names.
func TestLostMessage(t *testing.T) {
	s, _ := openTwice(t)
	s.Lose("a", "a", "b")
	if _, err := s.Names(t.Context()); err == nil || !strings.Contains(err.Error(), `the keys ["a" "b"]: its`) {
		t.Error(err)
	}
	s, _ = openTwice(t)
	s.Lose(strings.Split("abcdefghijkl", "")...)
	if _, err := s.Names(t.Context()); err == nil || !strings.Contains(err.Error(), `"i" "j"] and 2 more: its`) {
		t.Error(err)
	}
	if err := s.Fill(t.Context(), &metastore.Content{}); err == nil || !strings.Contains(err.Error(), lostMessage) {
		t.Errorf("Fill of a store that lacks changes: %v", err)
	}
	for _, names := range [][]string{{"one"}, {"one", "two"}} {
		want := names[0]
		if len(names) > 1 {
			want = "" // the error is not about one key
		}
		_, err := s.Get(t.Context(), names...)
		var e *claviger.Error
		if !errors.As(err, &e) || e.Key != want {
			t.Errorf("Get of %q: %v", names, err)
		}
	}
}

// TestEachCallForLostChangesFails makes the statements and rows with which nodes exchange lost changes fail, one after
// the other.
func TestEachCallForLostChangesFails(t *testing.T) {
	ctx := t.Context()
	f, s, _ := faultyStores(t)
	if err := s.Insert(ctx, key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	catchUp := func() error { return s.CatchUp(ctx, func(metastore.Notice) {}) }
	other := openConfig(t, postgres.Config{URI: s.URI() + "?sslmode=disable"})
	refused := func(s *postgres.Store) error {
		if err := s.Insert(ctx, key("l", "bb")); err == nil || !strings.Contains(err.Error(), lostMessage) {
			return errors.Join(errors.New("no such error"), err)
		}
		return nil
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"the first CatchUp", catchUp},
		{"the loss", func() error { s.Lose("x"); return nil }},
		{"CatchUp that adds a lost change", catchUp},
		{"CatchUp that finds the change in the table", catchUp},
		{"a change while this node has lost changes", func() error { return refused(s) }},
		{"a change while another node has lost changes", func() error { other.ForgetLost(); return refused(other) }},
		{"Lost", func() error { _, err := s.Lost(ctx); return err }},
		{"Accept", func() error { return s.Accept(ctx) }},
		{"CatchUp that resumes", catchUp},
	} {
		for fault, err := range eachFault(t, f)(step.do) {
			if (err == nil) != (fault.Call == "") {
				t.Fatalf("%s with a fault in %s: %v", step.name, fault.Call, err)
			}
		}
	}
	if err := s.Insert(ctx, key("l", "bb")); err != nil {
		t.Error(err)
	}
}
