package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"claviger/audit"
	"claviger/authz"
	"claviger/buildinfo"
	"claviger/console"
	"claviger/hadoopconf"
	"claviger/heap"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/migrate"
	"claviger/provider/hsm"
	"claviger/secret"
	"claviger/trace/otlp"
	"claviger/web"
)

// Options are the settings of the command line, beside a configuration folder.
type Options struct {
	Dir       string // the configuration folder
	Port      int    // replaces hadoop.kms.http.port; 0: any free port, negative: as configured
	TLS       bool   // serve https, as hadoop.kms.ssl.enabled does
	ReadyFile string // the server writes its base URL there when it serves requests; "": no file
	Log       *slog.Logger
	Level     *slog.LevelVar // Log's level, which /logLevel changes
}

// Serve runs a KMS until ctx ends.
func Serve(ctx context.Context, o Options) (err error) {
	log := o.Log
	buildinfo.Read().Log(log)
	conf, err := hadoopconf.LoadKMS(o.Dir, os.LookupEnv)
	if err != nil {
		return err
	}
	for _, w := range conf.Warnings() {
		log.Warn(w)
	}
	if o.Port >= 0 {
		conf.Override("hadoop.kms.http.port", strconv.Itoa(o.Port), "--http-port")
	}
	if o.TLS {
		conf.Override("hadoop.kms.ssl.enabled", "true", "--tls")
	}
	// All settings are checked before anything is opened.
	set, err := readSettings(conf)
	if err != nil {
		return err
	}
	s, e, err := openWithRetries(ctx, o, conf, set)
	if err != nil {
		return err
	}
	if s == nil { // ctx ended before the start
		return e.close()
	}
	defer func() { err = errors.Join(err, s.close()) }()
	defer func() { err = errors.Join(err, e.close()) }()
	return s.run(ctx, e)
}

// firstComparison is how long a start waits for the sources to report rolls of
// migrated keys.
const firstComparison = 2 * time.Second

// server is a running server.
type server struct {
	conf     *hadoopconf.Conf
	set      settings
	log      *slog.Logger
	level    *slog.LevelVar
	svc      *Service
	auth     *authenticator
	shared   *cluster
	trail    *AuditTrail
	ring     *keyring.Ring
	policy   *authz.Watcher
	closers  []func() error // of the open parts, in the order of opening
	limiters kmsapi.Limiters
	secrets  *console.SecretFiles
	// api, console, traffic and events are what the web console shows. Without one, traffic and events are nil.
	api     *kmsapi.API
	console *console.Console
	traffic *console.Traffic
	events  *audit.Recent
	// agreement compares this node with the others; nil if there can be no other node.
	agreement *agreement
	clocks    *clockWatch
	traces    *otlp.Exporter // nil if no request is traced
	// waiting is the reason why KMS requests are not served yet; "" if they are.
	waiting atomic.Pointer[string]
	// skipped means that the migration at start was skipped.
	skipped atomic.Bool
}

// close closes the open parts, the newest first.
func (s *server) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// run migrates if the settings say so, then serves until ctx ends.
func (s *server) run(ctx context.Context, e *endpoint) (err error) {
	s.secrets = console.WatchSecretFiles(s.log, func() []secret.File { return secretFiles(s.conf) })
	starting := "the server is starting"
	s.waiting.Store(&starting)
	s.connectTLS(e.tls)
	if err := s.makeHandlers(e.Addr(), e.connections); err != nil {
		return err
	}
	e.Handle(s.console)
	endConsole, err := s.serveWebConsole(ctx, e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, endConsole()) }()

	background, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stop(); group.Wait() }()
	group.Go(func() { s.policy.Run(background) })
	for _, run := range s.auth.background {
		group.Go(func() { run(background) })
	}
	defer s.trail.reopenOnHangup()()
	group.Go(func() { s.watchOtherNodes(background) })
	group.Go(func() { s.watchAgreement(background) })
	if err := s.recordSettings(ctx); err != nil {
		s.log.Warn("the settings of this server were not recorded in the metastore", "err", err)
	}
	group.Go(func() { s.clocks.run(background) })
	group.Go(func() { heap.Manage(background) })

	if err := s.svc.checkSourcesNotSelf(ctx); err != nil {
		return err
	}
	if s.set.migrate {
		if started, err := s.awaitHSM(ctx, e); err != nil || !started {
			return err
		}
		if err := s.migrate(ctx); err != nil {
			return err
		}
	}
	s.compareFirst(ctx)
	none := ""
	s.waiting.Store(&none)
	group.Go(func() { s.ring.WatchSources(background) })
	group.Go(func() {
		if err := s.ring.CheckMigrations(background); err != nil && background.Err() == nil {
			s.log.Warn("a migration is not finished", "err", err)
		}
		_ = s.ring.CheckNames(background) // it logs conflicts, and /readyz reports other errors
	})
	if err := e.Ready("provider", s.svc.Primary.URI(), "sources", len(s.svc.Sources)); err != nil {
		return err
	}
	return e.Wait(ctx)
}

