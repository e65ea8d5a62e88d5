package kms

import (
	"fmt"
	"os"
	"strings"

	"claviger/gssapi"
	"claviger/hadoopconf"
	"claviger/provider/kmsclient"
)

const (
	clientPrincipal = "claviger.client.kerberos.principal"
	clientKeytab    = "claviger.client.kerberos.keytab"
	clientCCache    = "claviger.client.kerberos.ccache"
)

// ClientKerberos reads the principal with which this server authenticates to another KMS, if that
// KMS requires Kerberos. Only the answer to the first request shows whether that KMS does.
func ClientKerberos(conf *hadoopconf.Conf) (kmsclient.Negotiate, error) {
	login, origin, err := clientLogin(conf)
	if err != nil {
		return nil, err
	}
	return func(host string) (kmsclient.Negotiation, error) {
		c := login
		// SERVICE@HOST names no realm: Kerberos finds the realm of the host.
		c.Target, c.SPNEGO, c.Mutual = "HTTP@"+host, true, true
		i, err := gssapi.NewInitiator(c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", origin, err)
		}
		return initiator{i, origin}, nil
	}, nil
}

// initiator adds the origin of the login to its errors.
type initiator struct {
	*gssapi.Initiator
	origin string
}

func (i initiator) Step(in []byte) ([]byte, bool, error) {
	out, done, err := i.Initiator.Step(in)
	if err != nil {
		err = fmt.Errorf("%s: %w", i.origin, err)
	}
	return out, done, err
}

// clientLogin returns the login, and a text that names the origin of the login.
func clientLogin(conf *hadoopconf.Conf) (login gssapi.InitiatorConfig, origin string, err error) {
	keytab, named := conf.Path(clientKeytab)
	principal, ccache := conf.String(clientPrincipal), conf.String(clientCCache)
	switch {
	case named != (principal != ""):
		name := clientPrincipal
		if named {
			name = clientKeytab
		}
		return login, "", conf.Refuse(name, clientPrincipal+" and "+clientKeytab+" go together: set both, or none")
	case named && ccache != "":
		return login, "", conf.Refuse(clientCCache, clientKeytab+" is set too: set only one of them")
	case named:
		if principal, err = withHost(principal); err != nil {
			return login, "", err
		}
		f, err := os.Open(keytab)
		if err != nil {
			return login, "", conf.Refuse(clientKeytab, fmt.Sprintf("the keytab cannot be read (%v); it must hold the "+
				"key of %s", err, principal))
		}
		if err := f.Close(); err != nil {
			return login, "", err
		}
		return gssapi.InitiatorConfig{Keytab: keytab, Principal: principal}, principal + " of " + keytab, nil
	case ccache != "":
		return gssapi.InitiatorConfig{CCache: ccache}, "the tickets of " + ccache, nil
	}
	// Use the server's own keytab, if the server's authentication type is kerberos. For other types,
	// the property of the principal has only its default value.
	if server := conf.String(authService); !strings.EqualFold(conf.String(authType), "simple") &&
		strings.HasPrefix(server, "HTTP/") {
		if keytab, ok := conf.Path(authKeytab); ok {
			return gssapi.InitiatorConfig{Keytab: keytab, Principal: server}, server + " of " + keytab, nil
		}
	}
	return login, "the tickets of this user (kinit, or set " + clientPrincipal + " and " + clientKeytab + ")", nil
}
