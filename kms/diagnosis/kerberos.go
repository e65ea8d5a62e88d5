package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"claviger"
	"claviger/doctor"
	"claviger/kms"
)

// kerberos returns the checks of logins by Kerberos, and of proxy users.
func (s *site) kerberos() doctor.Group {
	needs := []string{"D-kerberos-keytab"}
	return doctor.Group{Title: "Kerberos", Checks: []doctor.Check{
		{ID: "D-kerberos-keytab", Title: "the keytab", Needs: []string{"D-conf-read"},
			Measures: "the keytab is read as a start does; it must have a key of the server's principal, and one " +
				"that is not of a weak encryption type",
			Why: "without a key of its principal no client can log in, and newer Java and Kerberos refuse weak keys",
			Cure: "export a keytab with keys of the server's principal (ktadd -norandkey), readable by the " +
				"service's user",
			Run: s.kerberosKeytab},
		{ID: "D-kerberos-kdc", Title: "the keytab at the KDC", Needs: needs,
			Measures: "one login at the KDC with the keytab's key, and one ticket for the server itself, which is " +
				"opened with the keytab",
			Why: "if the principal's key was changed at the KDC after the export (kvno), or the principal is gone, " +
				"no client can log in",
			Cure: "export the keytab again (ktadd -norandkey)",
			Run:  s.kerberosKDC},
		{ID: "D-kerberos-names", Title: "the name of the server's address", Needs: needs,
			Measures: "the host of the server's principal is resolved, and its address is resolved back to a name",
			Why: "clients whose krb5.conf has rdns = true, the default, request a ticket for the name to which the " +
				"address is resolved",
			Cure: "correct the reverse zone of the name service, or set rdns = false in krb5.conf of the clients",
			Run:  s.kerberosNames},
		{ID: "D-kerberos-rules", Title: "short names of principals", Needs: needs,
			Measures: "the rules make the short names of sample principals: a NameNode's, an HTTP service's, a user's",
			Why: "rules of keys name short names: a principal without a short name is refused, and one with another " +
				"short name than at the source loses its rights",
			Cure: "take over hadoop.kms.authentication.kerberos.name.rules from the source, or from " +
				"hadoop.security.auth_to_local of the cluster",
			Run: s.kerberosRules},
		{ID: "D-kerberos-proxy", Title: "proxy users", Needs: []string{"D-conf-read"},
			Measures: "each hadoop.proxyuser.* of core-site.xml in the folder of --hdfs-conf is compared with " +
				"hadoop.kms.proxyuser.*",
			Why: "a service that HDFS lets act for users, such as Hive or HttpFS, needs the same right here to open " +
				"their files in encryption zones",
			Cure: "set hadoop.kms.proxyuser.USER.hosts and .groups or .users, for services that use encryption zones",
			Run:  s.kerberosProxy},
	}}
}

func (s *site) kerberosKeytab(context.Context) []doctor.Finding {
	log, warnings := collect()
	facts, err := s.service.Kerberos(log) // D-kerberos-rules shows the warnings
	if err != nil {
		return doctor.Error(err, "")
	}
	if facts == nil {
		return doctor.Skip("clients do not log in by Kerberos (hadoop.kms.authentication.type)")
	}
	s.krb, s.krbWarnings = facts, *warnings
	var list []doctor.Finding
	for _, principal := range facts.Principals() {
		version, types := facts.Newest(principal)
		f := doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s, kvno %d: %s", claviger.Printable(principal),
			version, strings.Join(types, ", "))}
		if weakOnly(types) {
			f.Status = doctor.Warning
			f.Cure = "give the principal a key of AES at the KDC, and export the keytab again"
		}
		list = append(list, f)
	}
	return list
}

// weakOnly reports whether all encryption types are of DES or RC4.
func weakOnly(types []string) bool {
	return !slices.ContainsFunc(types, func(t string) bool {
		return !strings.HasPrefix(t, "des") && !strings.HasPrefix(t, "arcfour")
	})
}

func (s *site) kerberosKDC(context.Context) []doctor.Finding {
	principal := s.krb.Principals()[0]
	switch err := s.krb.Try(principal); {
	case errors.Is(err, kms.ErrNoKDC):
		return doctor.Skip("no KDC answers, so the keys cannot be compared")
	case err != nil:
		return doctor.Error(fmt.Errorf("%s: %w", principal, err), "")
	}
	return doctor.Pass("the KDC has the same key of %s", claviger.Printable(principal))
}

// The lookups of names and addresses. They are variables for tests.
var (
	lookupHost = net.DefaultResolver.LookupHost
	lookupAddr = net.DefaultResolver.LookupAddr
)

func (s *site) kerberosNames(ctx context.Context) (list []doctor.Finding) {
	for _, principal := range s.krb.Principals() {
		name, _, _ := strings.Cut(principal, "@")
		_, host, _ := strings.Cut(name, "/")
		addrs, err := lookupHost(ctx, host)
		if err != nil {
			list = append(list, doctor.Finding{Status: doctor.Warning, Measured: claviger.Printable(host) +
				" has no address here", Cure: "correct the host in the principal, or the name service"})
			continue
		}
		names, err := lookupAddr(ctx, addrs[0])
		switch same := func(n string) bool { return strings.EqualFold(strings.TrimSuffix(n, "."), host) }; {
		case err != nil || len(names) == 0:
			list = append(list, doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s is %s, which has no name",
				host, addrs[0])})
		case !slices.ContainsFunc(names, same):
			list = append(list, doctor.Finding{Status: doctor.Warning,
				Measured: fmt.Sprintf("%s is %s, whose name is %s", host, addrs[0],
					claviger.Printable(strings.Join(names, ", ")))})
		default:
			list = append(list, doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s is %s, whose name is %[1]s",
				host, addrs[0])})
		}
	}
	return list
}

func (s *site) kerberosRules(context.Context) (list []doctor.Finding) {
	for _, warning := range s.krbWarnings {
		list = append(list, doctor.WithCure(doctor.Warning, warning))
	}
	_, realm, _ := strings.Cut(s.krb.Principals()[0], "@")
	for _, sample := range []string{"hdfs/nn.example.com", "HTTP/kms.example.com", "alice"} {
		short, err := s.krb.Rules.Short(sample + "@" + realm)
		if err != nil {
			list = append(list, doctor.Error(fmt.Errorf("%s@%s: %w", sample, realm, err), "")...)
			continue
		}
		list = append(list, doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s@%s is %s", sample, realm,
			claviger.Printable(short))})
	}
	return list
}

func (s *site) kerberosProxy(context.Context) []doctor.Finding {
	hdfs, skipped := s.hdfsConf()
	if hdfs == nil {
		return skipped
	}
	users := func(props map[string]string) map[string]bool {
		found := map[string]bool{}
		for name := range props {
			if i := strings.LastIndexByte(name, '.'); i > 0 {
				found[name[:i]] = true
			}
		}
		return found
	}
	here := users(s.conf.WithPrefix("hadoop.kms.proxyuser."))
	var list []doctor.Finding
	for _, user := range slices.Sorted(maps.Keys(users(hdfs.WithPrefix("hadoop.proxyuser.")))) {
		f := doctor.Finding{Status: doctor.OK, Measured: claviger.Printable(user) + " is a proxy user of HDFS and here"}
		if !here[user] {
			f.Status = doctor.Warning
			f.Measured = claviger.Printable(user) + " is a proxy user of HDFS, and not here"
		}
		list = append(list, f)
	}
	if len(list) == 0 {
		return doctor.Pass("HDFS has no proxy users")
	}
	return list
}
