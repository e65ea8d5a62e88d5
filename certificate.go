package claviger

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// CertificateCure returns what an operator must do about a server's certificate that was refused, or "" if err has
// another cause. trust names the place of the authorities that the caller trusts.
func CertificateCure(err error, trust string) string {
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &hostname):
		return "use the host name that its certificate has, or have the certificate issued for this name too"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		cert := invalid.Cert
		name := Printable(cert.Subject.String())
		switch early := strings.Contains(invalid.Detail, "is before"); {
		case early:
			return fmt.Sprintf("the certificate %s is not valid before %s: correct the clock of this host, or that of "+
				"the host that made the certificate", name, cert.NotBefore.UTC().Format(time.RFC3339))
		case cert.IsCA:
			return fmt.Sprintf("the authority's certificate %s expired at %s: put the authority's new certificate "+
				"into %s, and have the server's certificate issued again if necessary",
				name, cert.NotAfter.UTC().Format(time.RFC3339), trust)
		}
		return fmt.Sprintf("the certificate %s expired at %s: have it renewed at that server; if that time is in the "+
			"future, correct this host's clock", name, cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &authority):
		return "put the certificate of its authority, or its own if it is self-signed, into " + trust
	}
	return ""
}
