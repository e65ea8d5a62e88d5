package main

import (
	"claviger/console"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// metrics are the figures of a server.
func (s *kmsServer) metrics(listener *boundedListener) *console.Metrics {
	m := console.NewMetrics(s.ring.SourceUse)
	aclMetrics(m, s.policy)
	listener.metrics(m)
	m.Gauge("claviger_edek_queue_ready", "Ready-made EDEKs of all keys.", func() float64 { return float64(s.ring.Queued()) })
	if p, ok := s.svc.Primary.(*hsm.Provider); ok {
		call := m.HSM(p.Sessions)
		p.OnCall(func(c pkcs11.Call) { call(c.Callers, c.Blocks, c.Waited, c.Took, c.Err) })
	}
	m.Expiries("claviger_certificate_expiry_seconds", "When the first certificate of a TLS store ends, by the property that names the store, in seconds since 1970.", func() ([]console.Expiry, error) {
		certs, err := s.svc.certificates()
		list := make([]console.Expiry, 0, len(certs))
		for _, c := range certs {
			list = append(list, console.Expiry{Name: c.Store, Subject: c.Subject, Ends: c.NotAfter})
		}
		return list, err
	})
	return m
}
