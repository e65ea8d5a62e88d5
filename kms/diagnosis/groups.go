package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strings"
	"time"

	"claviger"
	"claviger/authn"
	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/kms"
)

// groupsLatency is the time of a lookup above which there is a warning. Tests change it.
var groupsLatency = time.Second

// groups returns the check of the group mapping.
func (s *site) groups() doctor.Group {
	return doctor.Group{Title: "groups", Checks: []doctor.Check{
		{ID: "D-groups-user", Title: "groups of a user", Needs: []string{"D-conf-read"},
			Measures: fmt.Sprintf("the groups of the user of --as-user are looked up once, by hadoop.security.group."+
				"mapping: in LDAP, or in the operating system; more than %v is a warning", groupsLatency),
			Why: "rules that admit a group admit nobody while the groups of users are not known, and rules that " +
				"exclude a group then exclude everybody",
			Cure: "correct hadoop.security.group.mapping; with LDAP its ldap.url, ldap.bind.user, " +
				"ldap.bind.password.file, ldap.base and ldap.search.filter.user, and check that this host reaches " +
				"the directory",
			Run: s.groupsUser},
	}}
}

func (s *site) groupsUser(ctx context.Context) []doctor.Finding {
	name := s.options.AsUser
	if name == "" {
		return doctor.Skip("--as-user names no user")
	}
	mapping, err := kms.NewGroups(s.conf, s.service.Log)
	if err != nil {
		return doctor.Error(err, "")
	}
	type answer struct {
		groups []string
		err    error
	}
	done := make(chan answer, 1)
	began := time.Now()
	go func() {
		groups, err := mapping.Lookup(name)
		done <- answer{groups, err}
	}()
	var a answer
	select {
	case a = <-done:
	case <-ctx.Done(): // the lookup takes no context; its own timeouts end it
		return doctor.Fail("the directory did not answer in time", "check that this host reaches the server of "+
			authn.LDAPPrefix+"url; "+authn.LDAPPrefix+"connection.timeout.ms and "+authn.LDAPPrefix+
			"directory.search.timeout bound a lookup")
	}
	took, shown := time.Since(began), claviger.Printable(name)
	var unknown user.UnknownUserError
	switch {
	case errors.As(a.err, &unknown):
		return doctor.Warn(fmt.Sprintf("the directory does not know user %s", shown), "name a user of the cluster by "+
			"--as-user; if this user is one, "+s.searchCure("userbase", "search.filter.user"))
	case a.err != nil:
		return doctor.Error(fmt.Errorf("groups of %s: %w", shown, a.err), authn.LDAPCure(a.err))
	case len(a.groups) == 0:
		return doctor.Warn(fmt.Sprintf("%s is in no group", shown), "if the user has groups, "+
			s.searchCure("groupbase", "search.filter.group", "search.attr.member"))
	}
	text := fmt.Sprintf("%s is in %s; the lookup took %.2f ms", shown, claviger.Printable(strings.Join(a.groups, ", ")),
		milliseconds(took))
	if took > groupsLatency {
		return doctor.Warn(text, "find out what delays the directory; the first request of each user waits for it")
	}
	return doctor.Pass("%s", text)
}

// searchCure says how to correct a lookup that finds nothing. properties are those of a search in LDAP, the first one
// that of its base.
func (s *site) searchCure(properties ...string) string {
	const p = authn.LDAPPrefix
	mapping := s.conf.String(hadoopconf.GroupMapping)
	if !strings.Contains(mapping, "Ldap") && !strings.Contains(mapping, "Composite") {
		return "the name service of this host must know it, as `id` shows; if the users are in LDAP, set " +
			hadoopconf.GroupMapping + " to org.apache.hadoop.security.LdapGroupsMapping"
	}
	return fmt.Sprintf("correct %s%s (if it is not set, %[1]sbase), or %[1]s%[3]s", p, properties[0],
		strings.Join(properties[1:], " and "+p))
}
