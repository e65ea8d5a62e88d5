package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/secret"
	"claviger/shellword"
)

// probes returns the probes of the open providers for a migration.
func (s *Service) probes(ctx context.Context) (migrate.Probes, error) {
	p := migrate.Probes{User: OSUser(), OwnAddresses: ownAddresses(ctx, s.Conf), MoreChecks: s.moreChecks}
	login, _, err := clientLogin(s.Conf)
	if err != nil {
		return p, err
	}
	if p.KerberosUser, _, _ = strings.Cut(login.Principal, "/"); p.KerberosUser == "" {
		p.KerberosUser = "the user of this server's Kerberos tickets"
	}
	p.KerberosUser, _, _ = strings.Cut(p.KerberosUser, "@")
	p.Rules = func(context.Context) (migrate.Check, migrate.Decide) { return rulesHere(s.Conf) }
	if t, ok := s.Primary.(interface {
		Latency(context.Context) ([]time.Duration, error)
	}); ok {
		p.Latency = t.Latency
	}
	if t, ok := s.Primary.(interface {
		Room(context.Context) (keys int, known bool, err error)
	}); ok {
		p.Room = t.Room
	}
	src, ok := s.ReencryptionSource()
	if !ok {
		return p, nil
	}
	kms, err := s.sourceKMS(src)
	if err != nil {
		return p, err
	}
	if kms == nil {
		if h, ok := src.(provider.Health); ok {
			p.Alive = h.Check
		}
		return p, nil
	}
	for _, other := range s.Sources {
		if strings.HasPrefix(other.URI(), "keytrustee:") {
			p.OtherSources = append(p.OtherSources, other.Provider)
		}
	}
	p.Source = kms.Probe
	return p, nil
}

// moreChecks returns the checks of the other parts that this server needs.
func (s *Service) moreChecks(ctx context.Context) []migrate.Check {
	checks := append(s.trustees(ctx), s.unsafeSimple()...)
	if faults := secret.Exposed(secretFiles(s.Conf)...); len(faults) > 0 {
		checks = append(checks, migrate.Check{Name: "files with secrets", Status: migrate.Warning,
			Measured: strings.Join(faults, "; "), Cure: "correct the mode or owner of each file"})
	}
	return checks
}

// unsafeSimple returns a failed check if a source requires Kerberos and this server uses
// simple authentication. Then a caller could use any user name without proof, and this
// server would decrypt EDEKs that the source decrypts only for a user with a ticket.
func (s *Service) unsafeSimple() (checks []migrate.Check) {
	if s.Conf.String(authType) != "simple" {
		return nil
	}
	for _, src := range s.Sources {
		if k, ok := src.Provider.(interface{ WantsKerberos() bool }); ok && k.WantsKerberos() {
			checks = append(checks, migrate.Check{
				Name: "authentication here", Needed: true, Status: migrate.Failure,
				Measured: fmt.Sprintf("%s requires Kerberos, and %s is simple here: a client of this server can "+
					"name any user without proof, and open the source's EDEKs as that user", src.URI(), authType),
				Cure: "copy hadoop.kms.authentication.*, hadoop.kms.proxyuser.* and " +
					"hadoop.security.auth_to_local from the configuration of the source",
			})
		}
	}
	return checks
}

// lookupTimeout bounds the lookup of this host's full name.
const lookupTimeout = 2 * time.Second

// ownAddresses returns each "host:port" at which clients may reach this server: the
// configured host, or every name and address of the machine if the server listens at
// all of them. If the system picks the port, the list is empty.
func ownAddresses(ctx context.Context, conf *hadoopconf.Conf) []string {
	port, err := conf.Int("hadoop.kms.http.port", 0, 65535)
	if err != nil || port == 0 {
		return nil
	}
	hosts, all := ownNames(ctx, conf)
	if all {
		hosts = append(hosts, "localhost")
		if list, err := net.InterfaceAddrs(); err == nil {
			for _, a := range list {
				if n, ok := a.(*net.IPNet); ok {
					hosts = append(hosts, n.IP.String())
				}
			}
		}
	}
	var own []string
	for _, h := range hosts {
		own = append(own, net.JoinHostPort(h, strconv.FormatInt(port, 10)))
	}
	slices.Sort(own)
	return slices.Compact(own)
}

