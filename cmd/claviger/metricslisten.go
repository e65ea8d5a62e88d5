package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/kms"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/web"
)

const metricsListenName = "--metrics-listen"

// metricsListenHelp is that of --metrics-listen.
const metricsListenHelp = "serve /metrics, /healthz and /readyz over plain http at this address, as 127.0.0.1:9091; whoever reaches it may read them (default: not at all)"

// trusteeMetrics are the figures of a Key Trustee Server. Their requests come by
// cfg.Observe, and the times of the Key HSM by cfg.Keeper, which it both sets.
func trusteeMetrics(cfg *server.Config, certificate func() (*x509.Certificate, error), connections *web.Connections) *console.Metrics {
	m := console.NewServiceMetrics("trustee")
	buildinfo.Read().Metric(m)
	cfg.Observe = m.Served
	if cfg.Keeper != nil {
		cfg.Keeper = &timedKeeper{cfg.Keeper, m.Timed("claviger_trustee_keyhsm_seconds", "Requests to the Key HSM by operation and result.")}
	}
	m.ServerCertificate(certificate)
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

// trusteeChecks are a trustee's conditions of readiness. Without its Key HSM it
// accepts no deposit and opens none that it has wrapped.
func trusteeChecks(store server.Store, replica *replica.Replica, keeper *keyhsm.Client,
	certificate func() (*x509.Certificate, error)) []console.Check {
	checks := []console.Check{{Name: "store", Run: store.Check},
		{Name: "store takes changes", For: []console.Purpose{console.Write}, Run: store.CheckWrites,
			Holds: kms.WriteProbeHolds}, console.CertificateCheck(certificate)}
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
