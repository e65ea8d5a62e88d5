package postgres_test

import (
	"strings"
	"testing"

	"claviger/internal/pgtest"
	"claviger/metastore/postgres"
	"claviger/owner"
)

// TestClaimsOfContainers checks that processes with the same host name and PID have different IDs, also if PostgreSQL
// cuts their names off.
func TestClaimsOfContainers(t *testing.T) {
	for _, what := range []string{"claviger kms", "claviger metastore restore"} {
		ctx, uri := t.Context(), pgtest.Database(t)
		var want []owner.Owner
		for range 2 {
			o := owner.Self(what, "")
			o.Host, o.PID = strings.Repeat("kms", 20), 1<<22 // the highest PID of Linux
			o.ID = o.ID[:11] + string(rune('g'+len(want)))
			if _, err := openConfig(t, postgres.Config{URI: uri}).Claim(ctx, o, false); err != nil {
				t.Fatal(err)
			}
			want = append(want, o)
		}
		got, err := openConfig(t, postgres.Config{URI: uri}).Owners(ctx)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%+v, %v", got, err)
		}
		for i, o := range got {
			if o.ID != want[i].ID || o.What != what || o.PID != want[i].PID || o.Host == "" ||
				!strings.HasPrefix(want[i].Host, o.Host) {
				t.Errorf("%+v, want %+v", o, want[i])
			}
		}
	}
}

// TestClaimsOfOtherUsers checks that another database user sees the name of a process with a claim.
func TestClaimsOfOtherUsers(t *testing.T) {
	server := pgtest.Start(t)
	node := openConfig(t, postgres.Config{URI: server.Database(t)})
	self := owner.Self("claviger kms", "")
	if _, err := node.Claim(t.Context(), self, false); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, "test1", "CREATE ROLE other LOGIN", "GRANT ALL ON ALL TABLES IN SCHEMA public TO other")
	got, err := openConfig(t, postgres.Config{URI: server.URI("other", "test1")}).Owners(t.Context())
	if err != nil || len(got) != 1 || got[0].ID != self.ID || got[0].PID != self.PID || got[0].What != self.What {
		t.Errorf("%+v, %v", got, err)
	}
}