// ownNames returns the configured host of this server. If the server listens at all addresses of this machine, all is
// true, and ownNames returns the names of the machine.
func ownNames(ctx context.Context, conf *hadoopconf.Conf) (names []string, all bool) {
	host := conf.String("hadoop.kms.http.host")
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return []string{host}, false
	}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		// Without a name service only the short name is known.
		if full, err := net.DefaultResolver.LookupCNAME(ctx, name); err == nil {
			names = append(names, strings.TrimSuffix(full, "."))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), true
}

// rulesHere reads this server's rules, and returns a function that decides by them;
// nil if the rules cannot be used.
func rulesHere(conf *hadoopconf.Conf) (migrate.Check, migrate.Decide) {
	file := ACLFile(conf)
	c := migrate.Check{Name: "rules of this server", Needed: true}
	fail := func(measured, cure string) (migrate.Check, migrate.Decide) {
		c.Status, c.Measured, c.Cure = migrate.Failure, measured, cure
		return c, nil
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return fail(file+" does not exist: nobody may use any key here",
			"copy the kms-acls.xml that is in use at the source to "+conf.Dir())
	}
	policy, warnings, _, err := LoadPolicy(conf)
	if err != nil {
		return fail(err.Error(), "correct the file: claviger acl check --conf "+shellword.Quote(conf.Dir()))
	}
	byKey, err := conf.Bool("hadoop.kms.key.authorization.enable")
	if err != nil {
		return fail(err.Error(), "set it to true or false")
	}
	groups, err := NewGroups(conf, slog.New(slog.DiscardHandler))
	if err != nil {
		return fail(err.Error(), "correct the group mapping")
	}
	c.Measured = file + " is read"
	if n := len(warnings); n > 0 {
		c.Status = migrate.Warning
		c.Measured += fmt.Sprintf("; warnings about it: %d", n)
		c.Cure = "read the warnings: claviger acl check --conf " + shellword.Quote(conf.Dir())
	}
	return c, func(user, request, aclName string) (may bool, by, cure string) {
		r, _, _ := authz.FindRequest(request)
		if !byKey {
			aclName = ""
		}
		d := policy.Explain(r, aclName, claviger.Principal{Name: user, Short: user}, groups.Of)
		if step, ok := d.DecidedBy(); ok && !d.Allowed {
			by, cure = step.Property, ruleCure(step, user)
		}
		return d.Allowed, by, cure
	}
}

// ruleCure returns the change of the rules that admits a user whom this step refused. If
// a key has no rule for a right, ruleCure does not advise to add such a rule, because the
// rule would exclude all users whom the defaults admit.
func ruleCure(step authz.Step, user string) string {
	switch {
	case strings.HasPrefix(step.Property, "hadoop.kms.blacklist."):
		return fmt.Sprintf("set %s so that it does not name %s", step.Property, user)
	case step.Level == "key" && !step.Set:
		right := step.Property[strings.LastIndexByte(step.Property, '.')+1:]
		return fmt.Sprintf("let whitelist.key.acl.%s admit %s", right, user)
	}
	return fmt.Sprintf("let %s admit %s", step.Property, user)
}

// nameNode returns the user name of the NameNode at this server: the flag's value,
// or else the short name of its principal in HDFS' configuration by this server's
// rules, or else the superuser.
func nameNode(conf *hadoopconf.Conf, flag string, hdfs func(string) (string, bool)) migrate.NameNode {
	if flag != "" {
		return migrate.NameNode{User: flag, From: "--namenode-user"}
	}
	const principalName, security = "dfs.namenode.kerberos.principal", "hadoop.security.authentication"
	if hdfs != nil {
		principal, _ := hdfs(principalName)
		if kind, _ := hdfs(security); principal != "" && strings.EqualFold(kind, "kerberos") {
			read := kerberosRules
			if conf.String(authType) == "simple" {
				read = simpleRules
			}
			rules, err := read(conf, slog.New(slog.DiscardHandler))
			user, _, _ := strings.Cut(principal, "/")
			user, _, _ = strings.Cut(user, "@")
			if err == nil && rules != nil { // without rules, the user is the first component
				user, err = rules.Short(strings.Replace(principal, "/_HOST@", "/namenode.example.com@", 1))
			}
			if err != nil {
				return migrate.NameNode{Err: fmt.Errorf("%s is %s, and the rules here give it no user name: %w",
					principalName, principal, err)}
			}
			return migrate.NameNode{User: user, From: "of " + principal}
		}
	}
	users, _, _ := strings.Cut(conf.WithPrefix(hadoopconf.HDFSSuperusers)[""], " ")
	for _, user := range strings.Split(users, ",") {
		if user != "" && user != "*" {
			return migrate.NameNode{User: user, From: hadoopconf.HDFSSuperusers}
		}
	}
	return migrate.NameNode{User: "hdfs", From: "Hadoop's default"}
}

