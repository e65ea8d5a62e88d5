package keytrustee

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/provider"
	"claviger/trustee"
)

// mismatch is Cloudera's message for a Key Trustee KMS whose hosts have different identities. It stays word for word,
// because operators search for it.
const mismatch = "Unable to verify private key match between KMS hosts. Verify private key files have been synced " +
	"between all KMS hosts. Aborting to prevent data inconsistency."

const (
	propertySoftDelete = "claviger.delete.soft"
	propertyShared     = "claviger.keytrustee.shared.organization"
)

// Scheme is the registry's entry for keytrustee://file@/PATH/.keytrustee, the folder of a KT KMS. clientTLS returns the
// TLS configuration for connections to a Key Trustee Server, with the trusted certificates.
func Scheme(clientTLS func(provider.Env) (*tls.Config, error)) provider.Scheme {
	return provider.Scheme{Name: "keytrustee", Open: func(ctx context.Context, uri string,
		env provider.Env) (provider.Provider, error) {
		p, err := open(ctx, uri, env, clientTLS)
		if err != nil {
			return nil, err // not p: an interface that holds a nil pointer is not nil
		}
		return p, nil
	}}
}

// opening is the state of open.
type opening struct {
	path   string // of the folder
	site   site
	folder *trustee.Folder
	client *trustee.Client
	tls    *tls.Config
	env    provider.Env
	shared bool // other KMSs may be registered with the organization
	log    *slog.Logger
	// release unlocks the folder.
	release func()
}

func open(ctx context.Context, uri string, env provider.Env,
	clientTLS func(provider.Env) (*tls.Config, error)) (*Provider, error) {
	path, err := provider.UnnestPath(uri)
	if err != nil {
		return nil, err
	}
	o := opening{path: path, env: env, log: env.Log, release: func() {}}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	cfg := Config{URI: uri, Log: o.log}
	if err := o.configure(&cfg); err != nil {
		return nil, err
	}
	defer o.site.auth.Wipe()
	if err := o.setTLS(clientTLS); err != nil {
		return nil, err
	}
	if err := o.load(ctx); err != nil {
		o.release()
		return nil, err
	}
	cfg.Box, cfg.Identity = o.client, o.folder.Identity
	cfg.Closer = func() error { o.client.Close(); o.release(); return nil }
	if env.Source { // a source changes no key, and its folder is a copy of a KMS's folder
		return New(cfg), nil
	}
	return o.start(ctx, cfg)
}

// configure reads the properties and kts-site.xml. Wrong values are reported before the folder or a server is used.
func (o *opening) configure(cfg *Config) error {
	var err error
	if cfg.SoftDelete, err = o.env.Bool(propertySoftDelete, true); err != nil {
		return err
	}
	if cfg.MaterialLife, err = materialLife(o.env); err != nil {
		return err
	}
	if o.shared, err = o.env.Bool(propertyShared, false); err != nil {
		return err
	}
	kts, _ := o.env.Get(hadoopconf.TrusteeConf)
	var warnings []string
	if o.site, warnings, err = readSite(kts, o.env.ConfDir); err != nil {
		return err
	}
	for _, w := range warnings {
		o.log.Warn(w)
	}
	return nil
}

