package kms

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/provider"
	"claviger/secret"
	"claviger/web"
)

// password reads the password of the property name, like Hadoop's Configuration.getPassword.
// The configuration c (for example ssl-server.xml), or else site (kms-site.xml), names
// credential stores. If they do not have the password, it is the clear text of the property
// in c, if clear text is allowed.
func password(site, c *hadoopconf.Conf, log *slog.Logger, name string) (secret.Bytes, error) {
	named := site
	if _, ok := c.Get(keystore.CredentialPathProperty); ok {
		named = c
	}
	p := &keystore.Passwords{ClearText: true}
	if path, ok := named.Get(keystore.CredentialPathProperty); ok && path != "" {
		file := named.String(keystore.CredentialPasswordProperty)
		if file == "" {
			file = site.String(keystore.CredentialPasswordProperty)
		}
		storePassword, err := keystore.CredentialPassword(os.LookupEnv, file, site.Dir())
		if err != nil {
			return nil, site.BadFile(keystore.CredentialPasswordProperty, err, "")
		}
		stores, missing, err := keystore.OpenCredentials(path, storePassword)
		if err != nil {
			return nil, named.BadFile(keystore.CredentialPathProperty, err, "")
		}
		for _, m := range missing {
			log.Warn("a credential store does not exist, and counts as empty", "file", secret.Value(m), "property",
				keystore.CredentialPathProperty)
		}
		p.Credentials = stores
	}
	for _, conf := range []*hadoopconf.Conf{site, c} {
		if _, set := conf.Lookup(keystore.CredentialFallbackProperty); set {
			var err error
			if p.ClearText, err = conf.Bool(keystore.CredentialFallbackProperty); err != nil {
				return nil, err
			}
		}
	}
	return p.Get(name, c.Get)
}

// stores reads the keystores and truststores that a configuration names.
type stores struct {
	site     *hadoopconf.Conf // kms-site.xml
	c        *hadoopconf.Conf // ssl-server.xml or ssl-client.xml
	log      *slog.Logger
	warnings []string // about properties that the environment overrides
}

// file reads a store's path and passwords; ok is false if the configuration names no
// store. prefix is "ssl.server.keystore." or another prefix of this kind.
func (s stores) file(prefix string) (f keystore.TLSFile, ok bool, err error) {
	if f.Path, ok = s.c.Path(prefix + "location"); !ok {
		return f, false, nil
	}
	f.Type = s.c.String(prefix + "type")
	f.TypeProperty, f.PasswordProperty = prefix+"type", prefix+"password"
	if f.Password, err = password(s.site, s.c, s.log, prefix+"password"); err != nil {
		return f, true, err
	}
	f.KeyPassword, err = password(s.site, s.c, s.log, prefix+"keypassword")
	return f, true, err
}

// sslStores reads the configuration file that the property names, or else the file with the
// name fallback (ssl-server.xml or ssl-client.xml). A relative path is relative to the folder
// of kms-site.xml. A missing file counts as empty if its name is fallback.
func sslStores(conf *hadoopconf.Conf, log *slog.Logger, property, fallback string) (stores, error) {
	name := fallback
	if v, ok := conf.Get(property); ok {
		name = v
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(conf.Dir(), name)
	}
	c := hadoopconf.New(filepath.Dir(name), nil)
	// Cloudera Manager names the usual files even if they do not exist.
	err := c.AddFile(name, filepath.Base(name) == fallback)
	if errors.Is(err, fs.ErrNotExist) {
		return stores{}, conf.BadFile(property, err, "make the file, or remove the property to use "+fallback)
	}
	if err != nil {
		return stores{}, err
	}
	st := stores{site: conf, c: c, log: log}
	if property == "hadoop.ssl.server.conf" {
		st.warnings = c.ServerTLSEnvironment()
	}
	return st, nil
}

