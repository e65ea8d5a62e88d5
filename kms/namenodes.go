package kms

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"

	"claviger/hadoopconf"
	"claviger/namenode"
	"claviger/provider"
)

// NameNodes returns a client of the NameNodes at these URLs. The client uses the truststore and the Kerberos login that
// a server of this configuration uses for connections to another KMS. A configuration without a folder trusts the
// system's roots.
func NameNodes(conf *hadoopconf.Conf, urls []string) (*namenode.Client, error) {
	var trust *tls.Config
	if conf.Dir() != "" && strings.Contains(strings.Join(urls, " "), "https:") {
		service := &Service{Conf: conf, Log: slog.New(slog.DiscardHandler)}
		var err error
		if trust, err = service.ClientTLS(provider.Env{}); err != nil {
			return nil, err
		}
	}
	negotiate, err := ClientKerberos(conf)
	if err != nil {
		return nil, err
	}
	client, err := namenode.New(urls, namenode.Config{TLS: trust,
		Negotiate: func(host string) (namenode.Negotiation, error) { return negotiate(host) }})
	if err != nil {
		return nil, fmt.Errorf("--namenode: %w", err)
	}
	return client, nil
}
