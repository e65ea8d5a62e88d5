package kms

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/console"
	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/metastore/location"
	"claviger/owner"
	"claviger/provider/hsm"
)

const (
	// startPause is the first pause between two attempts to start, while a part that the server
	// needs is away. Each pause is twice the one before, up to maxStartPause.
	startPause, maxStartPause = time.Second, 10 * time.Second
	// startLogInterval is how often the log says that the part still is away.
	startLogInterval = time.Minute
)

// openPatiently opens all parts of the server and its endpoint. While a database, ZooKeeper or
// the HSM is away, it listens, reports that in the log and by /readyz, and tries again. A fault
// that a person must mend is an error at once. If ctx ends while it waits, it returns an
// endpoint at most, and no error.
func openPatiently(ctx context.Context, o Options, conf *hadoopconf.Conf, set settings) (_ *server, _ *endpoint,
	err error) {
	var e *endpoint
	defer func() {
		if err != nil && e != nil {
			err = errors.Join(err, e.close())
		}
	}()
	var why atomic.Pointer[string]
	var logged time.Time
	for pause := startPause; ; pause = min(2*pause, maxStartPause) {
		s := &server{conf: conf, set: set, log: o.Log, level: o.Level}
		err := s.open(ctx)
		if err != nil {
			err = errors.Join(err, s.close())
		}
		if err == nil {
			if e == nil {
				if e, err = openEndpoint(ctx, conf, set, o.ReadyFile, o.Log); err != nil {
					return nil, nil, errors.Join(err, s.close())
				}
			}
			return s, e, nil
		}
		if ctx.Err() != nil || !claviger.IsAway(err) {
			return nil, e, err
		}
		text := "the server waits to start: " + err.Error()
		last := why.Swap(&text)
		if e == nil {
			if e, err = openEndpoint(ctx, conf, set, o.ReadyFile, o.Log); err != nil {
				return nil, nil, err
			}
			e.Handle(startingHandler(func() string { return *why.Load() }, set.web.details, o.Log))
		}
		if last == nil || time.Since(logged) > startLogInterval {
			logged = time.Now()
			o.Log.Warn("a part that the server needs is away; the start is tried again until it is there", "why", text,
				"again", pause)
		}
		select {
		case <-ctx.Done():
			return nil, e, nil
		case <-e.Ended():
			return nil, e, e.Wait(ctx)
		case <-time.After(pause):
		}
	}
}

// startingHandler answers while the server cannot start.
func startingHandler(why func() string, details func(*http.Request) bool, log *slog.Logger) http.Handler {
	check := console.Check{Name: "started", Run: func(context.Context) error { return errors.New(why()) }}
	return console.New(console.Config{Checks: []console.Check{check}, Log: log, Details: details},
		kmsapi.Standby("this node is starting; its log tells more"))
}

// open opens the server's parts; close closes those that were opened.
func (s *server) open(ctx context.Context) error {
	conf, set, log := s.conf, s.set, s.log
	policy, err := authz.NewWatcher(ACLFile(conf), readACLs, log, aclDefaults(conf)...)
	if err != nil {
		return err
	}
	// Before the cluster, which shares the metastore: only the provider can tell whether a metastore that is not there
	// yet may be made.
	svc, err := openConfigured(ctx, conf, Command, hsm.Serve, log)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, svc.Close)
	shared, err := openCluster(ctx, conf, log)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, shared.Close)
	if svc.Store == nil && shared.store != nil { // else the claim is made
		if err := claimStore(ctx, shared.store, owner.Self(Command, conf.Dir()), hsm.Serve); err != nil {
			return err
		}
	}
	auth, err := newAuthenticator(ctx, conf, shared, log)
	if err != nil {
		return err
	}
	trail, err := openAudit(ctx, set.audit, svc, standardOutput{})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, trail.Close)

	cfg := set.ring
	cfg.Primary, cfg.Sources, cfg.Policy, cfg.Groups, cfg.Audit, cfg.Log = svc.Primary, svc.Sources, policy.Policy,
		auth.groups.Of, trail, log
	if svc.Store != nil {
		cfg.Usage, cfg.LastUses, cfg.Settings, cfg.Clock = svc.Store, svc.Store, svc.Store, svc.Store
		uses, kept, err := location.OpenUses(conf)
		if err != nil {
			return err
		}
		if kept {
			cfg.UsesKept = uses
		}
	}
	if cfg.Shared = svc.sharedKeys(); cfg.Shared != nil {
		s.agreement = &agreement{conf: conf, store: svc.Store, log: log, self: svc.self}
		cfg.MayDestroy = s.agreement.mayDestroy
	}
	cfg.Migrator = svc.migrator()
	cfg.History = svc.history()
	if _, ok := svc.Primary.(*hsm.Provider); ok {
		cfg.Numbers = svc.Store
	}
	ring, err := keyring.New(cfg)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, ring.Close)
	s.clocks = &clockWatch{log: log, of: clocksOf(svc, shared)}
	s.svc, s.auth, s.shared, s.trail, s.ring, s.policy = svc, auth, shared, trail, ring, policy
	return nil
}
