package audit_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"claviger/audit"
)

// TestChainState: the state names the last record and the stored head.
func TestChainState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	f, err := audit.OpenExclusiveFile(path, audit.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := audit.OpenChain(t.Context(), audit.ChainConfig{Node: "n", File: f, HeadEvery: 10 * time.Millisecond,
		Heads: []audit.Heads{audit.HeadFileOf(path)}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if s := c.State(); s.Seq != 1 || s.Node != "n" || s.Err != nil { // the record of the start
		t.Errorf("%+v", s)
	}
	if err := c.Begin(context.Background(), audit.Event{Op: audit.RollNewVersion, Key: "k"}); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); c.State().Stored != 2; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%+v", c.State())
		}
	}
	head, _, err := audit.HeadFileOf(path).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s := c.State(); s.Seq != 2 || s.Hash != head.Hash || s.Waiting != 0 || s.Lost != 0 {
		t.Errorf("%+v, head %+v", s, head)
	}
}
