package host

import (
	"context"
	"fmt"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// metrics makes the metrics of a trustee. It sets cfg.Observe to count requests, and wraps cfg.Keeper to
// measure the Key HSM.
func (r *running) metrics(cfg *server.Config) *console.Metrics {
	m := console.NewServiceMetrics("trustee")
	buildinfo.Read().Metric(m)
	cfg.Observe = m.Served
	if cfg.Keeper != nil {
		cfg.Keeper = &timedKeeper{cfg.Keeper, m.Timed("claviger_trustee_keyhsm_seconds",
			"Requests to the Key HSM by operation and result.")}
	}
	m.ServerCertificate(r.tls.Certificate)
	r.connections.AddMetrics(m)
	if s, ok := cfg.Store.(interface{ Failures() int64 }); ok {
		m.Counter("claviger_trustee_store_errors_total", "Operations of the store that failed.",
			func() float64 { return float64(s.Failures()) })
	}
	if s, ok := cfg.Store.(interface {
		Deposits(ctx context.Context) (live, deleted int64, err error)
	}); ok {
		m.Query("claviger_trustee_deposits", "Live deposits.", func(ctx context.Context) (float64, error) {
			n, _, err := s.Deposits(ctx)
			return float64(n), err
		})
		m.Query("claviger_trustee_deposits_deleted", "Deleted deposits that can come back.",
			func(ctx context.Context) (float64, error) {
				_, n, err := s.Deposits(ctx)
				return float64(n), err
			})
	}
	if r.replica != nil {
		replicaMetrics(m, r.replica)
	}
	return m
}

// replicaMetrics adds the metrics of one of two trustees.
func replicaMetrics(m *console.Metrics, r *replica.Replica) {
	for name, metric := range map[string]struct {
		help  string
		value func(st *replica.Position, synced bool) float64
	}{
		"active": {"1 if this server is the active one of two, 0 if it is the passive one.",
			func(st *replica.Position, _ bool) float64 { return oneIf(st.Role == server.RoleActive) }},
		"synced": {"1 if this server is the active one and knows that the passive one has every change.",
			func(_ *replica.Position, synced bool) float64 { return oneIf(synced) }},
		"alone": {"1 while the active server works without the passive one, because an operator allowed it.",
			func(st *replica.Position, _ bool) float64 { return oneIf(st.Alone) }},
		"epoch": {"How many promotions there have been.",
			func(st *replica.Position, _ bool) float64 { return float64(st.Epoch) }},
		"change": {"Number of the last change in the log.",
			func(st *replica.Position, _ bool) float64 { return float64(st.Head.Seq) }},
	} {
		m.Query("claviger_trustee_"+name, metric.help, func(ctx context.Context) (float64, error) {
			st, synced, err := r.State(ctx)
			return metric.value(&st, synced), err
		})
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// timedKeeper measures the Key HSM.
type timedKeeper struct {
	server.Keeper
	observe func(op, result string, took time.Duration)
}

// Wrap implements server.Keeper.
func (k *timedKeeper) Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error) {
	began := time.Now()
	wrapped, err := k.Keeper.Wrap(ctx, uuid, content)
	k.observe("wrap", resultOf(err), time.Since(began))
	return wrapped, err
}

// Unwrap implements server.Keeper.
func (k *timedKeeper) Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error) {
	began := time.Now()
	content, err := k.Keeper.Unwrap(ctx, uuid, wrapped)
	k.observe("unwrap", resultOf(err), time.Since(began))
	return content, err
}

// resultOf returns "ok" or the kind of an error.
func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	return claviger.KindOf(err).String()
}

// checks returns the readiness checks of a trustee. If its Key HSM does not answer, a trustee accepts no
// deposit and opens no wrapped deposit.
func (r *running) checks() []console.Check {
	checks := []console.Check{
		{Name: "store", Run: r.store.Check},
		{Name: "store takes changes", For: []console.Purpose{console.Write}, Run: r.store.CheckWrites,
			Holds: console.WriteProbeLife},
		console.CertificateCheck(r.tls.Certificate),
	}
	if r.replica != nil {
		checks = append(checks, console.Check{Name: "the other trustee", For: []console.Purpose{console.Write},
			Run: r.replica.Check})
	}
	if r.keeper != nil {
		checks = append(checks, console.Check{Name: "Key HSM", Run: func(ctx context.Context) error {
			st, err := r.keeper.Status(ctx)
			if err == nil && st.State != keyhsm.Ready {
				err = fmt.Errorf("its state is %s", st.State)
			}
			return err
		}})
	}
	checks = append(checks, r.tls.keyChecks()...)
	return append(checks, console.Check{Name: "wrapped deposits", Run: r.wrapped.Check},
		console.ConnectionCheck(r.connections), r.secrets.Check())
}
