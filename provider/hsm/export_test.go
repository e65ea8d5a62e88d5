package hsm

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"claviger/metastore"
)

// ErrMismatch is the error for a check value that differs.
var ErrMismatch = errMismatch

// Token has the methods of *pkcs11.Token that a provider uses.
type Token = token

// OpenOn opens a provider for a server on a token that a test makes.
func OpenOn(ctx context.Context, tok Token, store metastore.Store, log *slog.Logger) (*Provider, error) {
	o := opener{Options: Options{Access: Serve}, uri: "pkcs11:", searches: defaultSearches, log: log}
	return o.open(ctx, tok, store)
}

// SurveyNow surveys the token, as a server does once an hour.
func (p *Provider) SurveyNow(ctx context.Context) error { return p.surveyToken(ctx) }

// Watch makes one periodic check, as a server does every 30 seconds.
func (p *Provider) Watch(ctx context.Context) error {
	err := p.checkFit(ctx, nextKeys)
	p.retryRefused(ctx)
	return err
}

// CheckAll compares the whole store with the token, and the check values of a sample.
func (p *Provider) CheckAll(ctx context.Context) error { return p.checkFit(ctx, allKeys) }

// CheckNext is Watch without the versions that were refused.
func (p *Provider) CheckNext(ctx context.Context) error { return p.checkFit(ctx, nextKeys) }

// MostWrong is the judgement of a comparison. The token lacks lost of the versions. Of the versions that the token
// holds, compared were compared, and wrong of these are wrong.
func MostWrong(versions, lost, compared, wrong int) bool {
	v := values{compared: compared, wrong: make([]string, wrong)}
	return v.mostWrong(&Holdings{Versions: versions, Lost: make([]string, lost)})
}

// Assess assesses a comparison with these numbers of versions; see MostWrong.
func (p *Provider) Assess(ctx context.Context, bound, older bool, versions, lost, compared, wrong int) error {
	return p.assess(ctx, bound, older, &Holdings{Versions: versions, Lost: make([]string, lost)},
		&values{compared: compared, wrong: make([]string, wrong)})
}

// Sweep sweeps steps, as a server does every 30 seconds, after that time has passed.
func (p *Provider) Sweep(ctx context.Context, later time.Duration) error {
	return p.sweepSteps(ctx, time.Now().Add(later))
}

// Failing returns the number of versions that are probed.
func (p *Provider) Failing() int { return len(p.failing()) }

// SetFirstLimit sets the limit of the first attempt to open a token.
func SetFirstLimit(t *testing.T, limit time.Duration) {
	was := firstLimit
	firstLimit = limit
	t.Cleanup(func() { firstLimit = was })
}

// SetManyNames sets the number of names from which on steps take their sample from remembered names.
func SetManyNames(t *testing.T, n int) {
	was := manyNames
	manyNames = n
	t.Cleanup(func() { manyNames = was })
}

// NextPause returns the pause after an attempt to open a token that failed with err.
func NextPause(last time.Duration, err error) time.Duration { return nextPause(last, err) }

// SetWrong records that a version's check value was wrong in the last comparison, and WasWrong reports it.
func (p *Provider) SetWrong(version string) { p.fit.wrong.Store(version, struct{}{}) }

// WasWrong is explained at SetWrong.
func (p *Provider) WasWrong(version string) bool {
	_, wrong := p.fit.wrong.Load(version)
	return wrong
}

// Renewals returns the number of proofs of keys that are running for leases.
func (p *Provider) Renewals() int {
	p.renewals.mu.Lock()
	defer p.renewals.mu.Unlock()
	return p.renewals.running
}

// SetVerifyStall sets how long the verification at the start waits for the next right version.
func SetVerifyStall(t *testing.T, d time.Duration) {
	was := verifyStall
	verifyStall = d
	t.Cleanup(func() { verifyStall = was })
}

// CheckStep makes the check that comes before a key is made.
func (p *Provider) CheckStep(ctx context.Context) error { return p.checkFit(ctx, randomKeys) }

// HandleUnknown handles a start at which right versions were right, and one could not be verified because of err.
// serial is the recorded serial number of the token, "" if there is none.
func (p *Provider) HandleUnknown(ctx context.Context, serial string, right int, err error) error {
	return p.handleUnknown(ctx, recordedToken{serial: serial, known: serial != ""},
		&verification{right: right, unknown: []error{err}})
}

// ValueDiffers reports whether a check value is wrong and was right before, or the other way round.
func (p *Provider) ValueDiffers(ctx context.Context, version string) (bool, error) {
	return p.valueDiffers(ctx, version)
}
