package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"

	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/secret"
	"claviger/tlskey"
)

// ServerTLS has the properties of a server's TLS that clients see.
type ServerTLS struct {
	// Chains has a chain for each kind of key that the server has. The server's certificate is the first of a chain.
	Chains          [][]*x509.Certificate
	Lowest, Highest uint16   // protocols, such as tls.VersionTLS12
	Names           []string // by which clients reach the server, as far as its host knows them
	// Config is for a test handshake in memory. It answers as the server would, but demands no client certificate.
	Config *tls.Config
	// Keys are the private keys in an HSM; nil if the keys are in a file.
	Keys *tlskey.Keys

	served *servedTLS
}

// Close closes what the test handshakes need.
func (t *ServerTLS) Close() { t.served.Close() }

// ServerTLS reads the settings and the certificate that a start of the server would use. If the server does not use
// TLS, the result is nil. The caller closes it. With private keys in an HSM, their token is opened, and signs.
func (s *Service) ServerTLS(ctx context.Context) (*ServerTLS, error) {
	if on, err := s.Conf.Bool("hadoop.kms.ssl.enabled"); err != nil || !on {
		return nil, err
	}
	t, err := serverTLS(s.Conf, tryKeys, s.Log)
	if err != nil {
		return nil, err
	}
	r := &ServerTLS{served: t, Keys: t.keys, Lowest: t.Config.MinVersion, Highest: t.Config.MaxVersion}
	r.Config = &tls.Config{
		GetCertificate: t.Config.GetCertificate, MinVersion: t.Config.MinVersion, MaxVersion: t.Config.MaxVersion,
		CipherSuites: t.Config.CipherSuites}
	for _, c := range t.Certificates() {
		chain, err := parseChain(c)
		if err != nil {
			t.Close()
			return nil, err
		}
		r.Chains = append(r.Chains, chain)
	}
	r.Names, _ = ownNames(ctx, s.Conf)
	return r, nil
}

// StoredCertificates returns the validity of the certificates of each TLS store. unreadable has an error for each store
// that cannot be used.
func (s *Service) StoredCertificates() (list []Validity, unreadable []error, err error) {
	return s.storeFiles()
}

// HDFSTrust reads the truststore of Java clients from HDFS' configuration: ssl-client.xml in the same folder, or the
// file that hadoop.ssl.client.conf names. path is "" if no truststore is named.
func HDFSTrust(hdfs *hadoopconf.Conf, log *slog.Logger) (roots *x509.CertPool, path string, err error) {
	st, err := sslStores(hdfs, log, "hadoop.ssl.client.conf", "ssl-client.xml")
	if err != nil {
		return nil, "", err
	}
	f, ok, err := st.file("ssl.client.truststore.")
	if err != nil || !ok {
		return nil, f.Path, err
	}
	if roots, err = f.Roots(); err != nil {
		return nil, f.Path, st.c.BadFile("ssl.client.truststore.location", err, "")
	}
	return roots, f.Path, nil
}

// JavaTrust reads the certificates that the Java in a folder (JAVA_HOME) trusts if no truststore is named. path is ""
// if the folder has none.
func JavaTrust(home string) (roots *x509.CertPool, path string, err error) {
	for _, name := range []string{"lib/security/jssecacerts", "lib/security/cacerts", "jre/lib/security/jssecacerts",
		"jre/lib/security/cacerts"} {
		path = filepath.Join(home, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		roots, err = keystore.TLSFile{Path: path, Password: secret.Bytes("changeit")}.Roots() // Java's own password
		return roots, path, err
	}
	return nil, "", nil
}