// serverTLS makes the TLS settings of the https server. When a keystore, a file with certificates or a truststore
// changes, the server uses its new certificates.
func serverTLS(site *hadoopconf.Conf, use keyUse, log *slog.Logger) (t *servedTLS, err error) {
	st, err := sslStores(site, log, "hadoop.ssl.server.conf", "ssl-server.xml")
	if err != nil {
		return nil, err
	}
	for _, w := range st.warnings {
		log.Warn(w)
	}
	cfg, inHSM, err := tlsKeyConfig(site)
	switch {
	case err != nil:
		return nil, err
	case inHSM:
		t, err = fromHSM(site, cfg, use, log)
	default:
		t, err = st.fromKeystore(log)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.Close()
			t = nil
		}
	}()
	if err := st.limit(t.Config); err != nil {
		return t, err
	}
	need, err := st.c.Bool("ssl.server.need.client.auth")
	if err != nil || !need {
		return t, err
	}
	return t, st.requireClientCertificates(t.TLS)
}

// fromKeystore makes the TLS settings of a server with the keystore that ssl-server.xml names.
func (s stores) fromKeystore(log *slog.Logger) (*servedTLS, error) {
	file, ok, err := s.file("ssl.server.keystore.")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("hadoop.kms.ssl.enabled is true, but ssl.server.keystore.location is not set in %s; "+
			"name the keystore there, or set hadoop.kms.ssl.enabled to false",
			filepath.Join(s.c.Dir(), "ssl-server.xml"))
	}
	signer, err := rsaSigners(s.site, log)
	if err != nil {
		return nil, err
	}
	load := func() ([]tls.Certificate, error) {
		list, doubts, err := file.ServerCertificates()
		for _, d := range doubts {
			log.Warn("a private key of the server's keystore is not used", "reason", d)
		}
		logTimes(file.Path, list, log)
		for i, c := range list {
			list[i].PrivateKey = signer(c.PrivateKey)
		}
		return list, err
	}
	t, err := web.FollowCertificate(file.Files(), load, log)
	if err != nil {
		return nil, s.c.BadFile("ssl.server.keystore.location", err, "")
	}
	return &servedTLS{TLS: t}, nil
}

// limit sets the protocols and the cipher suites that the server accepts.
func (s stores) limit(conf *tls.Config) error {
	conf.MinVersion, conf.MaxVersion = tls.VersionTLS12, tls.VersionTLS13
	const enabled, excluded = "hadoop.ssl.enabled.protocols", "ssl.server.exclude.cipher.list"
	if names := s.site.Strings(enabled); len(names) > 0 {
		lowest, highest, unsafe, err := keystore.Protocols(names)
		if err != nil {
			return s.site.Refuse(enabled, err.Error())
		}
		if conf.MinVersion, conf.MaxVersion = lowest, highest; len(unsafe) > 0 {
			s.log.Warn("unsafe protocols are not used", "property", enabled, "left out",
				strings.Join(unsafe, ", "))
		}
	}
	suites, fixed, err := keystore.Suites(s.c.Strings(excluded))
	if err != nil {
		return s.c.Refuse(excluded, err.Error())
	}
	if conf.CipherSuites = suites; len(fixed) > 0 && conf.MaxVersion == tls.VersionTLS13 {
		s.log.Warn("the cipher suites of TLS 1.3 cannot be left out; leave TLSv1.3 out of "+enabled, "property",
			excluded, "suites", strings.Join(fixed, ", "))
	}
	return nil
}

// requireClientCertificates makes the server require a certificate of each client, which the
// truststore must trust.
func (s stores) requireClientCertificates(t *web.TLS) error {
	trust, ok, err := s.file("ssl.server.truststore.")
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("ssl.server.need.client.auth is true, but ssl.server.truststore.location is not set in " +
			"ssl-server.xml")
	}
	if err := t.RequireClientCertificates(trust.Files(), trust.Roots, s.log); err != nil {
		return s.c.BadFile("ssl.server.truststore.location", err, "")
	}
	return nil
}

