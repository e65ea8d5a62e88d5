package authn

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/internal/ldaptest"
)

// TestCompositeGroups: the lookup fails if the part that failed could have changed the result.
func TestCompositeGroups(t *testing.T) {
	directories := map[string]Directory{
		"staff":  func(string) ([]string, error) { return []string{"staff", "dev"}, nil },
		"banned": func(string) ([]string, error) { return []string{"dev", "banned"}, nil },
		"none":   NoGroups,
		"unknown": func(name string) ([]string, error) {
			return nil, fmt.Errorf("wrapped: %w", user.UnknownUserError(name))
		},
		"down": func(string) ([]string, error) { return nil, errors.New("the directory is down") },
		"partial": func(string) ([]string, error) {
			return []string{"staff"}, errors.New("the directory closed the connection")
		},
	}
	for _, test := range []struct {
		parts           string
		combined, first string // groups in the two modes; "?": not known; "-": no such user
	}{
		{"staff", "dev staff", "dev staff"},
		{"staff banned", "banned dev staff", "dev staff"},
		{"none staff", "dev staff", "dev staff"},
		{"unknown staff", "dev staff", "dev staff"},
		{"unknown none", "", ""},
		{"unknown unknown", "-", "-"},
		{"down staff", "?", "?"},
		{"staff down", "?", "dev staff"},
		{"none down", "?", "?"},
		{"unknown down", "?", "?"},
		{"partial banned", "?", "?"},
	} {
		for combined, want := range map[bool]string{true: test.combined, false: test.first} {
			var parts []NamedDirectory
			for name := range strings.FieldsSeq(test.parts) {
				parts = append(parts, NamedDirectory{Name: name, Directory: directories[name]})
			}
			groups, err := CompositeGroups(parts, combined)("alice")
			got := strings.Join(slices.Sorted(slices.Values(groups)), " ")
			var unknown user.UnknownUserError
			switch {
			case errors.As(err, &unknown):
				got += "-"
			case err != nil:
				got += "?"
			}
			if got != want {
				t.Errorf("%s, combined %t: %q, %v; want %q", test.parts, combined, got, err, want)
			}
		}
	}
}

// TestCompositeFault: if a real LDAP server is down, a blacklist with a group of that server excludes the user, even
// if another part returns groups.
func TestCompositeFault(t *testing.T) {
	s := ldaptest.Start(t, directory)
	ldap, err := LDAPGroups(ldapConfig(s))
	if err != nil {
		t.Fatal(err)
	}
	local := NamedDirectory{Name: "local", Directory: func(string) ([]string, error) { return []string{"staff"}, nil }}
	policy, _ := authz.Parse([]authz.Property{
		{Name: "hadoop.kms.acl.DECRYPT_EEK", Value: " staff"}, {Name: "hadoop.kms.blacklist.DECRYPT_EEK",
			Value: " analysts"},
		{Name: "hadoop.kms.acl.GENERATE_EEK", Value: " staff"},
	})
	alice := claviger.Principal{Name: "alice", Short: "alice"}
	newGroups := func() *Groups {
		return groupsOf(t, CompositeGroups([]NamedDirectory{local, {Name: "ad", Directory: ldap}}, true), quiet)
	}
	check := func(when string, g *Groups, generate bool) {
		t.Helper()
		if policy.May(authz.DecryptEEK, alice, g.Of) {
			t.Errorf("%s, alice decrypts with the groups %q", when, g.Of("alice"))
		}
		if got := policy.May(authz.GenerateEEK, alice, g.Of); got != generate {
			t.Errorf("%s, GENERATE_EEK is %t for the groups %q", when, got, g.Of("alice"))
		}
	}
	g := newGroups()
	check("with all parts", g, true)
	s.Stop()
	check("with LDAP down since the start", newGroups(), false)
	now := time.Now().Add(2 * time.Minute)
	g.now = func() time.Time { return now }
	check("with LDAP down, and the last groups known", g, true)
	if st := g.Stats(); st.Failed != 1 || st.Err == nil ||
		!strings.Contains(st.Err.Error(), "group mapping provider ad") {
		t.Errorf("figures: %+v", st)
	}
}
