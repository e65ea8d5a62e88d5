package keyring

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
)

// deletedNamesRules: alice and bob may do everything with keys of their own ACL names, and root with both users'
// keys. The rules of operations let every user do everything.
var deletedNamesRules = []string{"key.acl.hers.ALL", "alice,root", "key.acl.his.ALL", "bob,root",
	"default.key.acl.MANAGEMENT", "root", "keytrustee.kms.acl.UNDELETE", "*", "keytrustee.kms.acl.PURGE", "*"}

// deletedNameTest is a request about a name that deleted keys had.
type deletedNameTest struct {
	deleted string // ACL names of the deleted keys, earliest deletion first
	live    string // ACL name of the key that has the name
	user    string
	op      string // create, with the user's ACL name; undelete or purge, also with the index of a deleted key
	want    claviger.Kind

	wantDeleted string // ACL names of the deleted keys afterwards
	wantLive    string // ACL name of the key that has the name afterwards
}

func reportsSpec(acl string) provider.Spec {
	return provider.Spec{Name: "reports", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: acl}}
}

// TestNamesOfDeletedKeys is the table of docs/acls.md: which user may do what with a name that deleted keys had.
func TestNamesOfDeletedKeys(t *testing.T) {
	for _, tt := range []deletedNameTest{
		// Only a user who may manage all deleted keys of the name may take the name.
		{"", "", "bob", "create", noError, "", "his"},
		{"hers", "", "bob", "create", claviger.KeyDenied, "hers", ""},
		{"hers", "", "alice", "create", noError, "hers", "hers"},
		{"hers", "", "root", "create", noError, "hers", "own"},
		{"hers,hers", "", "alice", "create", noError, "hers,hers", "hers"},
		{"hers,his", "", "alice", "create", claviger.KeyDenied, "hers,his", ""},
		{"hers,his", "", "bob", "create", claviger.KeyDenied, "hers,his", ""},
		{"hers,his", "", "root", "create", noError, "hers,his", "own"},
		{"gone", "", "alice", "create", claviger.KeyDenied, "gone", ""}, // no rule names it
		{"gone", "", "root", "create", noError, "gone", "own"},
		{"hers", "his", "alice", "create", claviger.KeyExists, "hers", "his"},
		// Each user may undelete the last of his own keys.
		{"hers", "", "alice", "undelete", noError, "", "hers"},
		{"hers", "", "bob", "undelete", claviger.KeyDenied, "hers", ""},
		{"hers,his", "", "alice", "undelete", noError, "his", "hers"},
		{"hers,his", "", "bob", "undelete", noError, "hers", "his"},
		{"hers,his", "", "root", "undelete", noError, "hers", "his"},
		{"hers,his", "", "root", "undelete 0", noError, "his", "hers"},
		{"hers,his", "", "bob", "undelete 0", claviger.KeyDenied, "hers,his", ""},
		{"hers,his", "", "alice", "undelete 1", claviger.KeyDenied, "hers,his", ""},
		{"hers,his", "", "alice", "undelete 2", claviger.KeyNotFound, "hers,his", ""},
		{"hers,hers,hers", "", "alice", "undelete 1", noError, "hers,hers", "hers"},
		{"hers", "his", "alice", "undelete", claviger.KeyExists, "hers", "his"},
		{"", "hers", "alice", "undelete", claviger.KeyNotFound, "", "hers"},
		// Each user may purge his own keys. A user who may purge several must name the version.
		{"hers", "", "bob", "purge", claviger.KeyDenied, "hers", ""},
		{"hers,his,hers", "", "alice", "purge", claviger.Invalid, "hers,his,hers", ""},
		{"hers,his,hers", "", "alice", "purge all", noError, "his", ""},
		{"hers,his,hers", "", "bob", "purge", noError, "hers,hers", ""},
		{"hers,his", "", "root", "purge", claviger.Invalid, "hers,his", ""},
		{"hers,his", "", "root", "purge all", noError, "", ""},
		{"hers", "", "bob", "purge all", claviger.KeyDenied, "hers", ""},
		{"hers,his", "", "root", "purge 1", noError, "hers", ""},
		{"hers,his", "", "bob", "purge 0", claviger.KeyDenied, "hers,his", ""},
		{"hers,his", "", "bob", "purge 1", noError, "hers", ""},
		{"hers,hers", "", "root", "purge", claviger.Invalid, "hers,hers", ""},
		{"hers,hers", "", "alice", "purge 0", noError, "hers", ""},
		{"his,hers", "his", "bob", "purge", noError, "hers", "his"},
	} {
		t.Run(fmt.Sprintf("deleted %s live %s: %s %s", tt.deleted, tt.live, tt.user, tt.op), tt.run)
	}
}

