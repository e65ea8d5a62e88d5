package kms

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/metastore/location"
	"claviger/pgdb"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/secret"
	"claviger/sqlitedb"
	"claviger/tlskey"
	"claviger/trustee"
)

const jceksPasswordFile = "hadoop.security.keystore.java-keystore-provider.password-file"

// secretFiles returns the files of a KMS's configuration that other users of this
// machine must not read or change. A file of the list may not exist: the part of the
// server that needs the file reports that.
func secretFiles(conf *hadoopconf.Conf) []secret.File {
	l := secretList{conf: conf}
	l.addClearTextSecrets(conf)
	for _, name := range []string{"core-site.xml", "kms-site.xml", filepath.Base(ACLFile(conf))} {
		l.put(secret.File{Path: filepath.Join(conf.Dir(), name), Deny: 0o002,
			Risk: "who could change the rights to keys"})
	}
	l.providers()
	l.metastore()
	l.addProperty("hadoop.kms.authentication.signature.secret.file", "signature secret")
	l.addProperty("claviger.audit.json.key.file", "key of the audit log")
	l.addProperty(authKeytab, "keytab")
	l.addProperty(clientKeytab, "keytab")
	if cache, ok := strings.CutPrefix(conf.String("claviger.client.kerberos.ccache"), "FILE:"); ok {
		l.add(cache, "Kerberos ticket cache")
	}
	for _, prefix := range []string{signerKind + ".zookeeper.", "hadoop.kms.authentication.zk-dt-secret-manager."} {
		l.addProperty(prefix+"kerberos.keytab", "keytab")
		l.addProperty(prefix+"ssl.keystore.location", "keystore")
	}
	l.addProperty(jceksPasswordFile, "password of the keystore")
	l.put(tlskey.SecretFiles(strings.Fields(conf.String(tlsKeyProperty)))...)
	l.groups()
	l.credentials(conf)
	for _, file := range [][2]string{{"hadoop.ssl.server.conf", "ssl-server.xml"}, {"hadoop.ssl.client.conf",
		"ssl-client.xml"}} {
		st, err := sslStores(conf, slog.New(slog.DiscardHandler), file[0], file[1])
		if err != nil {
			continue // the server's TLS reports the error
		}
		l.addClearTextSecrets(st.c)
		l.credentials(st.c)
		for _, prefix := range []string{"ssl.server.keystore.location", "ssl.client.keystore.location"} {
			if path, ok := st.c.Path(prefix); ok {
				l.add(path, "private key")
			}
		}
	}
	return l.files
}

// secretList collects files, each path once.
type secretList struct {
	conf  *hadoopconf.Conf
	files []secret.File
}

func (l *secretList) put(files ...secret.File) {
	for _, f := range files {
		if !slices.ContainsFunc(l.files, func(o secret.File) bool { return o.Path == f.Path }) {
			l.files = append(l.files, f)
		}
	}
}

func (l *secretList) add(path, what string) { l.put(secret.File{Path: path, Kind: what}) }

// addProperty adds the file that a property names.
func (l *secretList) addProperty(property, what string) {
	if path, ok := l.conf.Path(property); ok {
		l.add(path, what)
	}
}

// addClearTextSecrets adds the files of a configuration that contain secrets in clear text.
func (l *secretList) addClearTextSecrets(c *hadoopconf.Conf) {
	for file, property := range c.ClearSecrets() {
		l.put(secret.File{Path: file, Risk: "and holds the value of " + property})
	}
}

// providers adds the files of the configured providers.
func (l *secretList) providers() {
	for _, property := range []string{hadoopconf.ProviderURI, hadoopconf.SourceURI} {
		list, err := provider.SplitURIs(l.conf.String(property))
		if err != nil {
			continue
		}
		for _, uri := range list {
			scheme, _, _ := strings.Cut(uri, ":")
			path, err := provider.UnnestPath(uri)
			switch scheme = strings.ToLower(scheme); {
			case scheme == "pkcs11":
				if c, _, err := pkcs11.ParseURI(uri); err == nil {
					l.put(c.Files...)
				}
			case err != nil: // the code that opens the provider reports it
			case scheme == "cloudera.hsmkp":
				if c, _, err := pkcs11.ReadKeystoreFile(path); err == nil {
					l.put(c.Files...)
				}
			case scheme == "jceks" || scheme == "localjceks":
				l.add(path, "keystore")
			case scheme == "keytrustee":
				l.put(trustee.SecretFiles(path)...)
				l.put(keytrustee.SecretFiles(l.conf.String(hadoopconf.TrusteeConf), l.conf.Dir())...)
			}
		}
	}
}

// metastore adds the files of SQLite, or those with the credentials for PostgreSQL.
func (l *secretList) metastore() {
	place, err := location.Of(l.conf)
	switch {
	case err != nil: // the code that opens the metastore reports it
	case place.File != "":
		for _, path := range sqlitedb.Files(place.File) {
			l.add(path, "store")
		}
	default:
		l.put(pgdb.SecretFiles(place.URI)...)
	}
}

// groups adds the files with the passwords for LDAP servers.
func (l *secretList) groups() {
	const file = "ldap.bind.password.file"
	l.addProperty(hadoopconf.GroupMapping+"."+file, "password of LDAP")
	for _, name := range l.conf.Names() {
		if strings.HasPrefix(name, hadoopconf.GroupProviderPrefix) && strings.HasSuffix(name, "."+file) {
			l.addProperty(name, "password of LDAP")
		}
	}
}

// credentials adds the credential stores that c names, and the file of their password.
func (l *secretList) credentials(c *hadoopconf.Conf) {
	// The code that reads a password reports the error.
	stores, _ := keystore.CredentialFiles(c.String(keystore.CredentialPathProperty))
	for _, path := range stores {
		l.add(path, "credential store")
	}
	if name := c.String(keystore.CredentialPasswordProperty); name != "" {
		if !filepath.IsAbs(name) {
			name = filepath.Join(l.conf.Dir(), name)
		}
		l.add(name, "password of the credential stores")
	}
}
