package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"claviger/console"
	"claviger/metastore"
	"claviger/provider/hsm"
	"claviger/provider/keytrustee"
)

// fitProbeHolds is how long readiness reuses a successful comparison of token and
// metastore, which reads some objects of the token.
const fitProbeHolds = 5 * time.Second

// checks returns the checks of readiness.
func (s *server) checks() []console.Check {
	checks := s.serverChecks()
	checks = append(checks, s.tlsKeyChecks()...)
	checks = append(checks, s.auth.checks...)
	checks = append(checks, s.trail.checks()...)
	checks = append(checks, s.storeChecks()...)
	checks = append(checks, s.agreementCheck()...)
	checks = append(checks, s.clocks.checks()...)
	checks = append(checks, s.primaryChecks()...)
	checks = append(checks, s.shared.checks...)
	checks = append(checks, s.sourceChecks()...)
	return append(checks, s.migrationChecks()...)
}

// serverChecks are about the server itself and its files.
func (s *server) serverChecks() []console.Check {
	return []console.Check{
		{Name: "started", Run: func(context.Context) error {
			if why := *s.waiting.Load(); why != "" {
				return errors.New(why)
			}
			return nil
		}},
		s.providerCheck(),
		// The rules that were loaded before stay in force, so the node can serve.
		{Name: "acls", Informational: true, Run: func(context.Context) error { return s.policy.Status().Err }},
		{Name: "configuration", Informational: true, Run: func(context.Context) error { return s.auth.site.Err() }},
		{Name: "classes of requests", Informational: true,
			Run: func(context.Context) error { return s.limiters.Full() }},
		{Name: "waits for sources", Informational: true,
			Run: func(context.Context) error { return s.ring.CheckSourceWaiting() }},
		{Name: "delegation tokens", Informational: true,
			Run: func(context.Context) error { return s.auth.tokens.Full() }},
		// If the directory does not answer, the node serves with the groups that it remembers.
		{Name: "groups", Informational: true, Run: func(context.Context) error { return s.auth.groups.Stats().Err }},
		{Name: "certificates", Informational: true, Run: s.svc.checkCertificates},
		s.secrets.Check(),
	}
}

// primaryChecks are about a primary that is an HSM or a Key Trustee Server.
func (s *server) primaryChecks() []console.Check {
	switch p := s.svc.Primary.(type) {
	case *hsm.Provider:
		return slices.Concat(s.impliedCheck(p), standbyCheck(p), []console.Check{
			// A node that lacks some keys serves the other keys, and another node may have the missing
			// keys, so the node stays in service. But an operator must repair it, and no key should
			// be made on such a token.
			{Name: "keys in the HSM", For: []console.Purpose{console.Write}, Run: p.CheckKeys},
			{Name: "HSM takes new keys", For: []console.Purpose{console.Write}, Run: p.CheckWrites,
				Last: func() (console.Observation, bool) {
					last, ok := p.LastWrite()
					return console.Observation(last), ok
				}},
			{Name: "token and metastore fit", For: []console.Purpose{console.Write}, Run: p.CheckFit,
				Holds: fitProbeHolds, Last: arrival(p)},
			// No key should be made on an HSM that computes wrong. Decrypts are not refused: a client can
			// repeat them, and another node may have the same HSM.
			{Name: "results of the HSM", For: []console.Purpose{console.Write}, Run: s.ring.CheckResults},
			{Name: "current keys in the HSM", For: []console.Purpose{console.Generate}, Run: p.CheckCurrent},
			{Name: "any keys in the HSM", For: []console.Purpose{console.Decrypt}, Run: p.CheckAny},
			{Name: "keys unknown to the metastore", Informational: true, Run: p.CheckUnknown},
			{Name: "searches of the HSM", Informational: true, Run: p.CheckSearches},
			{Name: "encryptions", Informational: true, Run: p.CheckEncryptions},
		})
	case *keytrustee.Provider:
		return []console.Check{
			{Name: "Key Trustee Server takes changes", For: []console.Purpose{console.Write}, Run: p.CheckWrites,
				Last: func() (console.Observation, bool) {
					last, ok := p.LastWrite()
					return console.Observation(last), ok
				}},
			// Existing EDEKs can be decrypted as before, but new ones should not depend on a private
			// key that may be lost.
			{Name: "private key in its folder", For: []console.Purpose{console.Generate, console.Write},
				Run: p.CheckPlace},
		}
	}
	return nil
}