func (tt deletedNameTest) run(t *testing.T) {
	ctx := t.Context()
	l := newSoftDeleteRing(t, func(c *Config) { c.Policy = rules(t, deletedNamesRules...) })
	versions := tt.makeKeys(t, l)
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
		_, err = l.Create(ctx, caller(tt.user), reportsSpec(acl))
	case "undelete":
		err = l.Undelete(ctx, caller(tt.user), "reports", version)
	case "purge":
		err = l.Purge(ctx, caller(tt.user), "reports", version)
	case "purge all":
		err = l.PurgeAll(ctx, caller(tt.user), "reports")
	}
	switch {
	case tt.want == noError && err != nil:
		t.Errorf("refused: %v", err)
	case tt.want != noError:
		wantKind(t, err, tt.want)
	}
	if op == "create" && err != nil && (strings.Contains(err.Error(), "hers") || strings.Contains(err.Error(),
		"gone")) {
		t.Errorf("the refusal shows the ACL name of another user's key: %v", err)
	}
	list, err := l.primary.Deleted(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var deleted []string
	for _, k := range list {
		deleted = append(deleted, k.ACLName())
	}
	ms, err := l.primary.Metadata(ctx, "reports")
	if err != nil {
		t.Fatal(err)
	}
	live := ""
	if ms[0] != nil {
		live = ms[0].ACLName()
	}
	if got := strings.Join(deleted, ","); got != tt.wantDeleted || live != tt.wantLive {
		t.Errorf("deleted keys %q, key %q; want %q and %q", got, live, tt.wantDeleted, tt.wantLive)
	}
}

// makeKeys makes the deleted keys and the live key, and returns the versions of the deleted keys, followed by names
// that no version has.
func (tt deletedNameTest) makeKeys(t *testing.T, l *testRing) []string {
	t.Helper()
	ctx := t.Context()
	var versions []string
	for acl := range strings.SplitSeq(tt.deleted, ",") {
		if acl == "" {
			continue
		}
		v, err := l.primary.Provider.Create(ctx, reportsSpec(acl))
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v.Name)
		if err := l.primary.Delete(ctx, "reports"); err != nil {
			t.Fatal(err)
		}
	}
	if tt.live != "" {
		if _, err := l.primary.Provider.Create(ctx, reportsSpec(tt.live)); err != nil {
			t.Fatal(err)
		}
	}
	return append(versions, "reports@none", "reports@none")
}

// TestDeletedKeyIsRestored: bob cannot prevent that alice undeletes her deleted key, even if an older server let bob
// create a key of that name.
func TestDeletedKeyIsRestored(t *testing.T) {
	ctx := t.Context()
	l := newSoftDeleteRing(t, func(c *Config) {
		c.Policy = rules(t, "key.acl.hers.ALL", "alice", "key.acl.hers.GENERATE_EEK", "maker", "key.acl.his.ALL",
			"bob", "keytrustee.kms.acl.UNDELETE", "alice", "keytrustee.kms.acl.PURGE", "bob")
	})
	createKey := func(user, acl string) error {
		_, err := l.Create(ctx, caller(user), provider.Spec{Name: "reports",
			Attributes: map[string]string{claviger.ACLNameAttribute: acl}})
		return err
	}
	if err := createKey("alice", "hers"); err != nil {
		t.Fatal(err)
	}
	es, deks := l.edeks(t, "reports", 1)
	if err := l.Delete(ctx, caller("alice"), "reports"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, createKey("bob", "his"), claviger.KeyDenied)
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
		t.Errorf("the deleted keys that alice sees: %+v, %v", list, err)
	}
	if err := l.Purge(ctx, caller("bob"), "reports", ""); err != nil {
		t.Fatal(err)
	}
	if err := l.Undelete(ctx, caller("alice"), "reports", ""); err != nil {
		t.Fatal(err)
	}
	if dek, err := l.Decrypt(ctx, caller("alice"), "reports", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("the undeleted key: %v", err)
	}
}
