package kms

import (
	"context"

	"claviger/authn"
	"claviger/buildinfo"
	"claviger/console"
	"claviger/kmsapi"
	"claviger/pkcs11"
	"claviger/provider/hsm"
	"claviger/web"
)

// metrics returns the metrics of a server.
func (s *server) metrics(connections *web.Connections) *console.Metrics {
	m := console.NewMetrics(s.ring.SourceUse)
	buildinfo.Read().Metric(m)
	aclMetrics(m, s.policy)
	connections.AddMetrics(m)
	groupMetrics(m, s.auth.groups)
	tokenMetrics(m, s.auth.tokens)
	limiterMetrics(m, &s.limiters)
	s.trail.metrics(m)
	s.tlsKeyMetrics(m)
	s.clocks.metrics(m)
	m.Gauge("claviger_edek_queue_ready", "Ready-made EDEKs of all keys.",
		func() float64 { return float64(s.ring.Queued()) })
	if len(s.svc.Sources) > 0 {
		m.Gauge("claviger_source_conflicts", "Key versions here whose name belongs to another version at the source; "+
			"their EDEKs are not decrypted.", func() float64 { return float64(s.ring.Conflicts()) })
		m.Gauge("claviger_source_waiting", "Requests that wait for a source of key versions.", func() float64 {
			now, _, _ := s.ring.SourceWaiting()
			return float64(now)
		})
		m.Gauge("claviger_source_waiting_max", "Requests that may wait for a source (claviger.source.max.waiting).",
			func() float64 {
				_, _, most := s.ring.SourceWaiting()
				return float64(most)
			})
		m.Gauge("claviger_source_waiting_of_one_user", "Waiting requests of the user who has most of them.",
			func() float64 { _, ofOne, _ := s.ring.SourceWaiting(); return float64(ofOne) })
		m.Counter("claviger_source_waiting_refused_own_total", "Requests refused because too many requests of their "+
			"user waited for a source.", func() float64 { return float64(s.ring.SourceWaitsRefused()) })
	}
	if p, ok := s.svc.Primary.(*hsm.Provider); ok {
		call := m.HSM(p.Sessions)
		m.Gauge("claviger_hsm_unknown_keys", "Keys on the token that have claviger's labels and are not in the "+
			"metastore.", func() float64 { return float64(len(p.Survey().Unknown)) })
		m.Gauge("claviger_hsm_lost_keys", "Key versions of the metastore that were not on the token at the last "+
			"comparison, without those that were given up.",
			func() float64 { return float64(len(p.LastHoldings().Lost)) })
		m.Gauge("claviger_hsm_orphans", "Keys on the token whose number is from the metastore, and that no key "+
			"version uses.", func() float64 { return float64(p.Survey().Orphans) })
		searchMetrics(m, p)
		s.impliedMetrics(m, p)
		p.OnFunction(func(f pkcs11.Function) { m.Function(f.Name, f.Result, f.Took) })
		p.OnCall(func(c pkcs11.Call) { call(c.Callers, c.Blocks, c.Waited, c.Took, c.Err) })
	}
	m.Expiries("claviger_certificate_expiry_seconds", "When the first certificate of a TLS store expires, in seconds "+
		"since 1970, by the property that names the store.", func() ([]console.Expiry, error) {
		certs, _, err := s.svc.certificates()
		list := make([]console.Expiry, 0, len(certs))
		for _, c := range certs {
			list = append(list, console.Expiry{Name: c.Store, Subject: c.Subject, Ends: c.NotAfter})
		}
		return list, err
	})
	m.Query("claviger_delegation_tokens", "Delegation tokens in the store: of all nodes, if nodes share the store.",
		func(ctx context.Context) (float64, error) {
			n, err := s.auth.tokens.Count(ctx)
			return float64(n), err
		})
	return m
}

