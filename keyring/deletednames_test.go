package keyring

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
)

// TestNamesOfDeletedKeys is the table of docs/acls.md: who may do what with a name that
// deleted keys had. alice and bob each may do all with keys of their own rules, root with
// both's, and every user has every right of an operation.
func TestNamesOfDeletedKeys(t *testing.T) {
	policy := rules(t, "key.acl.hers.ALL", "alice,root", "key.acl.his.ALL", "bob,root", "default.key.acl.MANAGEMENT",
		"root",
		"keytrustee.kms.acl.UNDELETE", "*", "keytrustee.kms.acl.PURGE", "*")
	const (
		yes     = claviger.Kind(-1)
		denied  = claviger.KeyDenied
		absent  = claviger.KeyNotFound
		exists  = claviger.KeyExists
		invalid = claviger.Invalid
	)
	for _, tt := range []struct {
		deleted string // ACL names of the deleted keys, longest deleted first
		live    string // that of the key that is there
		user    string
		op      string // create with the user's rules; undelete or purge; undelete or purge and which of the deleted
		want    claviger.Kind
		left    string // ACL names of the deleted keys afterwards
		now     string // that of the key that is there afterwards
	}{
		// A name of deleted keys is for those who may manage all of them.
		{"", "", "bob", "create", yes, "", "his"},
		{"hers", "", "bob", "create", denied, "hers", ""},
		{"hers", "", "alice", "create", yes, "hers", "hers"},
		{"hers", "", "root", "create", yes, "hers", "own"},
		{"hers,hers", "", "alice", "create", yes, "hers,hers", "hers"},
		{"hers,his", "", "alice", "create", denied, "hers,his", ""},
		{"hers,his", "", "bob", "create", denied, "hers,his", ""},
		{"hers,his", "", "root", "create", yes, "hers,his", "own"},
		{"gone", "", "alice", "create", denied, "gone", ""}, // no rule names it
		{"gone", "", "root", "create", yes, "gone", "own"},
		{"hers", "his", "alice", "create", exists, "hers", "his"},
		// Each user brings the last of his own back.
		{"hers", "", "alice", "undelete", yes, "", "hers"},
		{"hers", "", "bob", "undelete", denied, "hers", ""},
		{"hers,his", "", "alice", "undelete", yes, "his", "hers"},
		{"hers,his", "", "bob", "undelete", yes, "hers", "his"},
		{"hers,his", "", "root", "undelete", yes, "hers", "his"},
		{"hers,his", "", "root", "undelete 0", yes, "his", "hers"},
		{"hers,his", "", "bob", "undelete 0", denied, "hers,his", ""},
		{"hers,his", "", "alice", "undelete 1", denied, "hers,his", ""},
		{"hers,his", "", "alice", "undelete 2", absent, "hers,his", ""},
		{"hers,hers,hers", "", "alice", "undelete 1", yes, "hers,hers", "hers"},
		{"hers", "his", "alice", "undelete", exists, "hers", "his"},
		{"", "hers", "alice", "undelete", absent, "", "hers"},
		// Each user ends his own, and one who may end keys of others names which.
		{"hers", "", "bob", "purge", denied, "hers", ""},
		{"hers,his,hers", "", "alice", "purge", invalid, "hers,his,hers", ""},
		{"hers,his,hers", "", "alice", "purge all", yes, "his", ""},
		{"hers,his,hers", "", "bob", "purge", yes, "hers,hers", ""},
		{"hers,his", "", "root", "purge", invalid, "hers,his", ""},
		{"hers,his", "", "root", "purge all", yes, "", ""},
		{"hers", "", "bob", "purge all", denied, "hers", ""},
		{"hers,his", "", "root", "purge 1", yes, "hers", ""},
		{"hers,his", "", "bob", "purge 0", denied, "hers,his", ""},
		{"hers,his", "", "bob", "purge 1", yes, "hers", ""},
		{"hers,hers", "", "root", "purge", invalid, "hers,hers", ""},
		{"hers,hers", "", "alice", "purge 0", yes, "hers", ""},
		{"his,hers", "his", "bob", "purge", yes, "hers", "his"},
	} {
		t.Run(fmt.Sprintf("deleted %s live %s: %s %s", tt.deleted, tt.live, tt.user, tt.op), func(t *testing.T) {
			ctx := t.Context()
			l := softLab(t, func(c *Config) { c.Policy = policy })
			of := func(acl string) provider.Spec {
				return provider.Spec{Name: "reports", Cipher: claviger.DefaultCipher, BitLength: 128,
					Attributes: map[string]string{claviger.ACLNameAttribute: acl}}
			}
			var versions []string
			for acl := range strings.SplitSeq(tt.deleted, ",") {
				if acl == "" {
					continue
				}
				v, err := l.primary.Provider.Create(ctx, of(acl))
				if err != nil {
					t.Fatal(err)
				}
				versions = append(versions, v.Name)
				if err := l.primary.Delete(ctx, "reports"); err != nil {
					t.Fatal(err)
				}
			}
			versions = append(versions, "reports@none", "reports@none")
			if tt.live != "" {
				if _, err := l.primary.Provider.Create(ctx, of(tt.live)); err != nil {
					t.Fatal(err)
				}
			}
			op, version := tt.op, ""
			if name, i, ok := strings.Cut(tt.op, " "); ok && i == "all" {
				op = tt.op
			} else if ok {
				op, version = name, versions[i[0]-'0']
			}
			var err error
			switch op {
			case "create":
				acl := map[string]string{"alice": "hers", "bob": "his", "root": "own"}[tt.user]
				_, err = l.Create(ctx, caller(tt.user), of(acl))
			case "undelete":
				err = l.Undelete(ctx, caller(tt.user), "reports", version)
			case "purge":
				err = l.Purge(ctx, caller(tt.user), "reports", version)
			case "purge all":
				err = l.PurgeAll(ctx, caller(tt.user), "reports")
			}
			switch {
			case tt.want == yes && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != yes:
				wantKind(t, err, tt.want)
			}
			if op == "create" && err != nil && (strings.Contains(err.Error(), "hers") || strings.Contains(err.Error(),
				"gone")) {
				t.Errorf("the refusal tells the ACL name of another user's key: %v", err)
			}
			list, err := l.primary.Deleted(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, k := range list {
				left = append(left, k.ACLName())
			}
			ms, err := l.primary.Metadata(ctx, "reports")
			if err != nil {
				t.Fatal(err)
			}
			now := ""
			if ms[0] != nil {
				now = ms[0].ACLName()
			}
			if got := strings.Join(left, ","); got != tt.left || now != tt.now {
				t.Errorf("deleted keys %q, key %q; want %q and %q", got, now, tt.left, tt.now)
			}
		})
	}
}

// TestDeletedKeyComesBack: what bob does after alice's key was deleted does not keep it
// from coming back, not even where he made his key by an older server.
func TestDeletedKeyComesBack(t *testing.T) {
	ctx := t.Context()
	l := softLab(t, func(c *Config) {
		c.Policy = rules(t, "key.acl.hers.ALL", "alice", "key.acl.hers.GENERATE_EEK", "maker", "key.acl.his.ALL",
			"bob", "keytrustee.kms.acl.UNDELETE", "alice", "keytrustee.kms.acl.PURGE", "bob")
	})
	made := func(user, acl string) error {
		_, err := l.Create(ctx, caller(user), provider.Spec{Name: "reports",
			Attributes: map[string]string{claviger.ACLNameAttribute: acl}})
		return err
	}
	if err := made("alice", "hers"); err != nil {
		t.Fatal(err)
	}
	es, deks := l.edeks(t, "reports", 1)
	if err := l.Delete(ctx, caller("alice"), "reports"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, made("bob", "his"), claviger.KeyDenied)
	if _, err := l.primary.Provider.Create(ctx, provider.Spec{Name: "reports", Cipher: claviger.DefaultCipher,
		BitLength:  128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "his"}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(ctx, caller("bob"), "reports"); err != nil {
		t.Fatal(err)
	}
	list, err := l.Deleted(ctx, caller("alice"))
	if err != nil || len(list) != 1 || !slices.Equal(list[0].List, []string{es[0].Version}) {
		t.Errorf("what alice sees of deleted keys: %+v, %v", list, err)
	}
	if err := l.Purge(ctx, caller("bob"), "reports", ""); err != nil {
		t.Fatal(err)
	}
	if err := l.Undelete(ctx, caller("alice"), "reports", ""); err != nil {
		t.Fatal(err)
	}
	if dek, err := l.Decrypt(ctx, caller("alice"), "reports", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("the key that came back: %v", err)
	}
}
