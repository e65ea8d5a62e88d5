package hsm

import (
	"context"
	"testing"
)

// Look is what a server does once an hour.
func (p *Provider) Look(ctx context.Context) error { return p.look(ctx) }

// Watch is one round of what a server does every 30 seconds.
func (p *Provider) Watch(ctx context.Context) error {
	err := p.fits(ctx, nextKeys)
	p.tryRefused(ctx)
	return err
}

// SetManyNames has steps take their sample from remembered names from n names on.
func SetManyNames(t *testing.T, n int) {
	was := manyNames
	manyNames = n
	t.Cleanup(func() { manyNames = was })
}
