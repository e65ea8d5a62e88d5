package postgres_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/owner"
)

// TestFence ends the session of a node's claim. Then the node must change nothing while another process has a claim
// alone, or after the store was moved. CheckWrites must report that.
func TestFence(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	// With this LockCheck, the node does not renew its claim during the test.
	node := openConfig(t, postgres.Config{URI: uri, LockCheck: time.Hour, Property: "the.property"})
	alone := openConfig(t, postgres.Config{URI: uri})
	if _, err := node.Claim(ctx, owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	if err := node.Insert(ctx, key("before", "aa")); err != nil {
		t.Fatal(err)
	}
	exec(t, uri, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'claviger claim %'
		AND datname = current_database()`)
	release := func() {}
	eventually(t, "the session has ended", func() bool {
		var err error
		release, err = alone.Claim(ctx, owner.Self("claviger metastore copy", ""), true)
		return err == nil
	})
	token := metastore.Delegation{Sequence: 1, Identifier: []byte("t"), Password: []byte("p"),
		Renew: time.Now().Add(time.Hour)}
	secrets := metastore.SignerSecrets{Next: []byte("n"), Current: []byte("c"), Rollover: time.Now()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(alone.PutDelegation(ctx, token))
	must(alone.PutMasterKey(ctx, metastore.MasterKey{ID: 1, Expires: time.Now(), Key: []byte("k")}))
	must(alone.SetSetting(ctx, "a", "b"))
	must(alone.Put(ctx, "run", "item", []byte("r")))
	errorOf := func(_ any, err error) error { return err }
	refused := func(text string) {
		t.Helper()
		for what, err := range map[string]error{
			"a key": node.Insert(ctx, key("late", "bb")),
			"a use": node.AddUse(ctx, []metastore.Use{{Source: "kms://x", Version: "k@0", Op: "decrypt", Count: 1,
				Last: time.Now()}}),
			"a number": node.SkipNumbers(ctx, "before", 7),
			"a probe":  node.CheckWrites(ctx),

			"a token":           node.PutDelegation(ctx, token),
			"a renewal":         errorOf(node.RenewDelegation(ctx, 1, time.Now())),
			"a cancellation":    errorOf(node.RemoveDelegation(ctx, 1)),
			"an expiry":         errorOf(node.RemoveExpired(ctx, time.Now().Add(2*time.Hour))),
			"a sequence number": errorOf(node.NextSequences(ctx, 1)),
			"a master key": node.PutMasterKey(ctx,
				metastore.MasterKey{ID: 2, Expires: time.Now(), Key: []byte("k")}),
			"a master key's removal": node.RemoveMasterKey(ctx, 1),
			"signer secrets":         errorOf(node.SwapSignerSecrets(ctx, secrets)),
			"a setting":              node.SetSetting(ctx, "a", "c"),
			"a record":               node.Put(ctx, "run", "item", []byte("s")),
			"the end of a step":      node.Drop(ctx, "before"),
			"a last use": node.RecordUses(ctx,
				[]metastore.LastUse{{Version: "before@0", Last: time.Now()}}),
		} {
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v; want %q", what, err, text)
			}
		}
		if last, ok := node.LastWrite(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), text) {
			t.Errorf("the last change: %+v, %t", last, ok)
		}
	}
	refused("a process that allows no other process to change it")
	if err := alone.Insert(ctx, key("its own", "cc")); err != nil {
		t.Errorf("the process with the claim alone: %v", err)
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
