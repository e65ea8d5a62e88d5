package authn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Hadoop's MultiSchemeDelegationTokenAuthenticationHandler lets the scheme of
// the Authorization header pick the handler. Of the schemes that it knows
// (Basic, Digest and Negotiate) only Negotiate with handler kerberos can be had
// here, so that all there is to it is another type of cookies. Basic goes with
// Hadoop's handler ldap, which binds at a directory with the password that a
// client sends.

// MultiScheme makes of type kerberos the only scheme of a multi-scheme handler.
func MultiScheme(k *Kerberos) *Kerberos {
	inner := *k
	inner.kind = kerberosInnerTokenType
	return &inner
}

// The properties of multi-scheme authentication, behind
// hadoop.kms.authentication.
const (
	SchemesProperty           = "multi-scheme-auth-handler.schemes"
	DelegationSchemesProperty = "multi-scheme-auth-handler.delegation.schemes"
)

// SchemeHandlerProperty names the handler of a scheme. Hadoop asks for the
// scheme in lower case.
func SchemeHandlerProperty(scheme string) string {
	return SchemesProperty + "." + strings.ToLower(scheme) + ".handler"
}

// httpSchemes are the schemes that Hadoop lets be configured.
var httpSchemes = []string{"Basic", Negotiate, "Digest"}

// ParseSchemes reads a list of HTTP authentication schemes. Case does not
// matter; what comes back is spelt as in a challenge.
func ParseSchemes(list string) ([]string, error) {
	var schemes []string
	for entry := range strings.SplitSeq(list, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		i := slices.IndexFunc(httpSchemes, func(s string) bool { return strings.EqualFold(s, entry) })
		switch {
		case i < 0:
			return nil, fmt.Errorf("%q is no scheme; Hadoop knows %s", entry, strings.Join(httpSchemes, ", "))
		case slices.Contains(schemes, httpSchemes[i]):
			return nil, fmt.Errorf("%s is there twice", httpSchemes[i])
		}
		schemes = append(schemes, httpSchemes[i])
	}
	if len(schemes) == 0 {
		return nil, errors.New("it names no scheme; write negotiate")
	}
	return schemes, nil
}

// CheckScheme tells whether a scheme can be had with a handler.
func CheckScheme(scheme, handler string) error {
	switch h := strings.ToLower(handler); {
	case h == "":
		return fmt.Errorf("no handler is configured for scheme %s; write kerberos", scheme)
	case h == "ldap" || strings.HasSuffix(h, "ldapauthenticationhandler"):
		return errors.New("passwords checked by LDAP are not supported: stock KMS clients cannot send any; take the " +
			"scheme out, or leave users with passwords to a gateway that has proxy-user rights here")
	case scheme != Negotiate:
		return fmt.Errorf("scheme %s is not supported; negotiate with handler kerberos is", scheme)
	case h == "kerberos" || h == "org.apache.hadoop.security.authentication.server.kerberosauthenticationhandler":
		return nil
	}
	return errors.New("it must be kerberos")
}
