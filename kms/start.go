package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"syscall"
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
	"claviger/web"
)

const (
	// startPause and startPauseMost lie between two attempts to start while a part that
	// the server stands on is away.
	startPause, startPauseMost = time.Second, 10 * time.Second
	// startRemind is how often the log says that it still is.
	startRemind = time.Minute
)

// openPatiently opens all that the server stands on. While a database, ZooKeeper or the
// HSM is away it waits for it, listens, and tells so in the log and by /readyz; whatever
// a person must mend is an error at once. It returns no server, and no error, where ctx
// ended while it waited.
func openPatiently(ctx context.Context, conf *hadoopconf.Conf, set settings, log *slog.Logger, level *slog.LevelVar) (_ *server, _ *front, err error) {
	var f *front
	defer func() {
		if err != nil && f != nil {
			err = errors.Join(err, f.close(set.shutdown))
		}
	}()
	var why atomic.Pointer[string]
	var told time.Time
	for pause := startPause; ; pause = min(2*pause, startPauseMost) {
		s := &server{conf: conf, set: set, log: log, level: level}
		err := s.open(ctx)
		if err != nil {
			err = errors.Join(err, s.close())
		}
		if err == nil {
			if f == nil {
				if f, err = openFront(ctx, conf, set, log); err != nil {
					return nil, nil, errors.Join(err, s.close())
				}
			}
			return s, f, nil
		}
		if ctx.Err() != nil || !claviger.IsAway(err) {
			return nil, f, err
		}
		text := "the server waits to start: " + err.Error()
		last := why.Swap(&text)
		if f == nil {
			if f, err = openFront(ctx, conf, set, log); err != nil {
				return nil, nil, err
			}
			f.show(waitingRoom(func() string { return *why.Load() }, set.web.showsDetails, log))
		}
		if last == nil || time.Since(told) > startRemind {
			told = time.Now()
			log.Warn("a part that the server stands on is away; it is tried again until it is there", "why", text, "again", pause)
		}
		select {
		case <-ctx.Done():
			return nil, f, nil
		case err := <-f.served:
			f.served <- err
			return nil, f, err
		case <-time.After(pause):
		}
	}
}

// waitingRoom answers while the server can't start.
func waitingRoom(why func() string, details func(*http.Request) bool, log *slog.Logger) http.Handler {
	check := console.Check{Name: "started", Run: func(context.Context) error { return errors.New(why()) }}
	return console.New(console.Config{Checks: []console.Check{check}, Log: log, Details: details},
		kmsapi.Standby("this node is starting; its log tells more"))
}

// front is where clients come in.
type front struct {
	listener    net.Listener
	connections *web.Connections
	scheme      string
	server      *http.Server
	served      chan error
	secured     *tls.Config // nil: plain http
	stopTLS     func()
	handler     atomic.Pointer[http.Handler]
	log         *slog.Logger
}

// openFront listens, and serves what show says.
func openFront(ctx context.Context, conf *hadoopconf.Conf, set settings, log *slog.Logger) (*front, error) {
	f := &front{log: log, scheme: "http", served: make(chan error, 1), stopTLS: func() {}}
	if set.tls {
		var err error
		if f.secured, f.stopTLS, err = serverTLS(conf, log); err != nil {
			return nil, err
		}
		f.scheme = "https"
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(set.host, strconv.Itoa(set.port)))
	if err != nil {
		f.stopTLS()
		var unresolved *net.DNSError
		if errors.As(err, &unresolved) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, conf.RefuseFor("hadoop.kms.http.host", err, "it must be a name or an address of this host, or 0.0.0.0 for all of them: %v", err)
		}
		return nil, fmt.Errorf("listening at the address of hadoop.kms.http.host and hadoop.kms.http.port: %w", err)
	}
	f.listener, f.connections = listener, web.NewConnections(set.web.connections, log)
	f.show(waitingRoom(func() string { return "the server is starting" }, set.web.showsDetails, log))
	f.server = set.web.newServer(f, log)
	f.connections.Watch(f.server)
	listener = f.connections.Bound(listener)
	if f.secured != nil {
		listener = tls.NewListener(listener, f.secured)
	}
	go func() { f.served <- f.server.Serve(listener) }()
	return f, nil
}

// show has requests from now on answered by h.
func (f *front) show(h http.Handler) { f.handler.Store(&h) }

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*f.handler.Load()).ServeHTTP(w, r)
}

// close lets requests under way end, for as long as the setting says.
func (f *front) close(patience time.Duration) error {
	defer f.stopTLS()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.server.Shutdown(ctx); err != nil {
		f.log.Warn("requests were still under way at the end of claviger.shutdown.timeout and are cut off", "err", err)
		if err := f.server.Close(); err != nil {
			return err
		}
	}
	if err := <-f.served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// open opens the server's parts; close closes those that were opened.
func (s *server) open(ctx context.Context) error {
	conf, set, log := s.conf, s.set, s.log
	policy, err := authz.NewWatcher(ACLFile(conf), readACLs, log, aclDefaults(conf)...)
	if err != nil {
		return err
	}
	// Before the cluster, which shares the metastore: the provider alone can tell whether a metastore that is not there yet
	// may be made.
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
	cfg.Primary, cfg.Sources, cfg.Policy, cfg.Groups, cfg.Audit, cfg.Log = svc.Primary, svc.Sources, policy.Policy, auth.groups.Of, trail, log
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
