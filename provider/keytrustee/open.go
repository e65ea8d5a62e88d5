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

// mismatch is the message of a Key Trustee KMS whose hosts have different identities, word for
// word: operators search for it.
const mismatch = "Unable to verify private key match between KMS hosts. Verify private key files have been synced " +
	"between all KMS hosts. Aborting to prevent data inconsistency."

const (
	propertySoftDelete = "claviger.delete.soft"
	propertyShared     = "claviger.keytrustee.shared.organization"
)

// Scheme is the registry's entry for keytrustee://file@/PATH/.keytrustee, the folder of a KT KMS.
// clientTLS returns the certificates that are trusted for a Key Trustee Server; they are not the
// KMS's own.
func Scheme(clientTLS func(provider.Env) (*tls.Config, error)) provider.Scheme {
	return provider.Scheme{Name: "keytrustee", Open: func(ctx context.Context, uri string,
		env provider.Env) (provider.Provider, error) {
		p, err := open(ctx, uri, env, clientTLS)
		if err != nil {
			return nil, err // not p: a nil pointer in an interface is not nil
		}
		return p, nil
	}}
}

// opening is a provider that is being opened.
type opening struct {
	path   string
	site   site
	folder *trustee.Folder
	client *trustee.Client
	tls    *tls.Config
	env    provider.Env
	shared bool // other KMS hosts have the organization too
	log    *slog.Logger
	// release frees the lock of the KMS on its folder.
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
	// Before any file or server is used: they are not at fault here.
	cfg := Config{URI: uri, Log: o.log}
	if cfg.SoftDelete, err = env.Bool(propertySoftDelete, true); err != nil {
		return nil, err
	}
	if cfg.MaterialLife, err = materialLife(env); err != nil {
		return nil, err
	}
	if o.shared, err = env.Bool(propertyShared, false); err != nil {
		return nil, err
	}
	kts, _ := env.Get(hadoopconf.TrusteeConf)
	var warnings []string
	if o.site, warnings, err = readSite(kts, env.ConfDir); err != nil {
		return nil, err
	}
	defer o.site.auth.Wipe()
	for _, w := range warnings {
		o.log.Warn(w)
	}
	if clientTLS != nil {
		if o.tls, err = clientTLS(env); err != nil {
			return nil, err
		}
	}
	if o.site.insecure {
		o.log.Warn("certificates of the Key Trustee Server are not checked, so that whoever is between can withhold "+
			"deposits: put its certificate into the truststore and take the property out; Cloudera Manager sets it "+
			"by itself where the KMS's own TLS is off",
			"file", o.site.file, "property", prefix+"insecure")
		if o.tls = o.tls.Clone(); o.tls == nil {
			o.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		o.tls.InsecureSkipVerify = true //nolint:gosec // as the operator has it; answers are signed
	}
	if err := o.load(ctx); err != nil {
		o.release()
		return nil, err
	}
	cfg.Box, cfg.Identity = o.client, o.folder.Identity
	cfg.Closer = func() error { o.client.Close(); o.release(); return nil }
	if env.Source { // a source changes nothing, and its folder is a copy of another host's
		return New(cfg), nil
	}
	markServed(o.folder, time.Now(), o.log)
	cfg.memory, cfg.place = &memory{folder: o.folder}, &place{folder: o.folder}
	p := New(cfg)
	warning, err := p.atStart(ctx)
	switch {
	case claviger.Is(err, claviger.Unavailable):
		o.log.Warn("whether the Key Trustee Server has what it acknowledged last could not be asked", "err", err)
	case err != nil:
		return nil, errors.Join(err, p.Close())
	case warning != "":
		o.log.Warn(warning)
	}
	return p, nil
}

// materialLife reads how long a version's key is kept in memory.
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

// load reads identity, servers and registration. If a server does not answer, requests to it are
// postponed, provided that the folder says they were answered before.
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
		if o.release, err = share(o.path, o.env.ConfDir, o.log); err != nil {
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
		return nil // a copy of a folder is as good as the KMS's own
	}
	return o.compare(ctx)
}

func (o *opening) newFolder() (*trustee.Folder, error) {
	if o.site.org == "" {
		return nil,
			fmt.Errorf("%s: property %sorg is not set: at its first start a KT KMS registers with an organization, "+
				"which claviger orgtool add makes", o.site.file, prefix)
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
	o.log.Warn("this KT KMS has an identity of its own now: other hosts of the same KMS need a copy of the folder "+
		"before they are started", "folder", o.path, "identity", id)
	return folder, nil
}

// newClient makes a client of the servers in kts-site.xml. The active and the passive server have
// one identity.
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

// introduce asks the servers for their identity, once, over TLS.
func (o *opening) introduce(ctx context.Context) error {
	var errs []error
	for _, host := range o.site.hosts {
		p, err := o.client.Introduce(ctx, "https://"+host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		o.log.Info("this Key Trustee Server is believed from now on", "server", host, "identity", p)
		o.folder.Servers = []*trustee.Party{p}
		if err := o.folder.Save(); err != nil {
			return err
		}
		o.client.Close()
		o.client, err = o.newClient()
		return err
	}
	return fmt.Errorf("no Key Trustee Server could be asked who it is: %w", errors.Join(errs...))
}

func (o *opening) register(ctx context.Context) error {
	if o.site.org == "" {
		return fmt.Errorf("%s: property %sorg is not set, and %s was not registered yet", o.site.file, prefix,
			o.folder.Identity)
	}
	if o.env.Source {
		return fmt.Errorf("%s was never registered with a Key Trustee Server, so there are no keys of it: copy the "+
			"folder from the KT KMS host", o.path)
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
		return fmt.Errorf("organization %q has no secret, so that an operator decides: on the Key Trustee Server's "+
			"host run claviger orgtool enable-client --fingerprint %s, and start again", o.site.org,
			o.folder.Identity.Fingerprint())
	}
	o.folder.Org, o.folder.Registered = o.site.org, time.Now()
	o.log.Info("registered with the Key Trustee Server", "organization", o.site.org, "identity", o.folder.Identity)
	return o.folder.Save()
}

// compare refuses to start if another identity of the organization was registered first: then one
// host could not read the keys of the other.
func (o *opening) compare(ctx context.Context) error {
	if o.shared {
		return nil
	}
	r, err := o.client.Clients(ctx)
	if claviger.Is(err, claviger.Unavailable) {
		o.log.Warn("whether all hosts of this KMS have one identity could not be asked", "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the Key Trustee Server does not let this KMS in: %w", err)
	}
	mine := o.folder.Identity.Fingerprint()
	for _, c := range r.Clients {
		switch {
		case strings.EqualFold(c.Fingerprint, mine):
			return nil
		case !c.Disabled:
			return o.mismatch(fmt.Sprintf("organization %q has the client %s, registered at %s", r.Org, c.Fingerprint,
				c.Created.UTC().Format(time.RFC3339)))
		}
	}
	return nil
}

func (o *opening) mismatch(what string) error {
	return fmt.Errorf("%s %s, but %s, %s and %s in %s are of %s: copy these three files together from the KT KMS "+
		"host whose %s has that fingerprint. If this is another KMS, give it an organization of its own (claviger "+
		"orgtool add), or set "+propertyShared+" to true; a client that is no more is put out by claviger "+
		"orgtool disable-client",
		mismatch, what, trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing, o.path, o.folder.Identity,
		trustee.ConfFile)
}
