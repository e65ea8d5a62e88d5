package authn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Hadoop's MultiSchemeDelegationTokenAuthenticationHandler chooses the handler by the scheme of the Authorization
// header: Basic, Digest or Negotiate. This package has only Negotiate with the handler kerberos, so the only
// difference to type kerberos is the type of the cookies. For Basic, Hadoop has the handler ldap, which binds at a
// directory with the client's password.

// MultiScheme returns a multi-scheme handler whose only scheme is Negotiate with k.
func MultiScheme(k *Kerberos) *Kerberos {
	inner := *k
	inner.kind = kerberosInnerTokenType
	return &inner
}

// The properties of multi-scheme authentication, without the prefix hadoop.kms.authentication.
const (
	SchemesProperty           = "multi-scheme-auth-handler.schemes"
	DelegationSchemesProperty = "multi-scheme-auth-handler.delegation.schemes"
)

// SchemeHandlerProperty returns the name of the property with the handler of a scheme. As in Hadoop, the scheme is in
// lower case.
func SchemeHandlerProperty(scheme string) string {
	return SchemesProperty + "." + strings.ToLower(scheme) + ".handler"
}

// httpSchemes has the schemes that can be configured in Hadoop.
var httpSchemes = []string{"Basic", Negotiate, "Digest"}

// ParseSchemes reads a list of HTTP authentication schemes, in lower or upper case. The result is spelt as in a
// challenge.
func ParseSchemes(list string) ([]string, error) {
	var schemes []string
	for entry := range strings.SplitSeq(list, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		i := slices.IndexFunc(httpSchemes, func(s string) bool { return strings.EqualFold(s, entry) })
		switch {
		case i < 0:
			return nil, fmt.Errorf("%q is not a scheme; Hadoop has %s", entry, strings.Join(httpSchemes, ", "))
		case slices.Contains(schemes, httpSchemes[i]):
			return nil, fmt.Errorf("%s is listed twice; keep one", httpSchemes[i])
		}
		schemes = append(schemes, httpSchemes[i])
	}
	if len(schemes) == 0 {
		return nil, errors.New("it names no scheme; write negotiate")
	}
	return schemes, nil
}

// CheckScheme returns an error if a scheme with a handler is not supported.
func CheckScheme(scheme, handler string) error {
	switch h := strings.ToLower(handler); {
	case h == "":
		return fmt.Errorf("no handler is configured for scheme %s; write kerberos", scheme)
	case h == "ldap" || strings.HasSuffix(h, "ldapauthenticationhandler"):
		return errors.New("passwords checked by LDAP are not supported: stock KMS clients cannot send passwords; " +
			"remove the scheme, or let a gateway that is a proxy user here authenticate the users with passwords")
	case scheme != Negotiate:
		return fmt.Errorf("scheme %s is not supported; negotiate with handler kerberos is", scheme)
	case h == "kerberos" || h == "org.apache.hadoop.security.authentication.server.kerberosauthenticationhandler":
		return nil
	}
	return errors.New("it must be kerberos")
}
