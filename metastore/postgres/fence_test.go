package postgres_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/owner"
)

// TestFence: a node whose claim ended, since its session was cut, changes nothing while
// another process has the store alone, nor after the store was moved; and it says so
// before anybody changes a key.
func TestFence(t *testing.T) {
	ctx, uri := t.Context(), pgtest.Database(t)
	// The claim of the node is not made anew within the test.
	node := openConfig(t, postgres.Config{URI: uri, LockCheck: time.Hour, Property: "the.property"})
	alone := openConfig(t, postgres.Config{URI: uri})
	if _, err := node.Claim(ctx, owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	if err := node.Insert(ctx, key("before", "aa")); err != nil {
		t.Fatal(err)
	}
	exec(t, uri, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'claviger claim %' AND datname = current_database()`)
	release, err := alone.Claim(ctx, owner.Self("claviger metastore copy", ""), true)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(text string) {
		t.Helper()
		for what, err := range map[string]error{
			"a key":    node.Insert(ctx, key("late", "bb")),
			"a use":    node.AddUse(ctx, []metastore.Use{{Source: "kms://x", Version: "k@0", Op: "decrypt", Count: 1, Last: time.Now()}}),
			"a number": node.SkipNumbers(ctx, "before", 7),
			"a probe":  node.CheckWrites(ctx),
		} {
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v; want %q", what, err, text)
			}
		}
		if last, ok := node.LastWrite(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), text) {
			t.Errorf("the last change: %+v, %t", last, ok)
		}
	}
	refused("a process that has it alone")
	if err := alone.Insert(ctx, key("its own", "cc")); err != nil {
		t.Errorf("the process that has it alone: %v", err)
	}
	if err := metastore.SetMoved(ctx, alone, "sqlite:///new.db"); err != nil {
		t.Fatal(err)
	}
	release()
	refused("moved to sqlite:///new.db")
	if keys, err := node.Get(ctx, "before", "late"); err != nil || keys[0] == nil || keys[1] != nil {
		t.Errorf("%v, %v", keys, err)
	}
}
