package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/pkcs11"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/web"
)

// metricsListenHelp is that of --metrics-listen.
const metricsListenHelp = "serve /metrics, /healthz and /readyz over plain http at this address, as 127.0.0.1:9091; whoever reaches it may read them (default: not at all)"

// serveConsole serves a console of its own, without TLS and without asking who comes:
// the server's own port wants certificates or signatures, which no Prometheus has. It
// returns at once; stop ends it. address "" serves nothing.
func serveConsole(ctx context.Context, address string, cfg console.Config) (stop func() error, err error) {
	if address == "" {
		return func() error { return nil }, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		cfg.Log.Warn("metrics are served beyond this host, to whoever asks", "address", listener.Addr())
	}
	const most = 64 // connections
	bounded := web.NewConnections(web.ConnectionLimits{Total: most, TotalName: "a fixed limit"}, cfg.Log).Bound(listener)
	server := &http.Server{
		Handler:           console.New(cfg, http.NotFoundHandler()),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(bounded) }()
	cfg.Log.Info("serving metrics", "url", "http://"+listener.Addr().String()+"/metrics")
	return func() error {
		err := server.Close() // nobody minds the end of an answer to Prometheus
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	}, nil
}

// certificateName is the label of a server's own certificate among
// claviger_certificate_expiry_seconds.
const certificateName = "server"

// expiryMetric shows when the certificate ends that clients are shown now.
func expiryMetric(m *console.Metrics, certificate func() (*x509.Certificate, error)) {
	m.Expiries("claviger_certificate_expiry_seconds", "When the server's certificate ends, in seconds since 1970.", func() ([]console.Expiry, error) {
		cert, err := certificate()
		if err != nil {
			return nil, err
		}
		return []console.Expiry{{Name: certificateName, Subject: cert.Subject.String(), Ends: cert.NotAfter}}, nil
	})
}

