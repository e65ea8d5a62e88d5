package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"claviger/authn"
	"claviger/console"
	"claviger/gssapi"
	"claviger/hadoopconf"
)

// The properties of authentication.
const (
	authPrefix   = "hadoop.kms.authentication."
	authType     = authPrefix + "type"
	authKeytab   = authPrefix + "kerberos.keytab"
	authService  = authPrefix + "kerberos.principal"
	authRules    = authPrefix + "kerberos.name.rules"
	authToLocal  = "hadoop.security.auth_to_local"
	delegationBy = "org.apache.hadoop.security.token.delegation.web."
)

// authHandler makes the handler that hadoop.kms.authentication.type names, by its
// short name or Hadoop's class, and the rules that map principals to short names.
func authHandler(conf *hadoopconf.Conf, anonymous bool, log *slog.Logger) (authn.Handler, *authn.Rules, error) {
	const secured = "hadoop.security.authentication"
	// The names of Hadoop's AuthenticationMethod. Hadoop does not start with another name.
	methods := []string{"", "simple", "kerberos", "token", "certificate", "kerberos_ssl", "proxy"}
	if !slices.Contains(methods, strings.ToLower(conf.String(secured))) {
		return nil, nil, conf.Refuse(secured, "it must be simple or kerberos")
	}
	var k *authn.Kerberos
	var err error
	switch conf.String(authType) {
	case "simple", delegationBy + "PseudoDelegationTokenAuthenticationHandler":
		rules, err := simpleRules(conf, log)
		return authn.Simple{Anonymous: anonymous}, rules, err
	case "kerberos", delegationBy + "KerberosDelegationTokenAuthenticationHandler":
		k, err = newKerberos(conf)
	case delegationBy + "MultiSchemeDelegationTokenAuthenticationHandler":
		if err = checkSchemes(conf); err == nil {
			k, err = newKerberos(conf)
		}
		if err == nil {
			k = authn.MultiScheme(k)
		}
	default:
		err = conf.Refuse(authType,
			"it must be simple, kerberos, or "+delegationBy+"MultiSchemeDelegationTokenAuthenticationHandler")
	}
	if err != nil {
		return nil, nil, err
	}
	rules, err := kerberosRules(conf, log)
	return k, rules, err
}

// newKerberos makes the handler of type kerberos. A keytab that cannot be used is an
// error at the start, not at the first login.
func newKerberos(conf *hadoopconf.Conf) (*authn.Kerberos, error) {
	service := conf.String(authService)
	switch {
	case strings.Contains(service, "_HOST"):
		return nil, conf.Refuse(authService, "_HOST is not replaced here, nor in Hadoop's KMS; write the host name "+
			"that clients use, or * for every HTTP principal of the keytab")
	case service != "*" && !strings.HasPrefix(service, "HTTP/"):
		return nil, conf.Refuse(authService, "it must be HTTP/ and the host name that clients use, or * for every "+
			"HTTP principal of the keytab")
	}
	keytab, ok := conf.Path(authKeytab)
	if !ok {
		return nil, conf.Refuse(authKeytab, "it must be the path of a keytab with the key of "+service)
	}
	acceptor, err := gssapi.NewAcceptor(gssapi.AcceptorConfig{Keytab: keytab, Principals: []string{service}})
	if errors.Is(err, gssapi.ErrNotBuilt) {
		return nil, conf.Refuse(authType, err.Error())
	}
	if err != nil {
		return nil, conf.RefuseFor(authKeytab, err,
			"it must be a keytab that this process can read, with the key of %s: %v", service, err)
	}
	const whitelist = authPrefix + "kerberos.endpoint.whitelist"
	k, err := authn.NewKerberos(negotiator{acceptor}, conf.Strings(whitelist))
	if err != nil {
		return nil, conf.Refuse(whitelist, err.Error())
	}
	return k, nil
}

// negotiator makes a gssapi.Acceptor an authn.Negotiator.
type negotiator struct{ acceptor *gssapi.Acceptor }

// Accept returns an error with two texts: Java's text for the caller, and the full
// text for the operator.
func (n negotiator) Accept(token []byte) (client string, reply []byte, err error) {
	accepted, err := n.acceptor.Accept(token)
	if err == nil {
		return accepted.Client, accepted.Reply, nil
	}
	refused := &authn.NegotiationError{Reason: "GSSException: Failure unspecified at GSS-API level",
		Explanation: err.Error(), Err: err}
	var known *gssapi.Error
	if errors.As(err, &known) && known.Java != "" {
		refused.Reason = known.Java
		refused.ServerSide = slices.Contains([]gssapi.Kind{gssapi.Skew, gssapi.Expired, gssapi.NoKey, gssapi.NoKeytab,
			gssapi.NoCredentials}, known.Kind)
	}
	return "", nil, refused
}