// searchMetrics adds the metrics of searches for names that the metastore does not
// know.
func searchMetrics(m *console.Metrics, p *hsm.Provider) {
	m.Gauge("claviger_hsm_searches", "Searches of the token in this minute for names that the metastore does not know.",
		func() float64 { return float64(p.Searches().Used) })
	m.Gauge("claviger_hsm_searches_max", "Searches that are allowed in a minute (claviger.hsm.max.searches).",
		func() float64 { return float64(p.Searches().Limit) })
	m.Gauge("claviger_hsm_searches_of_one_user", "Searches in this minute for the user who has most of them.",
		func() float64 { return float64(p.Searches().BusiestCaller) })
	m.Counter("claviger_hsm_searches_refused_total", "Searches that were refused because there were too many.",
		func() float64 { return float64(p.Searches().Refused) })
}

// groupMetrics adds the metrics of lookups of users' groups.
func groupMetrics(m *console.Metrics, g *authn.Groups) {
	m.Gauge("claviger_groups_users", "Users whose groups are remembered.",
		func() float64 { return float64(g.Stats().Cached) })
	m.Gauge("claviger_groups_users_max", "Limit of remembered users, and of remembered unknown names.",
		func() float64 { return float64(g.Stats().Limit) })
	m.Gauge("claviger_groups_unknown_users", "Remembered names that the directory does not know, or that are not "+
		"looked up yet.",
		func() float64 { return float64(g.Stats().Absent) })
	m.Counter("claviger_groups_failed_total", "Lookups of groups that the directory did not answer.",
		func() float64 { return float64(g.Stats().Failed) })
	m.Counter("claviger_groups_refused_total", "Lookups of new names that were refused because too many lookups ran.",
		func() float64 { return float64(g.Stats().Refused) })
}

// tokenMetrics adds the metrics of delegation tokens and their limits.
func tokenMetrics(m *console.Metrics, d *authn.Delegations) {
	m.Gauge("claviger_delegation_tokens_max", "Delegation tokens that the store may hold.",
		func() float64 { return float64(d.Limits().Total) })
	m.Gauge("claviger_delegation_owner_tokens", "Delegation tokens of the owner who had most at the last count.",
		func() float64 { return float64(d.Stats().BusiestOwner) })
	m.Gauge("claviger_delegation_owner_tokens_max", "Delegation tokens that one owner may have.",
		func() float64 { return float64(d.Limits().PerOwner) })
	for reason, of := range map[string]func(authn.TokenStats) int64{
		"rate":  func(s authn.TokenStats) int64 { return s.RefusedRate },
		"owner": func(s authn.TokenStats) int64 { return s.RefusedOwner },
		"total": func(s authn.TokenStats) int64 { return s.RefusedTotal },
	} {
		m.Counter("claviger_delegation_refused_"+reason+"_total",
			"Delegation tokens refused by the limit of "+reason+".",
			func() float64 { return float64(of(d.Stats())) })
	}
}

// limiterMetrics adds metrics about how full the classes of requests are, and how much of
// each class one user has.
func limiterMetrics(m *console.Metrics, limiters *kmsapi.Limiters) {
	of := func(figure func(kmsapi.LimiterFigures) int64) func() map[string]float64 {
		return func() map[string]float64 {
			out := make(map[string]float64)
			for name, f := range limiters.Figures() {
				out[name] = float64(figure(f))
			}
			return out
		}
	}
	const class = "class"
	m.Gauges("claviger_kms_slots", "Slots in use of each class of requests; for class large, bytes.", class,
		of(func(f kmsapi.LimiterFigures) int64 { return f.Used }))
	m.Gauges("claviger_kms_slots_max", "Slots of each class; for class large, bytes.", class,
		of(func(f kmsapi.LimiterFigures) int64 { return f.Size }))
	m.Gauges("claviger_kms_slots_of_one_user", "Slots of the user who has most of them.", class,
		of(func(f kmsapi.LimiterFigures) int64 { return f.BusiestCaller }))
	m.Gauges("claviger_kms_slots_refused_own", "Requests refused so far because their user held slots already.", class,
		of(func(f kmsapi.LimiterFigures) int64 { return f.Own }))
}
