package gssapi

import (
	"errors"
	"strings"
)

// loginCures has the cure for each text of the library, in lower case, when our own login or our proof to a service
// fails. The first text that is found counts. The cures of explain are for an acceptor, and are about the other side.
var loginCures = []struct{ text, cure string }{
	{"clock skew too great", "the clock of this host differs from the KDC's or the service's by more than " +
		"the clockskew of krb5.conf (5 minutes unless set): synchronise them by NTP"},
	{"server 'krbtgt/", realmCure}, // as newer libraries quote it
	{"server krbtgt/", realmCure},
	{"server not found", serviceCure},
	{"server http/", serviceCure},
	{"server zookeeper/", serviceCure},
	{"not found in kerberos database", "the KDC has no such principal: correct the principal's name, or " +
		"create it there (addprinc), and export a keytab of it"},
	{"decrypt integrity check failed", staleKeytab},
	{"preauthentication failed", staleKeytab},
	{"password incorrect", staleKeytab},
	{"key has expired", "the principal's key, or the principal, has expired at the KDC: move its expiry date " +
		"there (modprinc), or change its key, and export the keytab again"},
	{"entry in database has expired", "the principal has expired at the KDC: move its expiry date there (modprinc)"},
	{"credentials have been revoked", "the KDC has locked the principal: unlock it there (modprinc -unlock)"},
	{"cannot contact any kdc", kdcCure},
	{"cannot find kdc", kdcCure},
	{"cannot resolve", kdcCure},
	{"ticket expired", expiredCure},
	{"credential has expired", expiredCure},
	{"credentials have expired", expiredCure},
	{"configuration file", "correct krb5.conf, or name another file in KRB5_CONFIG"},
}

const (
	expiredCure = "the tickets have expired: kinit again, or name a keytab, from which this program gets new tickets"
	kdcCure     = "check that the KDC runs, that this host reaches its port 88, and that [realms] of krb5.conf names it"
	realmCure   = "krb5.conf says that the service's host is in another realm, which this KDC does not have: set the " +
		"host's realm in [domain_realm] of krb5.conf, and default_realm"
	serviceCure = "the KDC has no principal of the service: use the host name of the principal HTTP/HOST " +
		"(zookeeper/HOST for ZooKeeper), or create such a principal"
	staleKeytab = "the key in the keytab differs from the KDC's, because the principal's key was changed after " +
		"the export: export the keytab again (ktadd -norandkey)"
)

// asLogin gives an error of our own login the cure for this side.
func asLogin(err error, conf *InitiatorConfig) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	lower := strings.ToLower(e.Detail)
	e.Cure = ""
	for _, c := range loginCures {
		if strings.Contains(lower, c.text) {
			e.Cure = c.cure
			return err
		}
	}
	const keytab = "keytab: "
	noTickets := strings.Contains(lower, "credentials cache") || strings.Contains(lower, "no kerberos credentials")
	switch {
	case strings.HasPrefix(lower, keytab) && strings.Contains(lower, "no such file"):
		e.Cure = "put the keytab there, or correct the path"
	case strings.HasPrefix(lower, keytab):
		e.Cure = "let the server's user read the file: make that user its owner, mode 0600"
	case conf.Keytab != "" &&
		(noTickets || strings.Contains(lower, "no suitable keys") || strings.Contains(lower, "key table entry")):
		// The library could not get tickets by the keytab, and its text is about the cache of the tickets.
		e.Cure = "the keytab has no key of " + conf.Principal + ": list its keys by klist -kt " + conf.Keytab
	case noTickets:
		e.Cure = "log in by kinit as the server's user, or name a keytab and its principal"
	}
	return err
}