// Check reads the keytab.
func (n negotiator) Check() error {
	if err := n.acceptor.Check(); err != nil {
		return fmt.Errorf("no client can log in: %w; restore the keytab that %s names, readable by the user that "+
			"this server runs as. No restart is needed", err, authKeytab)
	}
	return nil
}

// loginChecks returns the checks of type kerberos. After a refused login, a 403, a client tries no other node, so a
// keytab that cannot be used takes this node out of service. Failed logins of clients are only informational: anybody
// can send forged tickets, and a forged ticket must not take a node out of service.
func loginChecks(h authn.Handler) []console.Check {
	k, ok := h.(*authn.Kerberos)
	if !ok {
		return nil
	}
	return []console.Check{
		{Name: "keytab", Run: func(context.Context) error { return k.CheckKeytab() }},
		{Name: "logins of clients", Informational: true, Run: func(context.Context) error { return k.CheckLogins() }},
	}
}

// checkSchemes checks the schemes of multi-scheme authentication. Only negotiate is
// supported.
func checkSchemes(conf *hadoopconf.Conf) error {
	const (
		schemesName    = authPrefix + authn.SchemesProperty
		delegationName = authPrefix + authn.DelegationSchemesProperty
	)
	schemes, err := authn.ParseSchemes(conf.String(schemesName))
	if err != nil {
		return conf.Refuse(schemesName, err.Error())
	}
	for _, s := range schemes {
		handler := authPrefix + authn.SchemeHandlerProperty(s)
		if err := authn.CheckScheme(s, conf.String(handler)); err != nil {
			return conf.Refuse(handler, err.Error())
		}
	}
	delegation, err := authn.ParseSchemes(conf.String(delegationName))
	if err != nil {
		return conf.Refuse(delegationName, err.Error())
	}
	for _, s := range delegation {
		if !slices.Contains(schemes, s) {
			return conf.Refuse(delegationName, s+" is not one of the schemes of "+schemesName)
		}
	}
	return nil
}

// kerberosRules reads the rules of hadoop.kms.authentication.kerberos.name.rules. As
// in Hadoop's KMS, that property always has a value, so auth_to_local is not used.
func kerberosRules(conf *hadoopconf.Conf, log *slog.Logger) (*authn.Rules, error) {
	if p, _ := conf.Lookup(authRules); p.File == "" {
		if _, set := conf.Get(authToLocal); set {
			log.Warn("the rules of " + authToLocal + " are not used by a KMS of type kerberos. It uses the rules of " +
				authRules + ", or DEFAULT if that property is not set; set it to the same rules")
		}
	}
	return readRules(conf, authRules)
}

// simpleRules reads the rules of auth_to_local, if it is set. Otherwise Hadoop uses
// the first component of a name, or DEFAULT if the cluster uses Kerberos.
func simpleRules(conf *hadoopconf.Conf, log *slog.Logger) (*authn.Rules, error) {
	if _, set := conf.Get(authToLocal); !set {
		if !strings.EqualFold(conf.String("hadoop.security.authentication"), "kerberos") {
			return nil, nil // the first component
		}
		conf.SetDefault(authToLocal, "DEFAULT")
	}
	return readRules(conf, authToLocal)
}

// readRules reads the rules of a property.
func readRules(conf *hadoopconf.Conf, name string) (*authn.Rules, error) {
	mechanism := authn.MechanismHadoop
	for _, property := range []string{authPrefix + "kerberos.name.rules.mechanism", authToLocal + ".mechanism"} {
		text, set := conf.Get(property)
		if !set {
			continue
		}
		var err error
		if mechanism, err = authn.ParseMechanism(text); err != nil {
			return nil, conf.Refuse(property, err.Error())
		}
		break
	}
	text := conf.String(name)
	rules, err := authn.ParseRules(text, mechanism, "")
	if err != nil {
		return nil, conf.Refuse(name, err.Error())
	}
	if !rules.UsesDefaultRealm() {
		return rules, nil
	}
	realm, err := gssapi.DefaultRealm()
	if _, own, ok := strings.Cut(conf.String(authService), "@"); err != nil && ok {
		realm, err = own, nil
	}
	if err != nil {
		return nil, conf.Refuse(name, fmt.Sprintf("DEFAULT needs the default realm, and there is none (%v); set "+
			"default_realm in krb5.conf", err))
	}
	return authn.ParseRules(text, mechanism, realm)
}