// trustees checks the Key Trustee Servers of a kts-site.xml: whether this server
// trusts the TLS certificate of each, and whether a keytrustee:// source can use them.
func (s *Service) trustees(ctx context.Context) []migrate.Check {
	place, named := s.Conf.Get(hadoopconf.TrusteeConf)
	var sources []provider.Provider
	for _, src := range s.Sources {
		if strings.HasPrefix(src.URI(), "keytrustee:") {
			sources = append(sources, src.Provider)
		}
	}
	if !named && len(sources) == 0 {
		return nil
	}
	// Without a keytrustee:// source this server does not use the trustee.
	severity := migrate.Warning
	if len(sources) > 0 {
		severity = migrate.Failure
	}
	tlsCheck := s.trusteesTLS(ctx, place, severity)
	checks := []migrate.Check{tlsCheck}
	for _, src := range sources {
		c := migrate.Check{Name: "Key Trustee Server used", Measured: src.URI() + " answers", Needed: true}
		if h, ok := src.(provider.Health); !ok {
			c.Status, c.Measured = migrate.NotTried, src.URI()+" has no check"
		} else if err := h.Check(ctx); err != nil {
			c.Status, c.Measured, c.Cure = migrate.Failure, err.Error(),
				"run claviger trustee status on the Key Trustee Server's host, and check that this host reaches its "+
					"port"
		}
		checks = append(checks, c)
	}
	return append(checks, migrate.Check{Name: migrate.NameKeyHSM, Status: migrate.NotTried,
		Measured: "a Key Trustee Server does not tell its clients whether it has one",
		Cure: "the procedure requires it with Luna or nShield: on the trustee's host, run claviger keyhsm status, or " +
			"the status command of keytrustee-keyhsm"})
}

func (s *Service) trusteesTLS(ctx context.Context, place string, severity migrate.Status) migrate.Check {
	c := migrate.Check{Name: "TLS to the Key Trustee Servers", Needed: severity == migrate.Failure}
	hosts, insecure, err := keytrustee.Hosts(place, s.Conf.Dir())
	if err != nil {
		c.Status, c.Measured, c.Cure = severity, err.Error(), "copy kts-site.xml from a KT KMS host (step 1 of the "+
			"procedure)"
		return c
	}
	conf, err := s.ClientTLS(provider.Env{})
	if err != nil {
		c.Status, c.Measured, c.Cure = severity, err.Error(), "correct the truststore (steps 3 and 4 of the procedure)"
		return c
	}
	if insecure {
		c.Status, c.Measured = migrate.NotTried, "kts-site.xml sets cloudera.trustee.keyprovider.insecure: no "+
			"certificate is verified"
		return c
	}
	var measured []string
	for _, host := range hosts {
		if err := handshake(ctx, host, conf); err != nil {
			c.Status = severity
			measured = append(measured, host+": "+err.Error())
			cure := claviger.CertificateCure(err, "the truststore, and name the truststore by claviger.ssl.truststore "+
				"or in ssl-client.xml (steps 3 and 4 of the procedure)")
			if cure == "" {
				cure = "check that the Key Trustee Server runs there, and that this host reaches its port"
			}
			c.Cure = cure
			continue
		}
		measured = append(measured, host+" is trusted")
	}
	c.Measured = strings.Join(measured, "; ")
	return c
}

// handshake makes one TLS connection and ends it.
func handshake(ctx context.Context, host string, conf *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d := tls.Dialer{Config: conf}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	return conn.Close()
}