// standbyCheck checks the standby token. While it is in use, the node serves what needs no new key.
func standbyCheck(p *hsm.Provider) []console.Check {
	if !p.HasStandby() {
		return nil
	}
	return []console.Check{{Name: "standby token", Informational: true, Run: p.CheckStandby}}
}

// sourceChecks returns one check for each source.
func (s *server) sourceChecks() (checks []console.Check) {
	for i, src := range s.ring.Sources() {
		check := console.Check{Name: "source " + src.URI, Anonymous: fmt.Sprintf("source %d", i+1), Informational: true,
			Run: func(ctx context.Context) error { return s.ring.CheckSource(ctx, i) }}
		// Requests use a keystore file's content in memory, and do not notice that the file was
		// damaged later.
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
	return checks
}

// migrationChecks are about migrated keys, and about names at the sources.
func (s *server) migrationChecks() (checks []console.Check) {
	if s.svc.Store != nil {
		checks = append(checks, console.Check{Name: "sources of migrations", Informational: true,
			Run: s.checkMigrations},
			console.Check{Name: "uses of sources", Informational: true, Run: s.ring.CheckUses},
			console.Check{Name: "version names of two keys", Informational: true, Run: s.ring.CheckConflicts},
			console.Check{Name: "rolls at the sources", Informational: true, Run: s.ring.CheckRolled})
	}
	if len(s.ring.Sources()) > 0 {
		checks = append(checks, console.Check{Name: "names at the sources", Informational: true,
			Run: s.ring.CheckNames})
	}
	return checks
}

// providerCheck checks the primary. For an HSM the result of the last request counts.
func (s *server) providerCheck() console.Check {
	check := console.Check{Name: "provider", Run: s.ring.Health}
	if p, ok := s.svc.Primary.(*hsm.Provider); ok {
		check.Last = func() (console.Observation, bool) {
			last, ok := p.Last()
			if came, late := p.Arrival(); late && came.At.After(last.At) {
				last, ok = came, true
			}
			return console.Observation(last), ok
		}
	}
	return check
}

// arrival returns the arrival of a token that came after the start as an observation.
// Without it, readiness would repeat the last failure for a second.
func arrival(p *hsm.Provider) func() (console.Observation, bool) {
	return func() (console.Observation, bool) {
		came, ok := p.Arrival()
		return console.Observation(came), ok
	}
}

// storeChecks check the metastore. If nodes share it, a node can serve recently used
// keys from memory for a while without the metastore.
func (s *server) storeChecks() []console.Check {
	store := s.svc.Store
	if store == nil {
		return nil
	}
	observation := func(last func() (metastore.Seen, bool)) func() (console.Observation, bool) {
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
		checks[0].Last = observation(w.LastRead)
		checks = append(checks, console.Check{Name: "metastore takes changes", For: []console.Purpose{console.Write},
			Last: observation(w.LastWrite), Run: w.CheckWrites, Holds: console.WriteProbeLife})
	}
	if s.svc.sharedKeys() != nil && s.set.ring.CacheEnable {
		checks = append(checks, console.Check{Name: "metastore lease", For: []console.Purpose{console.Decrypt},
			Run: func(ctx context.Context) error {
				notFromMemory := s.ring.OpensFromMemory()
				if notFromMemory == nil {
					return nil
				}
				if err := store.Check(ctx); err != nil { // without memory each request needs the store
					return fmt.Errorf("%w: %w", notFromMemory, err)
				}
				return nil
			}})
	} else if s.svc.sharedKeys() != nil {
		checks[0].For = nil // without caches each request needs the store
	}
	if r, ok := store.(interface {
		Replication(ctx context.Context) error
	}); ok {
		checks = append(checks, console.Check{Name: "metastore replication", Informational: true, Run: r.Replication,
			Holds: console.WriteProbeLife})
	}
	return checks
}