// setTLS sets the TLS configuration for connections to the Key Trustee Servers.
func (o *opening) setTLS(clientTLS func(provider.Env) (*tls.Config, error)) error {
	if clientTLS != nil {
		var err error
		if o.tls, err = clientTLS(o.env); err != nil {
			return err
		}
	}
	if !o.site.insecure {
		return nil
	}
	o.log.Warn("the certificate of the Key Trustee Server is not verified, so an attacker on the network can withhold "+
		"deposits: put the certificate into the truststore, and remove the property. Cloudera Manager sets this "+
		"property if the KMS's own TLS is off",
		"file", o.site.file, "property", prefix+"insecure")
	if o.tls = o.tls.Clone(); o.tls == nil {
		o.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	o.tls.InsecureSkipVerify = true //nolint:gosec // the operator set it; answers are signed
	return nil
}

// start marks the folder and makes the provider of a KMS. It fails if the Key Trustee Server lost acknowledged changes.
func (o *opening) start(ctx context.Context, cfg Config) (*Provider, error) {
	markServed(o.folder, time.Now(), o.log)
	cfg.memory, cfg.watch = &memory{folder: o.folder}, &folderWatch{folder: o.folder}
	p := New(cfg)
	warning, err := p.checkAtStart(ctx)
	switch {
	case claviger.Is(err, claviger.Unavailable):
		o.log.Warn("could not check whether the Key Trustee Server still has the changes that it acknowledged", "err",
			err)
	case err != nil:
		return nil, errors.Join(err, p.Close())
	case warning != "":
		o.log.Warn(warning)
	}
	return p, nil
}

// materialLife reads how long material stays in memory.
func materialLife(env provider.Env) (time.Duration, error) {
	const name = "claviger.keytrustee.material.life"
	v, ok := env.Get(name)
	if !ok || v == "" {
		return defaultLife, nil
	}
	d, err := hadoopconf.ParseDuration(v, time.Second)
	if err != nil || d < time.Second || d > 24*time.Hour {
		return 0, &claviger.PropertyError{Name: name, Value: v, Want: "it must be 1s to 24h, as in 10m", Err: err}
	}
	return d, nil
}

// load reads the folder: identity, servers and registration. It makes what the folder lacks. If the folder is complete,
// a server that does not answer is not an error.
func (o *opening) load(ctx context.Context) error {
	folder, err := trustee.LoadFolder(o.path)
	switch {
	case errors.Is(err, trustee.ErrNoFolder) && !o.env.Source:
		if err := servedBefore(o.path); err != nil {
			return err
		}
		if folder, err = o.newFolder(); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	o.folder = folder
	if !o.env.Source {
		if o.release, err = lockFolder(o.path, o.env.ConfDir, o.log); err != nil {
			o.release = func() {}
			return err
		}
	}
	if o.client, err = o.newClient(); err != nil {
		return err
	}
	if len(folder.Servers) == 0 {
		if err := o.introduce(ctx); err != nil {
			return err
		}
	}
	switch {
	case folder.Registered.IsZero():
		return o.register(ctx)
	case o.env.Source:
		return nil // the folder is a copy, so its identity is that of the KMS
	}
	return o.compareIdentities(ctx)
}

// newFolder makes the folder with a new identity.
func (o *opening) newFolder() (*trustee.Folder, error) {
	if o.site.org == "" {
		return nil,
			fmt.Errorf("%s: property %sorg is not set: at its first start a KT KMS registers with an organization. "+
				"Make one with claviger orgtool add", o.site.file, prefix)
	}
	if err := trustee.MakeFolder(o.path); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	o.log.Info("making the identity of this KT KMS, which takes some seconds", "folder", o.path, "bits", o.site.bits)
	id, err := trustee.NewIdentity("keytrustee", "client", "kms@"+host, o.site.bits, time.Now())
	if err != nil {
		return nil, err
	}
	folder, err := trustee.NewFolder(o.path, id)
	if err != nil {
		return nil, err
	}
	o.log.Warn("made a new identity for this KT KMS: copy the folder to the other hosts of the same KMS before "+
		"you start them", "folder", o.path, "identity", id)
	return folder, nil
}

// newClient makes a client of the servers in kts-site.xml. The active and the passive server share one identity.
func (o *opening) newClient() (*trustee.Client, error) {
	cfg := trustee.ClientConfig{Identity: o.folder.Identity, TLS: o.tls, RoundRobin: o.site.roundRobin &&
		len(o.site.hosts) > 1, MaxConns: o.site.pool, Log: o.log}
	for i, host := range o.site.hosts {
		e := trustee.Endpoint{URL: "https://" + host}
		if n := len(o.folder.Servers); n > 0 {
			e.Server = o.folder.Servers[min(i, n-1)]
		}
		cfg.Servers = append(cfg.Servers, e)
	}
	return trustee.NewClient(cfg)
}

// introduce gets the identity of the servers over TLS, and saves it in the folder.
func (o *opening) introduce(ctx context.Context) error {
	var errs []error
	for _, host := range o.site.hosts {
		p, err := o.client.Introduce(ctx, "https://"+host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		o.log.Info("this KMS trusts this Key Trustee Server from now on", "server", host, "identity", p)
		o.folder.Servers = []*trustee.Party{p}
		if err := o.folder.Save(); err != nil {
			return err
		}
		o.client.Close()
		o.client, err = o.newClient()
		return err
	}
	return fmt.Errorf("no Key Trustee Server sent its identity: %w", errors.Join(errs...))
}

// register registers the identity with the organization.
func (o *opening) register(ctx context.Context) error {
	if o.site.org == "" {
		return fmt.Errorf("%s: property %sorg is not set, and %s was not registered yet", o.site.file, prefix,
			o.folder.Identity)
	}
	if o.env.Source {
		return fmt.Errorf("%s was never registered with a Key Trustee Server, so it has no keys: copy the folder "+
			"from the KT KMS host", o.path)
	}
	active, err := o.client.Register(ctx, o.site.org, string(o.site.auth), !o.shared)
	switch {
	case claviger.Is(err, claviger.KeyExists):
		return o.mismatch(err.Error())
	case claviger.Is(err, claviger.Denied):
		return fmt.Errorf("%s: the Key Trustee Server does not register this KMS (%w): compare the properties %sorg "+
			"and %sauth with claviger orgtool list there", o.site.file, err, prefix, prefix)
	case err != nil:
		return fmt.Errorf("this KMS could not be registered with the Key Trustee Server: %w", err)
	case !active:
		return fmt.Errorf("organization %q has no secret, so an operator must admit this KMS: on the Key Trustee "+
			"Server's host run claviger orgtool enable-client --fingerprint %s, and start again", o.site.org,
			o.folder.Identity.Fingerprint())
	}
	o.folder.Org, o.folder.Registered = o.site.org, time.Now()
	o.log.Info("registered with the Key Trustee Server", "organization", o.site.org, "identity", o.folder.Identity)
	return o.folder.Save()
}

// compareIdentities fails if another identity of the organization was registered first: hosts with different identities
// cannot read each other's keys.
func (o *opening) compareIdentities(ctx context.Context) error {
	if o.shared {
		return nil
	}
	r, err := o.client.Clients(ctx)
	if claviger.Is(err, claviger.Unavailable) {
		o.log.Warn("could not check whether all hosts of this KMS have the same identity", "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the Key Trustee Server refuses this KMS: %w", err)
	}
	fingerprint := o.folder.Identity.Fingerprint()
	for _, c := range r.Clients {
		switch {
		case strings.EqualFold(c.Fingerprint, fingerprint):
			return nil
		case !c.Disabled:
			return o.mismatch(fmt.Sprintf("organization %q has the client %s, registered at %s", r.Org, c.Fingerprint,
				c.Created.UTC().Format(time.RFC3339)))
		}
	}
	return nil
}

func (o *opening) mismatch(reason string) error {
	return fmt.Errorf("%s %s, but %s, %s and %s in %s are of %s: copy these three files together from the KT KMS "+
		"host whose %s has that fingerprint. If this is another KMS, give it its own organization (claviger "+
		"orgtool add), or set "+propertyShared+" to true. If that client no longer exists, disable it with claviger "+
		"orgtool disable-client",
		mismatch, reason, trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing, o.path, o.folder.Identity,
		trustee.ConfFile)
}
