package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"
)

// Latency says how long calls to the token took, one after another.
type Latency struct {
	EDEKs  int // in each call
	Calls  int
	Median time.Duration
	P99    time.Duration
	PerSec float64 // EDEKs each second
}

// MeasureLatency makes that many calls to the token, one after another. Each call encrypts the counter blocks of that
// many EDEKs with the newest version of some key. It fails if there is no key.
func (p *Provider) MeasureLatency(ctx context.Context, edeks, calls int) (Latency, error) {
	version, err := p.someVersion(ctx)
	if err != nil {
		return Latency{}, err
	}
	const edekBytes = 32 // of a 256-bit DEK: two counter blocks
	blocks := make([]byte, edeks*edekBytes)
	_, _ = rand.Read(blocks) // crypto/rand never fails
	times := make([]time.Duration, calls)
	var total time.Duration
	for i := range times {
		began := time.Now()
		if err := p.EncryptBlocks(ctx, version, blocks); err != nil {
			return Latency{}, err
		}
		times[i] = time.Since(began)
		total += times[i]
	}
	slices.Sort(times)
	return Latency{EDEKs: edeks, Calls: calls, Median: times[calls/2], P99: times[calls*99/100],
		PerSec: float64(edeks*calls) / total.Seconds()}, nil
}

func (p *Provider) someVersion(ctx context.Context) (string, error) {
	names, err := p.Keys(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range names {
		if v, err := p.Current(ctx, n); err == nil {
			return v.Name, nil
		}
	}
	return "", errors.New("there is no key yet to measure with; create one: " +
		"hadoop key create bench -provider kms://...")
}
