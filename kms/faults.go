package kms

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"strings"

	"claviger/authn"
	"claviger/hadoopconf"
	"claviger/metastore/location"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
)

// Faults returns what keeps a server with this configuration from starting, as far as the files of this host show it.
// It opens no token, no store, no log file and no connection. Warnings go to log, as those of a start do.
func Faults(conf *hadoopconf.Conf, log *slog.Logger) []error {
	r := &reader{conf: conf}
	s := r.settings()
	r.keep(conf.CheckPublic())
	r.providerURIs()
	r.keep(conf.WithPlace(hsm.CheckSettings(provider.Env{Get: conf.Get})))
	if _, err := location.Of(conf); err != nil && len(r.errs) == 0 {
		r.keep(err)
	}
	if _, _, err := readACLs(ACLFile(conf)); !errors.Is(err, fs.ErrNotExist) {
		r.keep(err)
	}
	r.authentication(log)
	r.shared(log)
	if s.tls {
		served, err := serverTLS(conf, leaveKeys, log)
		r.keep(err)
		if served != nil {
			served.Close()
		}
	}
	if s.audit.keyFile != "" {
		if _, err := ReadAuditKey(s.audit.keyFile); err != nil {
			r.keep(conf.BadFile("claviger.audit.json.key.file", err, ""))
		}
	}
	return distinct(r.errs)
}

// distinct returns the errors without those that have the text of an earlier one.
func distinct(errs []error) (list []error) {
	seen := map[string]bool{}
	for _, err := range errs {
		if !seen[err.Error()] {
			seen[err.Error()] = true
			list = append(list, err)
		}
	}
	return list
}

// providerURIs checks the URIs of providers and sources, and the keystore file of an HSM.
func (r *reader) providerURIs() {
	service := &Service{Conf: r.conf}
	registry := builtin.Registry(builtin.Options{})
	for _, property := range []string{hadoopconf.ProviderURI, hadoopconf.SourceURI} {
		list, err := service.uris(property)
		r.keep(err)
		if property == hadoopconf.ProviderURI && err == nil && len(list) == 0 {
			r.keep(noProvider(r.conf, registry))
		}
		for _, uri := range list {
			if err := checkURI(registry, uri); err != nil {
				r.keep(service.Blame(property, err))
			}
		}
	}
}

// checkURI checks the URI of a provider without opening it.
func checkURI(registry *provider.Registry, uri string) error {
	scheme, err := registry.SchemeOf(uri)
	if err != nil {
		return err
	}
	switch scheme.Name {
	case "pkcs11":
		_, _, err = pkcs11.ParseURI(uri)
		return err
	case "kms":
		_, err = provider.ParseKMS(uri)
		return err
	}
	path, err := provider.UnnestPath(uri)
	if err == nil && scheme.Name == "cloudera.hsmkp" {
		_, _, err = pkcs11.ReadKeystoreFile(path)
	}
	return err
}

// authentication checks the properties of authentication, and the files that they name.
func (r *reader) authentication(log *slog.Logger) {
	if err := r.cookies().Cookie.Check(); err != nil {
		r.keep(cmp.Or(r.conf.WithPlace(err), err))
	}
	anonymous := r.bool(authPrefix + "simple.anonymous.allowed")
	r.delegations(&cluster{}, log)
	_, _, err := authHandler(r.conf, anonymous, log)
	r.keep(err)
	groups, err := NewGroups(r.conf, log)
	r.keep(err)
	if err == nil {
		_, warnings := authn.NewProxyUsers(r.conf.WithPrefix(authn.ProxyUserPrefix), groups.Of, log)
		for _, w := range warnings {
			log.Warn(w)
		}
	}
	_, err = ClientKerberos(r.conf)
	r.keep(err)
	_, ok := r.conf.Get(hadoopconf.SourceURI)
	if ok || strings.HasPrefix(r.conf.String(traceEndpoint), "https:") {
		service := &Service{Conf: r.conf, Log: log}
		_, err = service.ClientTLS(provider.Env{})
		r.keep(err)
	}
}

// shared checks the properties of the secrets and tokens that nodes share.
func (r *reader) shared(log *slog.Logger) {
	c := &cluster{}
	defer c.Close() //nolint:errcheck // it only reads files
	tokens, e := r.sharedTokens(c)
	switch kind := r.conf.String(signerKind); kind {
	case "random":
	case "file":
		_, err := signatureFile(r.conf)
		r.keep(err)
	case "zookeeper":
		_, err := c.connection(r.conf, log, signerConnection)
		r.keep(err)
	case signerSQL:
		if !location.IsPostgres(r.conf.String(hadoopconf.MetastoreURI)) {
			r.keep(noSharedStore(r.conf))
		}
	default:
		r.keep(noSigner(r.conf))
	}
	if tokens && r.conf.String(signerKind) != "zookeeper" { // else both use one connection
		_, err := c.connection(r.conf, log, e)
		r.keep(err)
	}
}
