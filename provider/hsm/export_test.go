package hsm

import "context"

// Watch is one round of what a server does every 30 seconds.
func (p *Provider) Watch(ctx context.Context) error {
	err := p.fits(ctx, nextKeys)
	p.tryRefused(ctx)
	return err
}
