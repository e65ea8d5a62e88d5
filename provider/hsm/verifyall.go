package hsm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
)

// verifyStall limits the verification at the start, because a call with a key may hang for ever: if no further version
// was found right for this time after a right version, the verification ends. Tests shorten the time.
var verifyStall = 5 * time.Second

// verification is the result of the verification at the start.
type verification struct {
	mu      sync.Mutex
	right   int
	wrong   []error // of versions that are missing on the token or differ there
	unknown []error // of versions with which the token's calls failed, or did not return
}

// verifyAll verifies versions. It fails if the store does not answer.
func (p *Provider) verifyAll(parent context.Context, versions []string) (*verification, error) {
	found := new(verification)
	g, ctx := errgroup.WithContext(parent)
	g.SetLimit(verifyConcurrency)
	calls, stop := context.WithCancel(ctx)
	defer stop()
	var stalled *time.Timer
	defer func() {
		if stalled != nil {
			stalled.Stop()
		}
	}()
	for _, version := range versions {
		g.Go(func() error {
			e, err := p.entry(ctx, version)
			if claviger.Is(err, claviger.VersionNotFound) {
				return nil // deleted meanwhile
			}
			if err != nil {
				return err
			}
			err = p.verify(calls, e)
			if isUnusable(err) && claviger.Is(p.missingOnToken(ctx, "hsm.Open", e, err), claviger.VersionNotFound) {
				return nil // deleted meanwhile
			}
			found.mu.Lock()
			defer found.mu.Unlock()
			switch {
			case err == nil && stalled == nil:
				stalled = time.AfterFunc(verifyStall, stop)
				found.right++
			case err == nil:
				stalled.Reset(verifyStall)
				found.right++
			case isUnusable(err):
				found.wrong = append(found.wrong, err)
			default:
				found.unknown = append(found.unknown, fmt.Errorf("the key version %q could not be verified: %w",
					version, err))
			}
			return parent.Err()
		})
	}
	err := g.Wait()
	for _, list := range [][]error{found.wrong, found.unknown} {
		slices.SortFunc(list, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	}
	return found, err
}

// handleUnknown handles versions with which the token's calls failed or hung. One such key must stop neither the server
// of the other keys, nor the commands that an operator needs then. But if no version was right, the token is at fault.
// And if the token has another serial number than the recorded one, every version must be right.
func (p *Provider) handleUnknown(ctx context.Context, was recordedToken, found *verification) error {
	if len(found.unknown) == 0 {
		return nil
	}
	if found.right == 0 || was.known && was.serial != p.tok.Info().Serial {
		return found.unknown[0]
	}
	if err := p.tok.Ping(ctx); err != nil {
		return err
	}
	for _, err := range found.unknown {
		p.log.Warn("calls with a key fail on the token, and other keys work; the key is verified before its first use",
			"err", err)
	}
	return nil
}
