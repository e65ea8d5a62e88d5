package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
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

// seenNode is a node with a file of what it has seen. Its pair lost the key "new" in a failover.
type seenNode struct {
	pair
	file string
}

func (n seenNode) config(uri string) postgres.Config {
	return postgres.Config{URI: uri, Seen: n.file, SeenProperty: "the.file", RetryTimeout: 2 * time.Second}
}

func (n seenNode) open(t *testing.T) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), n.config(n.uri()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failedOver starts a node that inserts the keys "old" and "new", and stops it. Then it promotes a standby that has
// only the key "old".
func failedOver(t *testing.T) seenNode {
	t.Helper()
	ctx := t.Context()
	n := seenNode{newPair(t), filepath.Join(t.TempDir(), "seen.json")}
	s := n.open(t)
	if err := s.Insert(ctx, key("old", "aa")); err != nil {
		t.Fatal(err)
	}
	n.standby.CatchUp(t, n.primary)
	n.standby.Stop(t)
	if err := s.Insert(ctx, key("new", "bb")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a running node has written the change to its file", func() bool {
		text, _ := os.ReadFile(n.file)
		return strings.Contains(string(text), `"key":"new"`)
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	n.primary.Kill(t)
	n.standby.Start(t)
	n.standby.Promote(t)
	return n
}

// TestSeenBeforeARestart checks that a node which has seen a change detects after its restart that the promoted standby
// lacks the change.
func TestSeenBeforeARestart(t *testing.T) {
	ctx := t.Context()
	n := failedOver(t)
	if st, err := os.Stat(n.file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	s := n.open(t)
	defer func() { _ = s.Close() }()
	lacks := func(what string, err error) {
		t.Helper()
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "lacks changes") ||
			!strings.Contains(err.Error(), `"new"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	lacks("a change", s.Insert(ctx, key("other", "cc")))
	_, err := s.Get(ctx, "new")
	lacks("the lost key", err)
	if keys, err := s.Get(ctx, "old"); err != nil || keys[0] == nil {
		t.Errorf("the key that was not lost: %v, %v", keys, err)
	}
	var names []string
	if err := metastore.Each(ctx, s, func(k *metastore.Key) { names = append(names, k.Name) }); err != nil ||
		!slices.Equal(names, []string{"old"}) {
		t.Errorf("the keys of the store: %v, %v", names, err)
	}
	if lost, err := s.Lost(ctx); err != nil || len(lost) != 1 || lost[0].Key != "new" {
		t.Errorf("the lost changes that other nodes read: %v, %v", lost, err)
	}
}

// TestAcceptedBeforeARestart checks that changes which an operator gave up stay given up after a restart of the node.
// It also checks that the node remembers which servers were replaced.
func TestAcceptedBeforeARestart(t *testing.T) {
	ctx := t.Context()
	n := failedOver(t)
	s := n.open(t)
	if err := s.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = n.open(t)
	if err := s.Insert(ctx, key("after", "dd")); err != nil {
		t.Errorf("a change after the restart: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(n.file); err != nil || strings.Contains(string(text), `"key":"new"`) ||
		!strings.Contains(string(text), `"key":"after"`) {
		t.Errorf("the file has %s, %v", text, err)
	}

	// Only the old primary runs, so no server tells the node that it was replaced.
	n.standby.Kill(t)
	n.primary.Start(t)
	onlyOld, _, _ := strings.Cut(n.uri(), ",")
	onlyOld += "/test1?sslmode=disable"
	if s, err := postgres.Open(ctx, n.config(onlyOld)); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "fence it off") || !strings.Contains(err.Error(), n.file) {
		t.Errorf("an old primary that this node has seen replaced: %v, %v", s, err)
	}
	openOnce(t, onlyOld) // a node without the file accepts it
}

// TestSeenFileDamaged checks that Open refuses a damaged file, and that the error names the file and the cure.
func TestSeenFileDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "seen.json")
	open := func() error {
		_, err := postgres.Open(t.Context(), postgres.Config{URI: "postgresql://nobody@127.0.0.1:1/none", Seen: file,
			SeenProperty: "the.file", RetryTimeout: time.Millisecond})
		return err
	}
	for _, text := range []string{
		`{"changes":[`, ``, `null`, `[]`, `7`, `"x"`, `{}`, `{"changes":[]}`, `{"changes":null,"servers":null}`,
		`{"changes":null,"servers":{}}x`, `{"changes":[],"servers":{},"more":1}`,
		`{"changes":{},"servers":{}}`, `{"changes":[7],"servers":{}}`, `{"changes":[{}],"servers":{}}`,
		`{"changes":[{"seq":"1","id":"a","key":"k","at":1}],"servers":{}}`,
		`{"changes":[],"servers":[]}`, `{"changes":[],"servers":{"1":{}}}`,
		`{"changes":[],"servers":{"1":{"host":"a","timeline":-1}}}`,
		`{"changes":[],"servers":{"":{"host":"a","timeline":2}}}`,
		`{"changes":[],"servers":{"1":{"host":"","timeline":2}}}`,
		`{"changes":[],"servers":{"1":{"host":"a","timeline":0}}}`,
		`{"changes":[{"seq":0,"id":"a","key":"k","at":1}],"servers":{}}`,
		`{"changes":[{"seq":1,"id":"","key":"k","at":1}],"servers":{}}`,
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
	large := strings.Repeat(" ", 1<<20) + `{"changes":null,"servers":{}}`
	if err := os.WriteFile(file, []byte(large), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "a regular file of at most") {
		t.Errorf("a large file: %v", err)
	}
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "a regular file of at most") {
		t.Errorf("a folder: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`{"changes":null,"servers":{}}`,
		`{"changes":[{"seq":1,"id":"a","key":"k","at":1}],"servers":{"7":{"host":"db1","timeline":2}}}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// The file is good, so the error is about the database, which does not exist.
		if err := open(); err == nil || strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSeenFileIsNotWritten checks that the log says once that the file cannot be written.
func TestSeenFileIsNotWritten(t *testing.T) {
	folder, away := filepath.Join(t.TempDir(), "folder"), filepath.Join(t.TempDir(), "away")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	s := openConfig(t, postgres.Config{URI: emptyStore(t), Seen: filepath.Join(folder, "seen.json"),
		SeenProperty: "the.file", Log: slog.New(slog.NewTextHandler(&log, nil))})
	written := func(folder, name string) {
		t.Helper()
		if err := s.Insert(t.Context(), key(name, name)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the file has the key "+name, func() bool {
			text, _ := os.ReadFile(filepath.Join(folder, "seen.json"))
			return strings.Contains(string(text), `"key":"`+name+`"`)
		})
	}
	written(folder, "aa")
	if text := log.String(); text != "" {
		t.Errorf("while the file can be written, the log has\n%s", text)
	}
	if err := os.Rename(folder, away); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(t.Context(), key("bb", "bb")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log says so", func() bool { return strings.Contains(log.String(), "cannot write the file") })
	if err := os.Rename(away, folder); err != nil {
		t.Fatal(err)
	}
	written(folder, "cc")
	if err := os.Rename(folder, away); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(t.Context(), key("dd", "dd")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // Close writes the file once more
		t.Error(err)
	}
	if n := strings.Count(log.String(), "cannot write the file"); n != 1 {
		t.Errorf("the log says %d times that the file cannot be written:\n%s", n, log.String())
	}
}

// newDatabase makes an empty store on the shared server, and returns its URI and the name of its database.
func newDatabase(t *testing.T) (server *pgtest.Server, uri, database string) {
	t.Helper()
	uri = emptyStore(t)
	return pgtest.Shared(t), uri, databaseOf(t, uri)
}

// TestRestoredUnderANode restores an older dump while a node runs and its connections stay open. The node must refuse
// the next change, and must report which changes of which keys are lost.
func TestRestoredUnderANode(t *testing.T) {
	ctx := t.Context()
	server, uri, database := newDatabase(t)
	node := openConfig(t, postgres.Config{URI: uri})
	for name, id := range map[string]string{"rolled": "aa", "deleted": "bb", "kept": "cc"} {
		if err := node.Insert(ctx, key(name, id)); err != nil {
			t.Fatal(err)
		}
	}
	dump := server.Dump(t, database)
	err := node.Append(ctx, "rolled", key("rolled", "dd").List[0])
	if err == nil {
		err = node.SoftDelete(ctx, "deleted")
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
	go func() { _ = node.Watch(watched, func(metastore.Notice) {}) }() // its error does not matter
	want := map[string]metastore.Change{"rolled": metastore.Rolled, "deleted": metastore.Deleted,
		"made": metastore.Created}
	eventually(t, "the store has the lost changes, for other nodes", func() bool {
		lost, err := node.Lost(ctx)
		got := map[string]metastore.Change{}
		for _, l := range lost {
			got[l.Key] = l.Change
		}
		return err == nil && maps.Equal(got, want)
	})
}

// TestRestoredUnderAQuietNode removes rows while a node runs. The node must detect this without a change of a key.
func TestRestoredUnderAQuietNode(t *testing.T) {
	ctx := t.Context()
	server, uri, database := newDatabase(t)
	node := openConfig(t, postgres.Config{URI: uri + "&pool_max_conns=1"}) // so that no new connection detects it
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = node.Watch(watched, func(metastore.Notice) {}) }() // its error does not matter
	eventually(t, "the store reads the changes", func() bool { return !node.NoticesUntil().IsZero() })
	if err := node.Insert(ctx, key("made", "ee")); err != nil {
		t.Fatal(err)
	}
	// An operator does this before restoring a dump that has only rows.
	server.Exec(t, database, `TRUNCATE ez_key, change CASCADE`)
	eventually(t, "the node no longer reports the key as missing", func() bool {
		_, err := node.Get(ctx, "made")
		return err != nil && strings.Contains(err.Error(), "lacks changes")
	})
}
