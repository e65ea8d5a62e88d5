package hsm

import (
	"context"
	"testing"
)

// Look is what a server does once an hour.
func (p *Provider) SurveyNow(ctx context.Context) error { return p.surveyToken(ctx) }

// Watch is one round of what a server does every 30 seconds.
func (p *Provider) Watch(ctx context.Context) error {
	err := p.checkFit(ctx, nextKeys)
	p.retryRefused(ctx)
	return err
}

// SetManyNames has steps take their sample from remembered names from n names on.
func SetManyNames(t *testing.T, n int) {
	was := manyNames
	manyNames = n
	t.Cleanup(func() { manyNames = was })
}
