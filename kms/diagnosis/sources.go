package diagnosis

import (
	"context"
	"fmt"
	"strings"
	"time"

	"claviger"
	"claviger/doctor"
	"claviger/migrate"
	"claviger/secret"
)

// sourceLatency is the time of a request to the source, with its connection, above which there is a warning. Tests
// change it.
var sourceLatency = time.Second

// sources returns the checks of the source of a migration, which also opens the EDEKs of old files.
func (s *site) sources() doctor.Group {
	needs := []string{"D-seed-source"}
	rights := []string{"D-source-read"}
	return doctor.Group{Title: "source", Checks: []doctor.Check{
		{ID: "D-source-reach", Title: "the source's hosts", Needs: needs,
			Measures: fmt.Sprintf("each host of the source is asked for a page that needs no right, by the scheme of "+
				"its URI, then for the names of its keys; http, and more than %v, are warnings", sourceLatency),
			Why: "files that were written before the migration are opened with EDEKs that only the source can open, " +
				"and with http everybody on the network may read their DEKs",
			Cure: "check that the KMS runs there, and that this host reaches it",
			Run:  s.sourceReach},
		{ID: "D-source-clock", Title: "the source's clock", Needs: needs,
			Measures: "the date in the answer of each host is compared with this host's clock, as `claviger migrate " +
				"plan` does",
			Why:  "signed cookies, delegation tokens and Kerberos compare times",
			Cure: "set both clocks by NTP",
			Run:  s.requirement(func() *migrate.Check { return s.requirements.Clocks })},
		{ID: "D-source-read", Title: "keys of the source", Needs: needs,
			Measures: "the names and the metadata of all keys are read at the source, as `claviger migrate plan` does",
			Why:      "a key that this server may not read at the source is not migrated",
			Cure: "at the source, in kms-acls.xml: let hadoop.kms.acl.GET_KEYS and hadoop.kms.acl.GET_METADATA admit " +
				"the server's user, and no hadoop.kms.blacklist.* of these name it; in Ranger Admin: allow the user " +
				"Get Keys and Get Metadata on key *",
			Run: s.sourceRead},
		{ID: "D-source-decrypt", Title: "EDEKs at the source", Needs: rights,
			Measures: "an EDEK of each key, which no file has, is made and opened at the source in this server's own " +
				"name",
			Why: "re-encryption opens old EDEKs at the source in the server's name",
			Cure: "at the source, in kms-acls.xml: let hadoop.kms.acl.DECRYPT_EEK and whitelist.key.acl.DECRYPT_EEK " +
				"admit the server's user, and hadoop.kms.blacklist.DECRYPT_EEK not name it",
			Run: s.sourceRight(func() *migrate.Check { return s.sourceRights.Decrypt })},
		{ID: "D-source-users", Title: "impersonation at the source", Needs: rights,
			Measures: "the same EDEKs are opened on behalf of the user of --as-user",
			Why: "until old files are re-encrypted, this server opens their EDEKs at the source on behalf of the " +
				"users who read them",
			Cure: "make the server's user a proxy user at the source (hadoop.kms.proxyuser.*)",
			Run:  s.sourceRight(func() *migrate.Check { return s.sourceRights.Users })},
		{ID: "D-source-others", Title: "the other sources", Needs: needs,
			Measures: "each source and each further provider, except the source of the migration, is asked as the " +
				"source itself is: the hosts of a KMS, and their clocks; a keystore file or a Key Trustee Server by " +
				"a reading of its keys",
			Why:  "EDEKs of its key versions are opened there, and nowhere else",
			Cure: "check that the source runs, or remove it from the configuration once nothing needs its keys",
			Run:  s.otherSources},
	}}
}

func (s *site) sourceReach(context.Context) []doctor.Finding {
	if len(s.requirements.Hosts) == 0 {
		return findingOf(*s.requirements.Alive)
	}
	return hostFindings(s.requirements.Hosts)
}

// hostFindings has a finding for each host of a source. While one host answers, the source can be used.
func hostFindings(hosts []migrate.HostFacts) (list []doctor.Finding) {
	failed := 0
	for _, h := range hosts {
		f := doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s answers in %.2f ms", h.Base,
			milliseconds(h.Took))}
		if h.Server != "" {
			f.Measured += " (" + claviger.Printable(h.Server) + ")"
		}
		switch {
		case h.Err != nil:
			failed++
			f = doctor.Finding{Status: doctor.Warning, Measured: h.Base + ": " + h.Err.Error(), Cure: h.Cure}
		case strings.HasPrefix(h.Base, "http:"):
			f.Status, f.Cure = doctor.Warning, "turn on TLS at the source, and write https in its URI"
			f.Measured += ", without TLS"
		case h.Took > sourceLatency:
			f.Status, f.Cure = doctor.Warning, "find out what delays it, or the network to it"
		}
		list = append(list, f)
	}
	for i := range list {
		if failed == len(list) {
			list[i].Status = doctor.Failure
		}
	}
	return list
}

func (s *site) otherSources(ctx context.Context) (list []doctor.Finding) {
	for _, src := range s.service.OtherSources(ctx) {
		switch {
		case len(src.Hosts) > 0:
			list = append(list, hostFindings(src.Hosts)...)
			list = append(list, clocks(src.Hosts)...)
		case src.Err != nil:
			list = append(list, doctor.Fail(secret.Value(src.URI)+": "+claviger.Reason(src.Err), "")...)
		default:
			list = append(list, doctor.Pass("%s answers", secret.Value(src.URI))...)
		}
	}
	if len(list) == 0 {
		return doctor.Skip("one source is configured")
	}
	return list
}

// clocks compares the clocks of hosts with this host's. It has no finding if no host has sent its time.
func clocks(hosts []migrate.HostFacts) []doctor.Finding {
	c := migrate.CheckClocks(hosts, now)
	if c.Status == migrate.NotTried {
		return nil
	}
	return findingOf(c)
}

func (s *site) sourceRead(ctx context.Context) []doctor.Finding {
	var err error
	s.sourceRights, err = s.engine.SourceRights(ctx)
	switch {
	case s.sourceRights.Self != nil:
		return findingOf(*s.sourceRights.Self)
	case err != nil:
		return doctor.Fail("the source does not list its keys: "+claviger.Reason(err),
			s.engine.ReadCure(ctx, err))
	}
	return findingOf(s.sourceRights.Read)
}

// sourceRight returns the check of a right that D-source-read has tried.
func (s *site) sourceRight(of func() *migrate.Check) func(context.Context) []doctor.Finding {
	return func(context.Context) []doctor.Finding {
		c := of()
		if c == nil {
			return doctor.Skip("the source is not a KMS: its keys are used here, without a request")
		}
		return findingOf(*c)
	}
}
