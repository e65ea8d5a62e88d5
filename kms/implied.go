package kms

import (
	"context"
	"time"

	"claviger/console"
	"claviger/keyring"
	"claviger/provider/hsm"
)

const (
	// generateName says how fresh EDEKs are made: generateEncrypted or generateImplied.
	generateName = "claviger.hsm.generate"
	// leaseName is the length of leases with generateImplied.
	leaseName = "claviger.hsm.generate.lease"

	generateEncrypted = "encrypted"
	generateImplied   = "implied"

	minLease, maxLease = time.Second, 10 * time.Minute
)

// impliedLease returns the length of leases under which EDEKs are made without the HSM; 0: they are made with the HSM.
func (r *reader) impliedLease() time.Duration {
	lease, err := r.conf.Duration(leaseName, time.Second)
	if err != nil || lease < minLease || lease > maxLease {
		r.keep(r.conf.Refuse(leaseName, "it must be 1s to 10m, as in 60s"))
	}
	switch r.conf.String(generateName) {
	case generateEncrypted:
		return 0
	case generateImplied:
		return lease
	}
	r.keep(r.conf.Refuse(generateName, "it must be encrypted or implied"))
	return 0
}

// onlyForHSM switches off what a primary that is not an HSM does not need: it computes in this process, or is another
// KMS.
func (s *server) onlyForHSM(cfg *keyring.Config) {
	cfg.SelfCheck = ""
	if cfg.ImpliedLease > 0 {
		s.log.Warn("the first provider is not an HSM, so EDEKs are not implied", "property", generateName, "value",
			generateImplied, "cure", "remove the property")
		cfg.ImpliedLease = 0
	}
}

// impliedMetrics adds the metrics of EDEKs that are made without the HSM.
func (s *server) impliedMetrics(m *console.Metrics, p *hsm.Provider) {
	lease := s.set.ring.ImpliedLease
	if lease == 0 {
		return
	}
	m.Counter("claviger_edeks_implied_total", "EDEKs that were made without the HSM, under a lease of their key "+
		"version.",
		func() float64 { return float64(s.ring.Implied()) })
	m.Gauge("claviger_hsm_leases", "Key versions in use that have a lease: the HSM proved their key a short time ago.",
		func() float64 { return float64(p.Leases(lease).Held) })
	m.Gauge("claviger_hsm_lease_oldest_seconds", "Age of the oldest of these leases; they end after "+leaseName+".",
		func() float64 { return p.Leases(lease).Oldest.Seconds() })
}

// impliedCheck says which key versions have no lease, or a lease that is not renewed.
func (s *server) impliedCheck(p *hsm.Provider) []console.Check {
	lease := s.set.ring.ImpliedLease
	if lease == 0 {
		return nil
	}
	return []console.Check{{Name: "leases of keys", Informational: true,
		Run: func(context.Context) error { return p.CheckLeases(lease) }}}
}
