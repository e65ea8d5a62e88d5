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
	// needs does not answer. Each pause is twice the one before, up to maxStartPause.
	startPause, maxStartPause = time.Second, 10 * time.Second
	// startLogInterval is the time between two log lines about such a part.
	startLogInterval = time.Minute
)

// openWithRetries opens all parts of the server and its endpoint. While a database,
// ZooKeeper or the HSM does not answer, it listens, reports the problem in the log and
// in /readyz, and tries again. A problem that a person must solve is an error at once.
// If ctx ends while it waits, it returns at most an endpoint, and no error.
func openWithRetries(ctx context.Context, o Options, conf *hadoopconf.Conf, set settings) (_ *server, _ *endpoint,
	err error) {
	var e *endpoint
	defer func() {
		if err != nil && e != nil {
			err = errors.Join(err, e.close())
		}
	}()
	var why atomic.Pointer[string]
	var logged time.Time
	for pause := time.Duration(0); ; {
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
		if ctx.Err() != nil || !claviger.IsUnreachable(err) {
			return nil, e, err
		}
		pause = nextStartPause(pause, err)
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
			o.Log.Warn("a part that the server needs does not answer; the server tries to start until the part answers",
				"why", text, "again", pause)
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

// nextStartPause returns the pause after an attempt to start that failed with err. last is the pause before.
func nextStartPause(last time.Duration, err error) time.Duration {
	if pause, ok := hsm.RetryPause(last, err); ok {
		return pause
	}
	return min(max(2*last, startPause), maxStartPause)
}

// startingHandler answers while the server cannot start.
func startingHandler(why func() string, details func(*http.Request) bool, log *slog.Logger) http.Handler {
	check := console.Check{Name: "started", Run: func(context.Context) error { return errors.New(why()) }}
	return console.New(console.Config{Checks: []console.Check{check}, Log: log, Details: details},
		kmsapi.Standby("this node is starting; its log has the reason"))
}

// open opens the server's parts. After an error, close closes the parts that are open.
func (s *server) open(ctx context.Context) error {
	conf, set, log := s.conf, s.set, s.log
	policy, err := authz.NewWatcher(ACLFile(conf), readACLs, log, aclDefaults(conf)...)
	if err != nil {
		return err
	}
	// Before the cluster, which uses the same metastore: only the provider knows whether a
	// missing metastore may be made.
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
	if svc.Store == nil && shared.store != nil { // opening svc.Store has made the claim
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
	s.svc, s.auth, s.shared, s.trail, s.policy = svc, auth, shared, trail, policy
	if err := s.openTraces(); err != nil {
		return err
	}
	if err := s.openRing(); err != nil {
		return err
	}
	s.clocks = &clockWatch{log: log, clocks: clocksOf(svc, shared)}
	return nil
}

// openRing makes the ring over the other parts, which are open.
func (s *server) openRing() error {
	svc := s.svc
	cfg := s.set.ring
	cfg.Primary, cfg.Sources, cfg.Policy, cfg.Groups = svc.Primary, svc.Sources, s.policy.Policy, s.auth.groups.Of
	cfg.Audit, cfg.Log = s.trail, s.log
	if svc.Store != nil {
		cfg.Usage, cfg.LastUses, cfg.Settings, cfg.Clock = svc.Store, svc.Store, svc.Store, svc.Store
		uses, kept, err := location.OpenUses(s.conf)
		if err != nil {
			return err
		}
		if kept {
			cfg.UsesKept = uses
		}
	}
	if cfg.Shared = svc.sharedKeys(); cfg.Shared != nil {
		s.agreement = &agreement{conf: s.conf, store: svc.Store, log: s.log, self: svc.self}
		cfg.MayDestroy = s.agreement.mayDestroy
	}
	cfg.Migrator = svc.migrator()
	cfg.History = svc.history()
	if _, ok := svc.Primary.(*hsm.Provider); ok {
		cfg.Numbers = svc.Store
	} else {
		s.onlyForHSM(&cfg)
	}
	ring, err := keyring.New(cfg)
	if err != nil {
		return err
	}
	s.ring = ring
	s.closers = append(s.closers, ring.Close)
	return nil
}
