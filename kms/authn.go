package kms

import (
	"context"
	"log/slog"
	"time"

	"claviger/authn"
	"claviger/console"
	"claviger/hadoopconf"
)

// authenticator is an Authenticator with the groups that ACLs ask for too, and with
// what runs beside it until a context ends.
type authenticator struct {
	site *siteWatcher
	*authn.Authenticator
	groups     *authn.Groups
	tokens     *authn.Delegations
	background []func(context.Context)
	checks     []console.Check // of logins
}

func newAuthenticator(ctx context.Context, conf *hadoopconf.Conf, shared *cluster,
	log *slog.Logger) (*authenticator, error) {
	const prefix = authPrefix
	r := &reader{conf: conf}
	validity := r.duration(prefix+"token.validity", time.Second)
	var inactive time.Duration
	if conf.String(prefix+"token.max-inactive-interval") != "-1" {
		inactive = r.duration(prefix+"token.max-inactive-interval", time.Second)
	}
	cfg := authn.Config{
		Validity:    validity,
		MaxInactive: inactive,
		Cookie: authn.CookieAttributes{
			Domain:     conf.String(prefix + "cookie.domain"),
			Path:       conf.String(prefix + "cookie.path"),
			Persistent: r.bool(prefix + "cookie.persistent"),
		},
	}
	anonymous := r.bool(prefix + "simple.anonymous.allowed")
	const delegation = prefix + "delegation-token."
	times := authn.DelegationConfig{
		KeyUpdate: r.duration(delegation+"update-interval.sec", time.Second),
		MaxLife:   r.duration(delegation+"max-lifetime.sec", time.Second),
		Renewal:   r.duration(delegation+"renew-interval.sec", time.Second),
		Scan:      r.duration(delegation+"removal-scan-interval.sec", time.Second),
		Store:     shared.tokens, Digests: shared.digests, Batch: shared.batch, Log: log,
		Limits: r.tokenLimits(),
	}
	if r.err != nil {
		return nil, r.err
	}
	var err error
	if cfg.Handler, cfg.Rules, err = authHandler(conf, anonymous, log); err != nil {
		return nil, err
	}
	if cfg.Delegations, err = authn.NewDelegations(times); err != nil {
		return nil, err
	}
	if validity == 0 {
		return nil, conf.Refuse(prefix+"token.validity", "it must be at least one second")
	}
	groups, err := NewGroups(conf, log)
	if err != nil {
		return nil, err
	}
	proxies, warnings := authn.NewProxyUsers(conf.Under(authn.ProxyUserPrefix), groups.Of, log)
	for _, w := range warnings {
		log.Warn(w)
	}
	cfg.ProxyUsers = proxies
	site := newSiteWatcher(conf, proxies, groups.Of, log)
	a := &authenticator{groups: groups, tokens: cfg.Delegations, site: site, checks: loginChecks(cfg.Handler),
		background: []func(context.Context){cfg.Delegations.Run, site.Run}}
	// Last, for it may have to wait for other machines.
	if cfg.Secrets, err = a.secretProvider(ctx, conf, shared, validity, log); err != nil {
		return nil, err
	}
	if a.Authenticator, err = authn.New(cfg); err != nil {
		if of := conf.Placed(err); of != nil {
			return nil, of
		}
		return nil, err
	}
	return a, nil
}

// tokenLimits reads what owners of delegation tokens may take.
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

// secretProvider opens what signs the cookies.
func (a *authenticator) secretProvider(ctx context.Context, conf *hadoopconf.Conf, shared *cluster,
	validity time.Duration, log *slog.Logger) (authn.SecretProvider, error) {
	switch conf.String(signerKind) {
	case "random":
		return authn.NewRandomSecrets(validity, nil), nil
	case "file":
		const file = "hadoop.kms.authentication.signature.secret.file"
		path, ok := conf.Path(file)
		if !ok {
			return nil, conf.Refuse(signerKind, "set "+file+" to the file that holds the secret")
		}
		secret, err := authn.NewFileSecret(path)
		if of := conf.Placed(err); of != nil {
			return nil, of
		}
		return secret, err
	}
	secrets, err := shared.rollingSecrets(ctx, conf, validity, log)
	if err != nil {
		return nil, err
	}
	a.background = append(a.background, secrets.Run)
	return secrets, nil
}