// checkExpiry fails where the certificate has ended or will soon.
func checkExpiry(certificate func() (*x509.Certificate, error), now time.Time) error {
	cert, err := certificate()
	if err != nil {
		return err
	}
	if left := cert.NotAfter.Sub(now); left < soon {
		return fmt.Errorf("the certificate of %s ends at %s; clients then refuse this server", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// expiryInterval is how often a server looks at its certificate's end.
const expiryInterval = 12 * time.Hour

// warnOfExpiry says at once, and then twice a day, when the certificate ends soon,
// until ctx ends.
func warnOfExpiry(ctx context.Context, certificate func() (*x509.Certificate, error), cure string, log *slog.Logger) {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		if err := checkExpiry(certificate, time.Now()); err != nil {
			log.Warn("the server's certificate must be renewed", "why", err, "cure", cure)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// shownCertificate is the one that a configuration shows to clients now.
func shownCertificate(conf *tls.Config) func() (*x509.Certificate, error) {
	return func() (*x509.Certificate, error) {
		cert, err := conf.GetCertificate(nil)
		if err != nil {
			return nil, err
		}
		if cert.Leaf != nil {
			return cert.Leaf, nil
		}
		return x509.ParseCertificate(cert.Certificate[0])
	}
}

// trusteeMetrics are the figures of a Key Trustee Server. Their requests come by
// cfg.Observe, and the times of the Key HSM by cfg.Keeper, which it both sets.
func trusteeMetrics(cfg *server.Config, certificate func() (*x509.Certificate, error), connections *web.Connections) *console.Metrics {
	m := console.NewServiceMetrics("trustee")
	buildinfo.Read().Metric(m)
	cfg.Observe = m.Served
	if cfg.Keeper != nil {
		cfg.Keeper = &timedKeeper{cfg.Keeper, m.Timed("claviger_trustee_keyhsm_seconds", "Requests to the Key HSM by operation and result.")}
	}
	expiryMetric(m, certificate)
	connections.Figures(m)
	if s, ok := cfg.Store.(interface{ Failures() int64 }); ok {
		m.Counter("claviger_trustee_store_errors_total", "Times that the store could not do what it was asked for.", func() float64 { return float64(s.Failures()) })
	}
	if s, ok := cfg.Store.(interface {
		Deposits(ctx context.Context) (live, deleted int64, err error)
	}); ok {
		m.Query("claviger_trustee_deposits", "Live deposits.", func(ctx context.Context) (float64, error) { n, _, err := s.Deposits(ctx); return float64(n), err })
		m.Query("claviger_trustee_deposits_deleted", "Deleted deposits that can come back.", func(ctx context.Context) (float64, error) { _, n, err := s.Deposits(ctx); return float64(n), err })
	}
	return m
}

// timedKeeper tells how long the Key HSM takes.
type timedKeeper struct {
	server.Keeper
	told func(op, result string, took time.Duration)
}

func (k *timedKeeper) Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error) {
	began := time.Now()
	wrapped, err := k.Keeper.Wrap(ctx, uuid, content)
	k.told("wrap", resultOf(err), time.Since(began))
	return wrapped, err
}

func (k *timedKeeper) Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error) {
	began := time.Now()
	content, err := k.Keeper.Unwrap(ctx, uuid, wrapped)
	k.told("unwrap", resultOf(err), time.Since(began))
	return content, err
}

// resultOf is "ok" or the kind of an error.
func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	return claviger.KindOf(err).String()
}

// keyHSMMetrics are the figures of a Key HSM.
func keyHSMMetrics(s *keyhsm.Server, token *pkcs11.Token, connections *web.Connections) *console.Metrics {
	m := console.NewServiceMetrics("keyhsm")
	buildinfo.Read().Metric(m)
	s.OnRequest(m.Served)
	m.HSMFunctions(token.Sessions)
	token.OnFunction(func(f pkcs11.Function) { m.Function(f.Name, f.Result, f.Took) })
	m.Counter("claviger_keyhsm_refused_total", "Handshakes and requests that were refused.", func() float64 { return float64(s.Refused()) })
	expiryMetric(m, s.Certificate)
	connections.Figures(m)
	return m
}

// certificateCheckOf is the readiness check of a certificate; it takes no server out
// of service.
func certificateCheckOf(certificate func() (*x509.Certificate, error)) console.Check {
	return console.Check{Name: "certificate", Informational: true, Run: func(context.Context) error { return checkExpiry(certificate, time.Now()) }}
}

// trusteeChecks are a trustee's conditions of readiness. Without its Key HSM it
// accepts no deposit and opens none that it has wrapped.
func trusteeChecks(store server.Store, replica *replica.Replica, keeper *keyhsm.Client,
	certificate func() (*x509.Certificate, error)) []console.Check {
	checks := []console.Check{{Name: "store", Run: store.Check},
		{Name: "store takes changes", For: []console.Purpose{console.Write}, Run: store.CheckWrites,
			Holds: writeProbeHolds}, certificateCheckOf(certificate)}
	if replica != nil {
		checks = append(checks, console.Check{Name: "the other trustee", For: []console.Purpose{console.Write},
			Run: replica.Check})
	}
	if keeper != nil {
		checks = append(checks, console.Check{Name: "Key HSM", Run: func(ctx context.Context) error {
			st, err := keeper.Status(ctx)
			if err == nil && st.State != keyhsm.Ready {
				err = fmt.Errorf("its state is %s", st.State)
			}
			return err
		}})
	}
	return checks
}

// keyHSMChecks are those of a Key HSM.
func keyHSMChecks(s *keyhsm.Server, keeper *keyhsm.Keeper) []console.Check {
	return []console.Check{
		{Name: "HSM key", Run: func(ctx context.Context) error {
			if st := keeper.Status(ctx); st.State != keyhsm.Ready {
				return fmt.Errorf("%s: %s", st.State, st.Detail)
			}
			return nil
		}},
		certificateCheckOf(s.Certificate),
	}
}
