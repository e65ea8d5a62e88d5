package nodes

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

// database runs statements in the database of the site.
func (s *site) database(t *testing.T, statements ...string) {
	t.Helper()
	u, err := url.Parse(s.store)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Shared(t).Exec(t, strings.TrimPrefix(u.Path, "/"), statements...)
}

// TestPurgeSeesOtherNodes: one node has just used a key and deletes it. Another node, which has no record of that
// use, does not purge the key, not even after the first node was killed. It purges a key whose deletion is long
// ago, if the clocks agree, and a key that was never used at once.
func TestPurgeSeesOtherNodes(t *testing.T) {
	ctx := t.Context()
	// The clock of the database server, which the test sets.
	s := newSite(t, nil)
	s.database(t, `CREATE SCHEMA clock`, `CREATE TABLE clock.shift (by interval)`,
		`INSERT INTO clock.shift VALUES ('0')`,
		`CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT `+
			`pg_catalog.clock_timestamp() + by FROM clock.shift $$`)
	s.store += "&search_path=public,clock,pg_catalog"
	s.write(t, hadoop.Conf{"claviger.delete.soft": "true"})
	hadoop.OpenACLs().With(hadoop.Conf{"keytrustee.kms.acl.UNDELETE": "*", "keytrustee.kms.acl.PURGE": "*"}).
		Write(t, filepath.Join(s.conf, "kms-acls.xml"))
	first, second := s.start(t), s.start(t)
	one, two := first.client(t), second.client(t)
	e := map[string][]claviger.EDEK{}
	for _, key := range []string{"used", "old", "unused"} {
		if _, err := one.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		if key == "unused" {
			continue
		}
		edek, err := one.Generate(ctx, key, 1)
		if err != nil {
			t.Fatal(err)
		}
		e[key] = edek
	}
	// The recorded use is long ago. Node one uses the key now, and node two does not know it.
	const minusNineDays = ` - 9 * 24 * 3600 * 1000::bigint`
	s.database(t, `UPDATE version_use SET last = last`+minusNineDays,
		`UPDATE ez_key SET created = created`+minusNineDays,
		`UPDATE setting SET value = (value::bigint`+minusNineDays+`)::text WHERE name = 'version.use.since'`)
	for key, edek := range e {
		if err := opens(t, one, key, edek); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"used", "old", "unused"} {
		if err := one.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, by *kmsclient.Provider, says string) {
		t.Helper()
		if err := by.Purge(ctx, "used", ""); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", what, err, says)
		}
	}
	const minUnusedProperty = "claviger.purge.min.unused"
	refused("the other node", two, minUnusedProperty)
	if err := two.Purge(ctx, "unused", ""); err == nil || !strings.Contains(err.Error(), "may still run") {
		t.Errorf("a key that was never used, at once: %v", err)
	}
	s.database(t, `UPDATE deleted_key SET since = since - 14 * 60 * 1000 WHERE name = 'unused'`)
	if err := two.Purge(ctx, "unused", ""); err != nil {
		t.Errorf("a key that was never used: %v", err)
	}
	first.Kill()
	refused("the other node after a kill", two, minUnusedProperty)
	s.database(t, `UPDATE clock.shift SET by = '9 days'`)
	refused("a server that is ahead", two, "503")
	s.database(t, `UPDATE clock.shift SET by = '-9 days'`)
	refused("a server that is behind", two, "503")
	s.database(t, `UPDATE clock.shift SET by = '0'`)
	refused("the clock set right", two, minUnusedProperty)
	s.database(t, `UPDATE deleted_key SET since = since`+minusNineDays+` WHERE name = 'old'`)
	if err := two.Purge(ctx, "old", ""); err != nil {
		t.Errorf("a key that was deleted 9 days ago: %v", err)
	}
	if err := two.Undelete(ctx, "used", ""); err != nil {
		t.Fatal(err)
	}
	if err := opens(t, two, "used", e["used"]); err != nil {
		t.Errorf("after all that: %v", err)
	}
}
