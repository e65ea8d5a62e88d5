package keyring

import (
	"context"
	"time"

	"claviger"
	"claviger/eek"
)

// mismatchShown is how long CheckResults reports a mismatch. docs/monitoring/checks.md states it. An HSM that is rarely
// wrong stays visible until somebody has seen it, and a fault that is over ends by itself.
const mismatchShown = time.Hour

// CheckResults fails for an hour after the primary has encrypted one block to two different results, see SelfCheck.
func (r *Ring) CheckResults(context.Context) error {
	service, checks := r.primary.crypter.(*eek.Service)
	if !checks {
		return nil // another KMS opens and re-encrypts EDEKs
	}
	return mismatchError(service.Mismatch(), time.Now())
}

func mismatchError(m eek.Mismatch, now time.Time) error {
	if m.Count == 0 || now.Sub(m.At) >= mismatchShown {
		return nil
	}
	return claviger.Errorf("keyring.CheckResults", claviger.Unavailable, m.Version,
		"the HSM encrypted one block with one key to two different results at %s (%d times since the start); none of "+
			"them was used; if that comes again, take the HSM out of service, and set "+
			"claviger.hsm.self.check to twice", m.At.UTC().Format(time.RFC3339), m.Count)
}