// ClientTLS returns the TLS settings for https to another KMS. The property claviger.ssl.truststore, or ssl-client.xml,
// or the Java option javax.net.ssl.trustStore in the environment names the truststore. Without a truststore, the roots
// of the system are trusted. The settings are nil if there is neither a truststore nor a client certificate.
func (s *Service) ClientTLS(provider.Env) (*tls.Config, error) {
	st, err := sslStores(s.Conf, s.Log, "hadoop.ssl.client.conf", "ssl-client.xml")
	if err != nil {
		return nil, err
	}
	trust, setting, err := st.clientTrust()
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if setting != "" {
		conf.RootCAs, err = trust.Roots()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, st.badTrust(setting, err,
				"import the source's certificate into this file, as docs/migration/configure.md shows")
		}
		if err != nil {
			return nil, st.badTrust(setting, err, "")
		}
	}
	own, ok, err := st.file("ssl.client.keystore.")
	if err != nil {
		return nil, err
	}
	if ok {
		cert, err := own.Certificate()
		if err != nil {
			return nil, st.c.BadFile("ssl.client.keystore.location", err, "")
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	if setting == "" && !ok {
		return nil, nil
	}
	return conf, nil
}

// badTrust returns the error for a truststore that cannot be used.
func (s stores) badTrust(setting string, err error, cure string) error {
	switch setting {
	case ownTrust:
		return s.site.BadFile("claviger.ssl.truststore", err, cure)
	case siteTrust:
		return s.c.BadFile("ssl.client.truststore.location", err, cure)
	}
	if cure != "" {
		cure = "; " + cure
	}
	return fmt.Errorf("%s: %w%s", setting, err, cure)
}

// The settings that clientTrust returns if a property names the truststore.
const (
	ownTrust  = "property claviger.ssl.truststore"
	siteTrust = "property ssl.client.truststore.location of ssl-client.xml"
)

// clientTrust returns the truststore, and the setting that names it; setting is "" if
// there is none.
func (s stores) clientTrust() (f keystore.TLSFile, setting string, err error) {
	const own = "claviger.ssl.truststore"
	if path, ok := s.site.Path(own); ok {
		f = keystore.TLSFile{Path: path, Type: s.site.String(own + ".type"), TypeProperty: own + ".type",
			PasswordProperty: own + ".password"}
		f.Password, err = password(s.site, s.site, s.log, own+".password")
		return f, ownTrust, err
	}
	f, ok, err := s.file("ssl.client.truststore.")
	if err != nil || ok {
		return f, siteTrust, err
	}
	f, setting = javaTrust(os.LookupEnv)
	return f, setting, nil
}

// javaOptions are the environment variables with the options of a Java KMS, by
// priority, the highest first.
var javaOptions = []string{"KMS_OPTS", "CATALINA_OPTS", "CSD_JAVA_OPTS", "HADOOP_OPTS"}

var javaTrustOption = regexp.MustCompile(`-Djavax\.net\.ssl\.trustStore(Password|Type)?=("[^"]*"|'[^']*'|\S+)`)

// javaTrust reads -Djavax.net.ssl.trustStore=... from the environment. As in Java,
// the last option of a variable counts.
func javaTrust(env func(string) (string, bool)) (f keystore.TLSFile, setting string) {
	for _, name := range javaOptions {
		options, _ := env(name)
		for _, m := range javaTrustOption.FindAllStringSubmatch(options, -1) {
			switch value := strings.Trim(m[2], `"'`); m[1] {
			case "":
				f.Path = value
			case "Type":
				f.Type = value
			case "Password":
				f.Password = secret.Bytes(value)
			}
		}
		if f.Path != "" {
			return f, "option -Djavax.net.ssl.trustStore in the environment variable " + name
		}
	}
	return keystore.TLSFile{}, ""
}
