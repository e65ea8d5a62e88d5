package kms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"claviger/console"
	"claviger/metastore"
	"claviger/provider/hsm"
	"claviger/provider/keytrustee"
)

// fitProbeHolds is the same of a look whether token and metastore fit, which reads some
// objects of the token.
const fitProbeHolds = 5 * time.Second

// checks are the conditions of readiness.
func (s *server) checks() []console.Check {
	checks := []console.Check{
		{Name: "started", Run: func(context.Context) error {
			if why := *s.waiting.Load(); why != "" {
				return errors.New(why)
			}
			return nil
		}},
		s.providerCheck(),
		// The rules that were loaded before are in force, so the node can serve.
		{Name: "acls", Informational: true, Run: func(context.Context) error { return s.policy.Status().Err }},
		{Name: "configuration", Informational: true, Run: func(context.Context) error { return s.auth.site.Err() }},
		{Name: "classes of requests", Informational: true, Run: func(context.Context) error { return s.lanes.Full() }},
		{Name: "waits for sources", Informational: true,
			Run: func(context.Context) error { return s.ring.CheckSourceWaiting() }},
		{Name: "delegation tokens", Informational: true,
			Run: func(context.Context) error { return s.auth.tokens.Full() }},
		// A node without its directory serves by the groups that it knows.
		{Name: "groups", Informational: true, Run: func(context.Context) error { return s.auth.groups.Stats().Err }},
		{Name: "certificates", Informational: true, Run: s.svc.checkCertificates},
		s.secrets.Check(),
	}
	checks = append(checks, s.auth.checks...)
	checks = append(checks, s.trail.checks()...)
	checks = append(checks, s.storeChecks()...)
	checks = append(checks, s.agreementCheck()...)
	checks = append(checks, s.clocks.checks()...)
	if p, ok := s.svc.Primary.(*hsm.Provider); ok {
		checks = append(checks,
			// The rest of its keys it serves, and what it refuses others may serve: so it stays
			// in service. But somebody must see to it, and no key should be made on such a token.
			console.Check{Name: "keys in the HSM", For: []console.Purpose{console.Write}, Run: p.CheckKeys},
			console.Check{Name: "HSM takes new keys", For: []console.Purpose{console.Write}, Run: p.CheckWrites,
				Last: func() (console.Observation, bool) {
					last, ok := p.LastWrite()
					return console.Observation(last), ok
				}},
			console.Check{Name: "token and metastore fit", For: []console.Purpose{console.Write}, Run: p.CheckFit,
				Holds: fitProbeHolds},
			console.Check{Name: "current keys in the HSM", For: []console.Purpose{console.Generate},
				Run: p.CheckCurrent},
			console.Check{Name: "any keys in the HSM", For: []console.Purpose{console.Decrypt}, Run: p.CheckAny},
			console.Check{Name: "keys unknown to the metastore", Informational: true, Run: p.CheckUnknown},
			console.Check{Name: "searches of the HSM", Informational: true, Run: p.CheckSearches},
			console.Check{Name: "encryptions", Informational: true, Run: p.CheckEncryptions})
	}
	if p, ok := s.svc.Primary.(*keytrustee.Provider); ok {
		checks = append(checks, console.Check{Name: "Key Trustee Server takes changes",
			For: []console.Purpose{console.Write}, Run: p.CheckWrites,
			Last: func() (console.Observation, bool) {
				last, ok := p.LastWrite()
				return console.Observation(last), ok
			}},
			// What it has opens as before; new EDEKs should not depend on a key that may be lost.
			console.Check{Name: "private key in its folder", For: []console.Purpose{console.Generate, console.Write},
				Run: p.CheckPlace})
	}
	checks = append(checks, s.shared.checks...)
	for i, src := range s.ring.Sources() {
		check := console.Check{Name: "source " + src.URI, Anonymous: fmt.Sprintf("source %d", i+1), Informational: true,
			Run: func(ctx context.Context) error { return s.ring.CheckSource(ctx, i) }}
		// Requests see what was read of a keystore file, and not that it is damaged since.
		if _, inMemory := s.svc.Sources[i].Provider.(keystoreFile); !inMemory {
			check.Last = func() (console.Observation, bool) {
				call := s.ring.Sources()[i].LastCall
				if call == nil {
					return console.Observation{}, false
				}
				return console.Observation(*call), true
			}
		}
		checks = append(checks, check)
	}
	if s.svc.Store != nil {
		checks = append(checks, console.Check{Name: "sources of migrations", Informational: true,
			Run: s.checkMigrations},
			console.Check{Name: "uses of sources", Informational: true, Run: s.ring.CheckUses},
			console.Check{Name: "versions that are two keys", Informational: true, Run: s.ring.CheckConflicts},
			console.Check{Name: "rolls at the sources", Informational: true, Run: s.ring.CheckRolled})
	}
	if len(s.ring.Sources()) > 0 {
		checks = append(checks, console.Check{Name: "names at the sources", Informational: true,
			Run: s.ring.CheckNames})
	}
	return checks
}

// providerCheck tells how the primary does. Of an HSM requests tell it.
func (s *server) providerCheck() console.Check {
	check := console.Check{Name: "provider", Run: s.ring.Health}
	if p, ok := s.svc.Primary.(*hsm.Provider); ok {
		check.Last = func() (console.Observation, bool) {
			last, ok := p.Last()
			return console.Observation(last), ok
		}
	}
	return check
}

// storeChecks tell what the metastore is good for. Where nodes share it, what a node has
// used is served from memory for a while without it.
func (s *server) storeChecks() []console.Check {
	store := s.svc.Store
	if store == nil {
		return nil
	}
	seen := func(last func() (metastore.Seen, bool)) func() (console.Observation, bool) {
		return func() (console.Observation, bool) {
			o, ok := last()
			return console.Observation(o), ok
		}
	}
	reads := console.Check{Name: "metastore", Run: store.Check}
	if s.svc.sharedKeys() != nil {
		reads.For = []console.Purpose{console.Generate, console.Write}
	}
	checks := []console.Check{reads}
	if w, ok := store.(metastore.Watched); ok {
		checks[0].Last = seen(w.LastRead)
		checks = append(checks, console.Check{Name: "metastore takes changes", For: []console.Purpose{console.Write},
			Last: seen(w.LastWrite), Run: w.CheckWrites, Holds: console.WriteProbeLife})
	}
	if s.svc.sharedKeys() != nil && s.set.ring.CacheEnable {
		checks = append(checks, console.Check{Name: "metastore lease", For: []console.Purpose{console.Decrypt},
			Run: func(ctx context.Context) error {
				cannot := s.ring.OpensFromMemory()
				if cannot == nil {
					return nil
				}
				if err := store.Check(ctx); err != nil { // it is asked for each request now
					return fmt.Errorf("%w: %w", cannot, err)
				}
				return nil
			}})
	} else if s.svc.sharedKeys() != nil {
		checks[0].For = nil // without caches each request asks it
	}
	if r, ok := store.(interface {
		Replication(ctx context.Context) error
	}); ok {
		checks = append(checks, console.Check{Name: "metastore replication", Informational: true, Run: r.Replication,
			Holds: console.WriteProbeLife})
	}
	return checks
}