// compareFirst compares with the sources before the first decrypt. A source that does not answer delays the start by at
// most firstComparison.
func (s *server) compareFirst(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstComparison)
	defer cancel()
	_ = s.ring.CompareSources(ctx)
}

// makeHandlers makes the handlers of the REST API, and of the console in front of it.
func (s *server) makeHandlers(addr net.Addr, connections *web.Connections) (err error) {
	cfg := kmsapi.Config{
		Ring: s.ring, Auth: s.auth.Authenticator, Audit: s.trail, Log: s.log,
		KeyAuthorization: s.set.ring.KeyAuthorization,
		Limits:           s.set.limits, Limiters: &s.limiters, Admission: s.set.admission,
		StoreName: s.svc.storeName,
		NotReady:  func() string { return *s.waiting.Load() },
	}
	if s.traces != nil {
		cfg.Tracer = s.traces.Tracer()
	}
	var metrics *console.Metrics
	if s.set.metrics {
		metrics = s.metrics(connections)
		if s.traces != nil {
			traceMetrics(metrics, s.traces)
		}
		metrics.Expect(kmsapi.Classes(), kmsapi.Reasons())
		cfg.Observe, cfg.Waited, cfg.Refused = metrics.Observe, metrics.Waited, metrics.Refused
	}
	if s.set.consoleListen != "" {
		s.traffic, s.events = console.NewTraffic(nil), audit.NewRecent(consoleEvents)
		s.trail.Loggers = append(s.trail.Loggers, s.events)
		cfg.Observe = observeBoth(cfg.Observe, s.traffic.Observe)
	}
	port := s.set.port
	if tcp, ok := addr.(*net.TCPAddr); ok {
		port = tcp.Port
	}
	if cfg.Operations, err = s.operations(port, metrics); err != nil {
		return err
	}
	if s.api, err = kmsapi.New(cfg); err != nil {
		return err
	}
	s.console = console.New(console.Config{Checks: append(s.checks(), console.ConnectionCheck(connections)),
		Metrics: metrics,
		Log:     s.log, Details: s.set.web.details}, s.api)
	return nil
}

// awaitHSM waits until the HSM answers, if the server began without it: no request is served before the migration at
// start. started is false if the server is to end.
func (s *server) awaitHSM(ctx context.Context, e *endpoint) (started bool, err error) {
	p, ok := s.svc.Primary.(*hsm.Provider)
	if !ok || p.Missing() == nil {
		return true, nil
	}
	why := "the migration of key metadata at start waits for the HSM; the check provider says why"
	s.waiting.Store(&why)
	select {
	case <-p.Arrived():
		return true, nil
	case <-ctx.Done():
		return false, nil
	case <-e.Ended():
		return false, e.Wait(ctx)
	}
}

// migrate takes over the source's metadata before requests are served. If the token
// and the metastore do not fit together, no key can be made. Then the migration is
// skipped, so that the server can serve the existing keys.
func (s *server) migrate(ctx context.Context) error {
	if s.skipMigration(ctx) {
		return nil
	}
	why := "the migration of key metadata at start is under way"
	s.waiting.Store(&why)
	engine, err := s.svc.Engine(ctx, migrate.Config{
		Log: s.log, Audit: s.trail, Caller: OwnCaller(),
		Progress: func(p migrate.Progress) {
			text := fmt.Sprintf("%s: %d of %d keys", why, p.Keys, p.KeysTotal)
			s.waiting.Store(&text)
		},
	})
	if err != nil {
		return err
	}
	if _, err := s.svc.RecordLeftovers(ctx, nil); err != nil {
		return err
	}
	_, err = engine.AtStart(ctx)
	return err
}

// skipMigration returns true if the token and the metastore do not fit together. The
// log and readiness then say that the migration is skipped.
func (s *server) skipMigration(ctx context.Context) bool {
	p, ok := s.svc.Primary.(*hsm.Provider)
	if !ok {
		return false
	}
	err := p.CheckFit(ctx)
	if !hsm.IsMisfit(err) {
		return false
	}
	s.skipped.Store(true)
	s.log.Error("the migration at start is skipped, since the token and the metastore do not fit together; "+
		"the keys that are here and at the source are served", "err", err,
		"next", "follow the cure in the error, then restart this server; the restart migrates")
	return true
}

// checkMigrations returns an error if a migration is skipped or not finished.
func (s *server) checkMigrations(ctx context.Context) error {
	if s.skipped.Load() {
		return errors.New("the migration at start was skipped, since the token and the metastore did not fit " +
			"together; wait until the check \"token and metastore fit\" passes, then restart this server; the " +
			"restart migrates")
	}
	return s.ring.CheckMigrations(ctx)
}
