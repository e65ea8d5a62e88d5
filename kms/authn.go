package kms

import (
	"context"
	"log/slog"
	"time"

	"claviger/authn"
	"claviger/console"
	"claviger/hadoopconf"
)

// authenticator is an Authenticator, with the groups that ACLs use too, and the
// functions that run in the background until their context ends.
type authenticator struct {
	site *siteWatcher
	*authn.Authenticator
	simple     bool // the handler believes user names
	groups     *authn.Groups
	tokens     *authn.Delegations
	secrets    authn.SecretProvider
	background []func(context.Context)
	checks     []console.Check // of logins
}

func newAuthenticator(ctx context.Context, conf *hadoopconf.Conf, shared *cluster,
	log *slog.Logger) (*authenticator, error) {
	r := &reader{conf: conf}
	cfg := r.cookies()
	anonymous := r.bool(authPrefix + "simple.anonymous.allowed")
	delegations := r.delegations(shared, log)
	if r.err != nil {
		return nil, r.err
	}
	var err error
	if cfg.Handler, cfg.Rules, err = authHandler(conf, anonymous, log); err != nil {
		return nil, err
	}
	if cfg.Delegations, err = authn.NewDelegations(delegations); err != nil {
		return nil, err
	}
	if cfg.Validity == 0 {
		return nil, conf.Refuse(authPrefix+"token.validity", "it must be at least one second")
	}
	groups, err := NewGroups(conf, log)
	if err != nil {
		return nil, err
	}
	proxies, warnings := authn.NewProxyUsers(conf.WithPrefix(authn.ProxyUserPrefix), groups.Of, log)
	for _, w := range warnings {
		log.Warn(w)
	}
	cfg.ProxyUsers = proxies
	site := newSiteWatcher(conf, proxies, groups.Of, log)
	a := &authenticator{groups: groups, tokens: cfg.Delegations, site: site, checks: loginChecks(cfg.Handler),
		background: []func(context.Context){cfg.Delegations.Run, site.Run}}
	// Last, because it may have to wait for other machines.
	if cfg.Secrets, err = a.secretProvider(ctx, conf, shared, cfg.Validity, log); err != nil {
		return nil, err
	}
	a.secrets = cfg.Secrets
	_, a.simple = cfg.Handler.(authn.Simple)
	if a.Authenticator, err = authn.New(cfg); err != nil {
		if placed := conf.WithPlace(err); placed != nil {
			return nil, placed
		}
		return nil, err
	}
	return a, nil
}

// cookies reads the properties of authentication cookies.
func (r *reader) cookies() authn.Config {
	cfg := authn.Config{
		Validity: r.duration(authPrefix+"token.validity", time.Second),
		Cookie: authn.CookieAttributes{
			Domain:     r.conf.String(authPrefix + "cookie.domain"),
			Path:       r.conf.String(authPrefix + "cookie.path"),
			Persistent: r.bool(authPrefix + "cookie.persistent"),
		},
	}
	if r.conf.String(authPrefix+"token.max-inactive-interval") != "-1" {
		cfg.MaxInactive = r.duration(authPrefix+"token.max-inactive-interval", time.Second)
	}
	return cfg
}

const (
	// rememberOwn is how long a delegation token is accepted without another reading of a store that this process alone
	// changes. After a change by this process, the store is read again at once.
	rememberOwn = 10 * time.Minute
	// rememberShared is the same for a store that other nodes change. A node that removes a token sends a notice; if
	// the notice is late or lost, the token is refused after this time. docs/nodes/postgresql.md states it.
	rememberShared = time.Second
)

// delegations reads the properties of delegation tokens.
func (r *reader) delegations(shared *cluster, log *slog.Logger) authn.DelegationConfig {
	const prefix = authPrefix + "delegation-token."
	return authn.DelegationConfig{
		KeyUpdate: r.duration(prefix+"update-interval.sec", time.Second),
		MaxLife:   r.duration(prefix+"max-lifetime.sec", time.Second),
		Renewal:   r.duration(prefix+"renew-interval.sec", time.Second),
		Scan:      r.duration(prefix+"removal-scan-interval.sec", time.Second),
		Store:     shared.tokens, Digests: shared.digests, Batch: shared.batch, Log: log,
		Remember: shared.remember, Limits: r.tokenLimits(),
	}
}

// tokenLimits reads the limits of delegation tokens.
func (r *reader) tokenLimits() authn.TokenLimits {
	const prefix, most = "claviger.delegation.", 1 << 24
	return authn.TokenLimits{
		Total:    int(r.int(prefix+"max.tokens", 1, most)),
		PerOwner: int(r.int(prefix+"max.tokens.per.owner", 1, most)),
		Rate:     r.float(prefix+"rate.per.owner", 0.001, most),
		Burst:    int(r.int(prefix+"burst.per.owner", 1, most)),
		Renewer:  int(r.int(prefix+"max.renewer.bytes", 1, 512)),
	}
}

// secretProvider opens the provider of the secrets that sign cookies.
func (a *authenticator) secretProvider(ctx context.Context, conf *hadoopconf.Conf, shared *cluster,
	validity time.Duration, log *slog.Logger) (authn.SecretProvider, error) {
	switch conf.String(signerKind) {
	case "random":
		return authn.NewRandomSecrets(validity, nil), nil
	case "file":
		return signatureFile(conf)
	}
	secrets, err := shared.rollingSecrets(ctx, conf, validity, log)
	if err != nil {
		return nil, err
	}
	a.background = append(a.background, secrets.Run)
	return secrets, nil
}

// signatureFile opens the file with the secret that signs cookies.
func signatureFile(conf *hadoopconf.Conf) (authn.SecretProvider, error) {
	const file = "hadoop.kms.authentication.signature.secret.file"
	path, ok := conf.Path(file)
	if !ok {
		return nil, conf.Refuse(signerKind, "set "+file+" to the file that holds the secret")
	}
	secret, err := authn.NewFileSecret(path)
	if placed := conf.WithPlace(err); placed != nil {
		return nil, placed
	}
	return secret, err
}
