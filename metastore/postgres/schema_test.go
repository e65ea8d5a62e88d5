package postgres_test

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/logtest"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// nextSchema changes a store as a newer program may do. oldest is the oldest schema version whose programs work with
// the change.
func nextSchema(t *testing.T, uri string, oldest int) {
	t.Helper()
	exec(t, uri, `INSERT INTO goose_db_version (version_id, is_applied)
		SELECT max(version_id) + 1, true FROM goose_db_version`)
	exec(t, uri, fmt.Sprintf(`UPDATE setting SET value = '%d' WHERE name = '%s'`, oldest, metastore.SettingOldest))
}

// schemaOf returns the schema version of a store that this program has made.
func schemaOf(t *testing.T, uri string) (version int) {
	t.Helper()
	if _, err := fmt.Sscan(query(t, uri, `SELECT max(version_id)::text FROM goose_db_version`), &version); err != nil {
		t.Fatal(err)
	}
	return version
}

// TestBesideNewer: a newer program has upgraded the schema, and works beside this one. This node goes on, may be
// restarted, and logs that it is older. It does not copy the store, because the copy would lack what is new.
func TestBesideNewer(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	running := openConfig(t, postgres.Config{URI: uri})
	now := schemaOf(t, uri)
	nextSchema(t, uri, now)
	if err := running.Insert(ctx, key("running", "aa")); err != nil {
		t.Errorf("a node that runs: %v", err)
	}
	var log logtest.Buffer
	again := openConfig(t, postgres.Config{URI: uri, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err := again.Insert(ctx, key("again", "bb")); err != nil {
		t.Errorf("a node that was restarted: %v", err)
	}
	if want := fmt.Sprintf("schema=%d known=%d", now+1, now); !strings.Contains(log.String(), want) {
		t.Errorf("the log does not say %q: %s", want, log.String())
	}
	openConfig(t, postgres.Config{URI: uri, ReadOnly: true})
	const use = "use the newer one"
	if _, err := running.Content(ctx); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), use) {
		t.Errorf("a copy: %v", err)
	}
	if err := running.Fill(ctx, &metastore.Content{}); err == nil || !strings.Contains(err.Error(), use) {
		t.Errorf("a copy to this store: %v", err)
	}
}

// TestTooNew: a newer program has upgraded the schema, and does not work beside this one. This node changes nothing any
// more, reports that, and cannot be started again.
func TestTooNew(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	running := openConfig(t, postgres.Config{URI: uri})
	nextSchema(t, uri, schemaOf(t, uri)+1)
	const why = "works only beside programs that know schema version"
	for what, err := range map[string]error{
		"a key":     running.Insert(ctx, key("late", "aa")),
		"a setting": running.SetSetting(ctx, "a", "b"),
		"a token": running.PutDelegation(ctx, metastore.Delegation{Sequence: 1, Identifier: []byte("t"),
			Password: []byte("p"), Renew: time.Now().Add(time.Hour)}),
		"readiness": running.CheckWrites(ctx),
	} {
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v; want %q", what, err, why)
		}
	}
	for _, readOnly := range []bool{false, true} {
		_, err := postgres.Open(ctx, postgres.Config{URI: uri, ReadOnly: readOnly})
		if err == nil || !strings.Contains(err.Error(), "a newer claviger has written it") {
			t.Errorf("read-only %t: %v", readOnly, err)
		}
	}
	exec(t, uri, fmt.Sprintf(`UPDATE setting SET value = 'eight' WHERE name = '%s'`, metastore.SettingOldest))
	if err := running.SetSetting(ctx, "a", "b"); err == nil || !strings.Contains(err.Error(), metastore.SettingOldest) {
		t.Errorf("a value that is no number: %v", err)
	}
	if _, err := postgres.Open(ctx, postgres.Config{URI: uri}); err == nil ||
		!strings.Contains(err.Error(), metastore.SettingOldest) {
		t.Errorf("Open with a value that is no number: %v", err)
	}
}

// TestOldestIsRecorded: a new store, and one that was upgraded, say which programs work with them. A copy has its own
// record.
func TestOldestIsRecorded(t *testing.T) {
	upgraded := pgtest.Database(t)
	dump, err := os.ReadFile("testdata/schema2.sql")
	if err != nil {
		t.Fatal(err)
	}
	exec(t, upgraded, string(dump))
	for what, uri := range map[string]string{"new": emptyStore(t), "upgraded": upgraded} {
		s := openConfig(t, postgres.Config{URI: uri})
		var oldest int
		text, ok, err := s.Setting(t.Context(), metastore.SettingOldest)
		if err == nil && ok {
			_, err = fmt.Sscan(text, &oldest)
		}
		if now := schemaOf(t, uri); err != nil || oldest < 8 || oldest > now {
			t.Errorf("%s: %q, %t, %v; the schema is %d", what, text, ok, err, now)
		}
		c, err := s.Content(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range c.Rows["setting"] {
			if row[0] == metastore.SettingOldest {
				t.Errorf("%s: a copy gets the record", what)
			}
		}
	}
}
