package postgres_test

import (
	"strings"
	"testing"

	"claviger/internal/pgtest"
	"claviger/metastore/postgres"
	"claviger/owner"
)

// TestClaimsOfContainers: processes of one host name and PID are told apart by their IDs, also
// where PostgreSQL cuts their names off.
func TestClaimsOfContainers(t *testing.T) {
	for _, what := range []string{"claviger kms", "claviger metastore restore"} {
		ctx, uri := t.Context(), pgtest.Database(t)
		var want []owner.Owner
		for range 2 {
			o := owner.Self(what, "")
			o.Host, o.PID = strings.Repeat("kms", 20), 1<<22 // Linux's greatest
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

// TestClaimsOfOtherUsers: the name of a process is shown to another database user, too.
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
