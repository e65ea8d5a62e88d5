package postgres_test

import (
	"context"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestSeenBeforeARestart: a node that saw changes, and is started anew after a standby
// that lacks them has taken over, notices; and it does not take an old primary that it
// has seen replaced. What an operator gives up stays given up.
func TestSeenBeforeARestart(t *testing.T) {
	ctx := t.Context()
	p := newPair(t)
	file := filepath.Join(t.TempDir(), "seen.json")
	config := func(uri string) postgres.Config {
		return postgres.Config{URI: uri, Seen: file, SeenProperty: "the.file", Patience: 2 * time.Second}
	}
	open := func() *postgres.Store {
		t.Helper()
		s, err := postgres.Open(ctx, config(p.uri()))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	node := open()
	if err := node.Insert(ctx, key("old", "aa")); err != nil {
		t.Fatal(err)
	}
	p.standby.CatchUp(t, p.primary)
	p.standby.Stop(t)
	if err := node.Insert(ctx, key("new", "bb")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is on the disk, also of a node that is killed", func() bool {
		text, _ := os.ReadFile(file)
		return strings.Contains(string(text), `"key":"new"`)
	})
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	p.primary.Kill(t)
	p.standby.Start(t)
	p.standby.Promote(t)

	node = open()
	lacks := func(what string, err error) {
		t.Helper()
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "lacks changes") ||
			!strings.Contains(err.Error(), `"new"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	lacks("a change", node.Insert(ctx, key("other", "cc")))
	_, err := node.Get(ctx, "new")
	lacks("the lost key", err)
	if keys, err := node.Get(ctx, "old"); err != nil || keys[0] == nil {
		t.Errorf("a key that is there: %v, %v", keys, err)
	}
	var has []string
	if err := metastore.Each(ctx, node, func(k *metastore.Key) { has = append(has, k.Name) }); err != nil ||
		!slices.Equal(has, []string{"old"}) {
		t.Errorf("what the store has: %v, %v", has, err)
	}
	if lost, err := node.Lost(ctx); err != nil || len(lost) != 1 || lost[0].Key != "new" {
		t.Errorf("what other nodes learn: %v, %v", lost, err)
	}
	if err := node.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	node = open()
	if err := node.Insert(ctx, key("after", "dd")); err != nil {
		t.Errorf("what was given up is asked for again: %v", err)
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), `"key":"new"`) ||
		!strings.Contains(string(text), `"key":"after"`) {
		t.Errorf("kept: %s, %v", text, err)
	}

	// The old primary, alone: nothing that can be asked tells of its successor.
	p.standby.Kill(t)
	p.primary.Start(t)
	alone, _, _ := strings.Cut(p.uri(), ",")
	alone += "/test1?sslmode=disable"
	if s, err := postgres.Open(ctx, config(alone)); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "fence it off") || !strings.Contains(err.Error(), file) {
		t.Errorf("an old primary that this node has seen replaced: %v, %v", s, err)
	}
	openOnce(t, alone) // without the file it is taken
}

// TestSeenFileDamaged: a file that cannot be read is named, with the cure.
func TestSeenFileDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "seen.json")
	open := func() error {
		_, err := postgres.Open(t.Context(), postgres.Config{URI: "postgresql://nobody@127.0.0.1:1/none", Seen: file,
			SeenProperty: "the.file", Patience: time.Millisecond})
		return err
	}
	for _, text := range []string{
		`{"changes":[`, ``, `null`, `[]`, `7`, `"x"`, `{}`, `{"changes":[]}`, `{"changes":null,"servers":null}`,
		`{"changes":null,"servers":{}}x`, `{"changes":[],"servers":{},"more":1}`,
		`{"changes":{},"servers":{}}`, `{"changes":[7],"servers":{}}`, `{"changes":[{}],"servers":{}}`,
		`{"changes":[{"seq":"1","id":"a","key":"k","at":1}],"servers":{}}`,
		`{"changes":[],"servers":[]}`, `{"changes":[],"servers":{"1":{}}}`,
		`{"changes":[],"servers":{"1":{"host":"a","timeline":-1}}}`,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := open()
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), file) ||
			!strings.Contains(err.Error(), "the.file") ||
			!strings.Contains(err.Error(), "move it away") || strings.Contains(err.Error(), "the user that the "+
			"server runs as") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{`{"changes":null,"servers":{}}`,
		`{"changes":[{"seq":1,"id":"a","key":"k","at":1}],"servers":{"7":{"host":"db1","timeline":2}}}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(); err == nil || strings.Contains(err.Error(), file) { // there is no database
			t.Errorf("%s: %v", text, err)
		}
	}
}

// fresh is a database of the shared server, and its name.
func fresh(t *testing.T) (server *pgtest.Server, uri, database string) {
	t.Helper()
	server = pgtest.Shared(t)
	uri = server.Database(t)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return server, uri, strings.TrimPrefix(u.Path, "/")
}

// TestRestoredUnderANode: an older dump is restored under a node that runs, whose
// connections stay. The node changes nothing any more, at once, and tells what was done
// to each key since the dump.
func TestRestoredUnderANode(t *testing.T) {
	ctx := t.Context()
	server, uri, database := fresh(t)
	node := openConfig(t, postgres.Config{URI: uri})
	for name, id := range map[string]string{"rolled": "aa", "deleted": "bb", "kept": "cc"} {
		if err := node.Insert(ctx, key(name, id)); err != nil {
			t.Fatal(err)
		}
	}
	dump := server.Dump(t, database)
	err := node.Append(ctx, "rolled", key("rolled", "dd").List[0])
	if err == nil {
		err = node.Shelve(ctx, "deleted")
	}
	if err == nil {
		err = node.Insert(ctx, key("made", "ee"))
	}
	if err != nil {
		t.Fatal(err)
	}
	server.Restore(t, database, dump)
	if err := node.Insert(ctx, key("other", "ff")); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "lacks changes") {
		t.Errorf("a change after the restoration: %v", err)
	}
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = node.Watch(watched, func(metastore.Notice) {}) }() // ends with the test
	want := map[string]metastore.Change{"rolled": metastore.Rolled, "deleted": metastore.Deleted,
		"made": metastore.Created}
	eventually(t, "others learn what was done", func() bool {
		lost, err := node.Lost(ctx)
		got := map[string]metastore.Change{}
		for _, l := range lost {
			got[l.Key] = l.Change
		}
		return err == nil && maps.Equal(got, want)
	})
}

// TestRestoredUnderAQuietNode: rows are gone under a node, and nobody changes anything: the node finds out by
// itself.
func TestRestoredUnderAQuietNode(t *testing.T) {
	ctx := t.Context()
	server, uri, database := fresh(t)
	node := openConfig(t, postgres.Config{URI: uri + "&pool_max_conns=1"}) // no new connection finds out
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = node.Watch(watched, func(metastore.Notice) {}) }() // ends with the test
	eventually(t, "it hears of changes", func() bool { return !node.Heard().IsZero() })
	if err := node.Insert(ctx, key("made", "ee")); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, database, `TRUNCATE ez_key, change CASCADE`) // as before a dump of rows alone is restored
	eventually(t, "it answers no more that the key is absent", func() bool {
		_, err := node.Get(ctx, "made")
		return err != nil && strings.Contains(err.Error(), "lacks changes")
	})
}
