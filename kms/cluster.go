package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"claviger/authn"
	"claviger/console"
	"claviger/gssapi"
	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/metastore"
	"claviger/zookeeper"
)

// The properties of the secrets and tokens that nodes share in ZooKeeper.
const (
	signerKind     = authPrefix + "signer.secret.provider"
	signerPrefix   = signerKind + ".zookeeper."
	tokensPrefix   = authPrefix + "zk-dt-secret-manager."
	tokensEnable   = tokensPrefix + "enable"
	signerEnsemble = signerPrefix + "connection.string"
	tokensEnsemble = tokensPrefix + "zkConnectionString"
)

// Times of the connection for signer secrets. No property sets them; Hadoop uses the
// defaults of its library. An operation is tried for as long as connecting may take.
const (
	signerSession = time.Minute
	signerConnect = 15 * time.Second
)

// cluster holds what this node shares with others, except keys.
type cluster struct {
	signers metastore.Signers     // nil: only this node knows the cookies' secrets
	tokens  metastore.Delegations // nil: delegation tokens are in this node's memory
	digests bool                  // the store has only digests of the tokens' passwords
	// remember is how long a token is accepted without another reading of the store, see authn.DelegationConfig.
	remember time.Duration
	batch    int32 // how many sequence numbers a node reserves at once
	checks   []console.Check
	store    metastore.Store // the metastore that keeps tokens or secrets; nil: none
	close    []func() error
}

// Close closes the connections.
func (c *cluster) Close() error {
	var errs []error
	for i := len(c.close) - 1; i >= 0; i-- {
		errs = append(errs, c.close[i]())
	}
	return errors.Join(errs...)
}

// openCluster reads the settings of shared secrets and tokens, and opens the connections. A server that does not answer
// is noticed only when its connection is used.
func openCluster(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (_ *cluster, err error) {
	c := &cluster{remember: rememberOwn}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	r := &reader{conf: conf}
	tokens, e := r.sharedTokens(c)
	if r.err != nil {
		return nil, r.err
	}
	if err := c.shareByMetastore(ctx, conf, log, !tokens); err != nil {
		return nil, err
	}
	client, err := c.openSigners(conf, log)
	if err != nil {
		return nil, err
	}
	if !tokens {
		return c, nil
	}
	if err := c.openTokens(conf, log, client, e); err != nil {
		return nil, err
	}
	return c, nil
}

// sharedTokens reads whether delegation tokens are in ZooKeeper, and how to connect to it.
func (r *reader) sharedTokens(c *cluster) (tokens bool, e ensemble) {
	tokens = r.bool(tokensEnable)
	c.batch = int32(r.int(tokensPrefix+"token.seqnum.batch.size", 1, 1<<20))
	r.int(tokensPrefix+"zkNumRetries", 0, math.MaxInt32)
	return tokens, ensemble{prefix: tokensPrefix, servers: "zkConnectionString", auth: "zkAuthType",
		session: r.duration(tokensPrefix+"zkSessionTimeout", time.Millisecond),
		connect: r.duration(tokensPrefix+"zkConnectionTimeout", time.Millisecond)}
}

// signerConnection is the connection for signer secrets.
var signerConnection = ensemble{prefix: signerPrefix, servers: "connection.string", auth: "auth.type",
	session: signerSession, connect: signerConnect}

// openSigners opens the connection for signer secrets, if they are in ZooKeeper.
func (c *cluster) openSigners(conf *hadoopconf.Conf, log *slog.Logger) (client *zookeeper.Client, err error) {
	if conf.String(signerKind) == "zookeeper" {
		if client, err = c.connect(conf, log, signerConnection); err != nil {
			return nil, err
		}
		const path = signerPrefix + "path"
		if c.signers, err = zookeeper.NewSigners(client, conf.String(path)); err != nil {
			return nil, conf.Refuse(path, err.Error())
		}
	} else if auth := conf.String(signerPrefix + "auth.type"); auth == "sasl" {
		log.Warn(signerPrefix + "auth.type is sasl and has no effect: " + signerKind + " is " +
			conf.String(signerKind) + "; set it to zookeeper on every node, so that each node accepts the cookies of " +
			"the others")
	}
	return client, nil
}

// openTokens opens the store of delegation tokens in ZooKeeper. As in Hadoop it uses
// the connection for signer secrets, if client is not nil.
func (c *cluster) openTokens(conf *hadoopconf.Conf, log *slog.Logger, client *zookeeper.Client,
	e ensemble) (err error) {
	if client == nil {
		if client, err = c.connect(conf, log, e); err != nil {
			return err
		}
	} else if own, set := conf.Get(tokensEnsemble); set && own != conf.String(signerEnsemble) {
		log.Warn(tokensEnsemble + " is not used: delegation tokens are kept where the signer secrets are, at " +
			signerEnsemble + "; remove one of the two")
	}
	const path = tokensPrefix + "znodeWorkingPath"
	c.remember = 0 // a Java KMS sends no notice when it cancels a token
	if c.tokens, err = zookeeper.NewTokens(client, conf.String(path)); err != nil {
		return conf.Refuse(path, err.Error())
	}
	return nil
}

// ensemble has the names of a connection's properties, and its times.
type ensemble struct {
	prefix, servers, auth string
	session, connect      time.Duration
}

// connect opens a connection as its properties say.
func (c *cluster) connect(conf *hadoopconf.Conf, log *slog.Logger, e ensemble) (*zookeeper.Client, error) {
	settings, err := c.connection(conf, log, e)
	if err != nil {
		return nil, err
	}
	client, err := zookeeper.Open(settings)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", settings.Property, err)
	}
	c.close = append(c.close, client.Close)
	// Informational: cookies stay valid without ZooKeeper, and the other nodes have the same
	// problem.
	c.checks = append(c.checks, console.Check{Name: "zookeeper " + settings.Ensemble.String(), Informational: true,
		Run: client.Check})
	return client, nil
}

