package postgres_test

import (
	"strings"
	"testing"
	"time"

	"claviger/internal/pgtest"
	"claviger/metastore/postgres"
	"claviger/owner"
)

// TestClaimsOfContainers checks that processes with the same host name and PID have different IDs, also if PostgreSQL
// cuts their names off.
func TestClaimsOfContainers(t *testing.T) {
	for _, what := range []string{"claviger kms", "claviger metastore restore"} {
		ctx, uri := t.Context(), emptyStore(t)
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

// TestParseClaim checks which process a session's application name means.
func TestParseClaim(t *testing.T) {
	since := time.UnixMilli(1).UTC()
	for name, want := range map[string]owner.Owner{
		"claviger claim 12 kms#id@host": {PID: 12, What: "claviger kms", ID: "id", Host: "host"},
		"claviger claim 12 kms#id@":     {PID: 12, What: "claviger kms", ID: "id", Host: "10.0.0.1"},
		"claviger claim x kms":          {What: "claviger kms", Host: "10.0.0.1"},
		"claviger claim 12":             {What: "claviger", Host: "10.0.0.1"},
		"another program 12 kms":        {What: "claviger", Host: "10.0.0.1"},
		"":                              {What: "claviger", Host: "10.0.0.1"},
	} {
		want.Since = since
		if got := postgres.ParseClaim(name, "10.0.0.1", since); got != want {
			t.Errorf("%q: %+v, want %+v", name, got, want)
		}
	}
}
