package keyring

import (
	"context"
	"slices"
	"strings"
	"testing"

	"claviger"
)

// oneKey is a source with one key. The key's ACL name differs from the key's name.
type oneKey struct{ err error }

func (o oneKey) SourceMetadata(_ context.Context, key string) (*claviger.Metadata, error) {
	if key != "k" {
		return nil, claviger.E("test", claviger.KeyNotFound, key, nil)
	}
	return &claviger.Metadata{Name: key, Attributes: map[string]string{claviger.ACLNameAttribute: "guard"}}, nil
}

func (o oneKey) RunKey(_ context.Context, key string) ([]string, error) {
	return []string{key + "@1", key + "@2"}, o.err
}

// TestMigrate: Migrate checks the right for the key's ACL name at the source, even if key authorization is off. A user
// without the right does not learn which keys the source has.
func TestMigrate(t *testing.T) {
	for _, byKey := range []bool{true, false} {
		l := newTestRing(t, func(c *Config) {
			c.Policy = rules(t, append(slices.Clone(everything), "key.acl.guard.MIGRATE", "mover",
				"key.acl.k.MIGRATE", "other", "key.acl.none.MIGRATE", "mover")...)
			c.KeyAuthorization, c.Migrator = byKey, oneKey{}
		})
		ctx := t.Context()
		_, err := l.Migrate(ctx, caller("u"), "k")
		wantKind(t, err, claviger.KeyDenied)
		if want := "User [u] is not authorized to perform [MIGRATE] on key with ACL name [k]!!"; text(t, err) != want {
			t.Errorf("%q, want %q", text(t, err), want)
		}
		_, err = l.Migrate(ctx, caller("other"), "k")
		wantKind(t, err, claviger.KeyDenied)
		_, err = l.Migrate(ctx, caller("u"), "none")
		wantKind(t, err, claviger.KeyDenied)
		_, err = l.Migrate(ctx, caller("mover"), "none")
		wantKind(t, err, claviger.KeyNotFound)
		got, err := l.Migrate(ctx, caller("mover"), "k")
		if err != nil || !slices.Equal(got, []string{"k@1", "k@2"}) {
			t.Errorf("%q, %v", got, err)
		}
		want := []string{
			"UNAUTHORIZED[op=MIGRATE, key=k, user=u] ", "UNAUTHORIZED[op=MIGRATE, key=guard, " +
				"user=other] ", "UNAUTHORIZED[op=MIGRATE, key=none, user=u] ",
			"OK[op=MIGRATE_KEY, key=k, user=mover] Versions:k@1,k@2",
		}
		if lines := l.audit.take(); !slices.Equal(lines, want) {
			t.Errorf("audit\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestMigrateWithoutSource: without a source there is nothing to migrate, and a migration that failed is not audited.
func TestMigrateWithoutSource(t *testing.T) {
	l := newTestRing(t, nil)
	_, err := l.Migrate(t.Context(), caller("u"), "k")
	wantKind(t, err, claviger.Unsupported)
	failing := newTestRing(t, func(c *Config) {
		c.Policy = rules(t, append(slices.Clone(everything), "default.key.acl.MIGRATE", "*")...)
		c.Migrator = oneKey{err: claviger.Errorf("test", claviger.Invalid, "k", "another key of that name is here")}
	})
	_, err = failing.Migrate(t.Context(), caller("u"), "k")
	wantKind(t, err, claviger.Invalid)
	if lines := failing.audit.take(); len(lines) > 0 {
		t.Errorf("a migration that failed is audited as %q", lines)
	}
}
