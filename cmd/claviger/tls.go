package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/provider"
	"claviger/secret"
)

// tlsFile reads a store's place and passwords from ssl-server.xml or
// ssl-client.xml; ok is false where it names none. prefix is
// "ssl.server.keystore." and the like.
func tlsFile(c *hadoopconf.Conf, prefix string) (f keystore.TLSFile, ok bool) {
	path, ok := c.Path(prefix + "location")
	return keystore.TLSFile{
		Path:        path,
		Type:        c.String(prefix + "type"),
		Password:    secret.Bytes(c.String(prefix + "password")),
		KeyPassword: secret.Bytes(c.String(prefix + "keypassword")),
	}, ok
}

// sslConf reads one of the two files beside kms-site.xml. One that is not there
// is empty.
func sslConf(conf *hadoopconf.Conf, property, fallback string) (*hadoopconf.Conf, error) {
	name := fallback
	if v, ok := conf.Get(property); ok {
		name = v
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(conf.Dir(), name)
	}
	c := hadoopconf.New(filepath.Dir(name), nil)
	return c, c.AddFile(name, true)
}

// serverTLS is the configuration of https, which follows its keystore's changes
// until stop is called; nil where the server speaks http.
func (s *kmsServer) serverTLS() (conf *tls.Config, stop func(), err error) {
	stop = func() {}
	if !s.set.tls {
		return nil, stop, nil
	}
	c, err := sslConf(s.conf, "hadoop.ssl.server.conf", "ssl-server.xml")
	if err != nil {
		return nil, stop, err
	}
	file, ok := tlsFile(c, "ssl.server.keystore.")
	if !ok {
		return nil, stop, fmt.Errorf("hadoop.kms.ssl.enabled is true, but ssl.server.keystore.location is not set in %s; name the keystore there, or set hadoop.kms.ssl.enabled to false",
			filepath.Join(c.Dir(), "ssl-server.xml"))
	}
	r, err := keystore.NewReloader(file.Files(), file.Certificate, keystore.ReloadInterval, s.log)
	if err != nil {
		return nil, stop, fmt.Errorf("property ssl.server.keystore.location: %w", err)
	}
	conf = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: keystore.GetCertificate(r), NextProtos: []string{"http/1.1"}}
	need, err := c.Bool("ssl.server.need.client.auth")
	if err == nil && need {
		err = needClients(c, conf)
	}
	if err != nil {
		r.Close()
		return nil, stop, err
	}
	return conf, r.Close, nil
}

// needClients demands a certificate of each client.
func needClients(c *hadoopconf.Conf, conf *tls.Config) error {
	trust, ok := tlsFile(c, "ssl.server.truststore.")
	if !ok {
		return errors.New("ssl.server.need.client.auth is true, but ssl.server.truststore.location is not set in ssl-server.xml")
	}
	roots, err := trust.Roots()
	if err != nil {
		return fmt.Errorf("property ssl.server.truststore.location: %w", err)
	}
	conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, roots
	return nil
}

// clientTLS is for https towards another KMS: the truststore of ssl-client.xml,
// else the system's roots.
func (s *service) clientTLS(provider.Env) (*tls.Config, error) {
	c, err := sslConf(s.Conf, "hadoop.ssl.client.conf", "ssl-client.xml")
	if err != nil {
		return nil, err
	}
	trust, ok := tlsFile(c, "ssl.client.truststore.")
	if !ok {
		return nil, nil
	}
	roots, err := trust.Roots()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("property ssl.client.truststore.location of ssl-client.xml: %w; import the source's certificate into it, as docs/migration.md shows", err)
	}
	if err != nil {
		return nil, fmt.Errorf("property ssl.client.truststore.location of ssl-client.xml: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
}