// connection reads the properties of a connection.
func (c *cluster) connection(conf *hadoopconf.Conf, log *slog.Logger, e ensemble) (settings zookeeper.Config,
	err error) {
	servers := e.prefix + e.servers
	text, set := conf.Get(servers)
	if !set || strings.Contains(text, "#") { // the template of kms-default.xml
		return settings, conf.Refuse(servers, "set it to the servers of ZooKeeper: HOST:PORT,HOST:PORT")
	}
	at, err := zookeeper.ParseEnsemble(text)
	if err != nil {
		return settings, conf.Refuse(servers, err.Error())
	}
	settings = zookeeper.Config{Ensemble: at, Property: servers, SessionTimeout: e.session, ConnectTimeout: e.connect,
		RetryTimeout: e.connect, Log: log}
	switch auth := conf.String(e.prefix + e.auth); auth {
	case "none":
	case "sasl", "kerberos":
		if auth == "kerberos" { // Ambari writes kerberos; Hadoop treats it like none
			log.Warn("the value kerberos is used as sasl here; Hadoop's own KMS uses it as none, and then everybody "+
				"can read its nodes in ZooKeeper: write sasl on every node", "property", e.prefix+e.auth)
		}
		if settings.SASL, settings.Owner, err = zookeeperSASL(conf, e.prefix); err != nil {
			return settings, err
		}
	default:
		return settings, conf.Refuse(e.prefix+e.auth, "it must be none or sasl")
	}
	settings.TLS, err = c.zookeeperTLS(conf, log, e.prefix)
	return settings, err
}

