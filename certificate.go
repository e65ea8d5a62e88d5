package claviger

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// CertificateCure says what to do about a server's certificate that was refused; "" where err has another cause.
// trust names the place of the authorities that the caller trusts.
func CertificateCure(err error, trust string) string {
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &hostname):
		return "name the host as its certificate does, or have that issued for this name too"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		cert := invalid.Cert
		name := Printable(cert.Subject.String())
		switch early := strings.Contains(invalid.Detail, "is before"); {
		case early:
			return fmt.Sprintf("the certificate %s is good from %s on only: set the clock of this host, or that of the "+
				"host that made it", name, cert.NotBefore.UTC().Format(time.RFC3339))
		case cert.IsCA:
			return fmt.Sprintf("the authority's certificate %s ended at %s: put its new one into %s, and have the "+
				"server's certificate issued anew where that needs it", name, cert.NotAfter.UTC().Format(time.RFC3339), trust)
		}
		return fmt.Sprintf("the certificate %s ended at %s: have it renewed at that server; where that time is yet to "+
			"come, set this host's clock", name, cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &authority):
		return "put the certificate of its authority, or its own where it is self-signed, into " + trust
	}
	return ""
}