// zookeeperSASL reads the principal with which this server authenticates to
// ZooKeeper. It also returns the owner of the nodes that the server makes there:
// the first component of the principal.
func zookeeperSASL(conf *hadoopconf.Conf,
	prefix string) (func(ctx context.Context, host string) (zookeeper.Initiator, error), string, error) {
	keytabName, principalName, serverName := prefix+"kerberos.keytab", prefix+"kerberos.principal",
		prefix+"kerberos.server.principal"
	if !gssapi.Available {
		return nil, "", fmt.Errorf("SASL to ZooKeeper: %w", gssapi.ErrNotBuilt)
	}
	keytab, ok := conf.Path(keytabName)
	if !ok {
		return nil, "", conf.Refuse(keytabName, "SASL needs a keytab")
	}
	if f, err := os.Open(keytab); err != nil {
		return nil, "", conf.Refuse(keytabName, fmt.Sprintf("it must be a keytab that this process can read, with "+
			"the key of %s: %v", conf.String(principalName), err))
	} else if err := f.Close(); err != nil {
		return nil, "", err
	}
	principal, err := withHost(conf.String(principalName))
	if err != nil || principal == "" || strings.Contains(principal, "#") { // the template of kms-default.xml
		return nil, "", conf.Refuse(principalName, "set it to a principal of the keytab, such as kms/_HOST@REALM")
	}
	owner := principal
	if i := strings.IndexAny(owner, "/@"); i >= 0 {
		owner = owner[:i]
	}
	server := conf.String(serverName)
	return func(_ context.Context, host string) (zookeeper.Initiator, error) {
		target := "zookeeper@" + host
		if server != "" {
			target = strings.Replace(server, "_HOST", host, 1)
		}
		in, err := gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: keytab, Principal: principal, Target: target,
			Mutual: true})
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", principal, keytab, err)
		}
		return in, nil
	}, owner, nil
}

// withHost replaces _HOST by this host's canonical name in lower case, as Hadoop
// does.
func withHost(principal string) (string, error) {
	if !strings.Contains(principal, "_HOST") {
		return principal, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if name, err := net.DefaultResolver.LookupCNAME(ctx, host); err == nil {
		host = strings.TrimSuffix(name, ".")
	}
	return strings.Replace(principal, "_HOST", strings.ToLower(host), 1), nil
}

// zookeeperTLS reads the TLS settings of a connection; nil if it does not use TLS.
func (c *cluster) zookeeperTLS(conf *hadoopconf.Conf, log *slog.Logger, prefix string) (*tls.Config, error) {
	on, err := conf.Bool(prefix + "ssl.enabled")
	if err != nil || !on {
		return nil, err
	}
	file := func(which string) (f keystore.TLSFile, name string, ok bool, err error) {
		name = prefix + "ssl." + which + ".location"
		if f.Path, ok = conf.Path(name); ok {
			f.Password, err = password(conf, conf, log, prefix+"ssl."+which+".password")
		}
		return f, name, ok, err
	}
	trust, name, ok, err := file("truststore")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, conf.Refuse(name, "TLS to ZooKeeper needs a truststore with the certificate of its authority: "+
			"JKS, PKCS#12 or PEM")
	}
	roots, err := trust.Roots()
	if err != nil {
		return nil, conf.BadFile(name, err, "")
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	// Hadoop requires a keystore. Here it is optional: it is needed only if the servers
	// require a client certificate.
	own, name, ok, err := file("keystore")
	if err != nil || !ok {
		return settings, err
	}
	certificate, err := keystore.NewReloader(own.Files(), own.Certificate, keystore.ReloadInterval, log)
	if err != nil {
		return nil, conf.BadFile(name, err, "")
	}
	c.close = append(c.close, func() error { certificate.Close(); return nil })
	settings.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		now := certificate.Get()
		return &now, nil
	}
	return settings, nil
}

// rollingSecrets opens the secrets for cookies that nodes share.
func (c *cluster) rollingSecrets(ctx context.Context, conf *hadoopconf.Conf, validity time.Duration,
	log *slog.Logger) (*authn.RollingSecrets, error) {
	if c.signers == nil {
		return nil, noSigner(conf)
	}
	secrets, err := authn.NewRollingSecrets(ctx, authn.RollingConfig{Store: c.signers, Period: validity, Log: log})
	if err != nil {
		return nil, fmt.Errorf("%s is %s, and no cookie can be signed without its secrets: %w", signerKind,
			conf.String(signerKind), err)
	}
	return secrets, nil
}

// noSigner is the error for an unknown provider of signer secrets.
func noSigner(conf *hadoopconf.Conf) error {
	return conf.Refuse(signerKind, "it must be random, file, zookeeper or sql")
}
