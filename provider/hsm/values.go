package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"golang.org/x/sync/errgroup"

	"claviger"
)

// A token may hold an object for each version, and yet the wrong keys: then it was restored from the backup of another
// token, or its files were exchanged. Only the check values show that.

const (
	// stepValues is how many check values a check compares before a key is made. Each
	// comparison makes two calls of the HSM.
	stepValues = 3
	// watchValues is the same for a server's periodic check.
	watchValues = 16
)

// values is the result of a comparison of check values.
type values struct {
	wrong    []string // versions whose objects on the token are other keys
	compared int      // versions that the token holds, and that were compared
	unknown  int      // versions of the sample that could not be compared
}

// mostWrong reports whether most versions of a comparison have wrong check values, or are missing on the token.
func (v *values) mostWrong(h *Holdings) bool {
	return len(v.wrong) > 0 && h.Versions > 0 && v.compared > 0 &&
		// The versions that the token holds are wrong in the proportion in which the compared ones are.
		2*(len(h.Lost)*v.compared+(h.Versions-len(h.Lost))*len(v.wrong)) > h.Versions*v.compared
}

// compareValues compares the check values of a sample of versions that the token holds according to h.
func (p *Provider) compareValues(ctx context.Context, h *Holdings) (found values, err error) {
	names, err := p.store.Names(ctx)
	if err != nil {
		return found, err
	}
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] }) //nolint:gosec // a sample
	keys, err := p.store.Get(ctx, names[:min(verifyAtStart, len(names))]...)
	if err != nil {
		return found, err
	}
	var sample []string
	for _, k := range keys {
		if k == nil { // deleted meanwhile
			continue
		}
		for _, v := range k.List {
			name := claviger.VersionName(k.Name, v.ID)
			if _, lost := slices.BinarySearch(h.Lost, name); lost || slices.Contains(h.ids, v.Object) {
				continue
			}
			sample = append(sample, name)
		}
	}
	rand.Shuffle(len(sample), func(i, j int) { sample[i], sample[j] = sample[j], sample[i] }) //nolint:gosec // as above
	sample = sample[:min(verifyAtStart, len(sample))]
	results := make([]valueResult, len(sample))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(verifyConcurrency)
	for i, name := range sample {
		g.Go(func() (err error) {
			results[i], err = p.testValue(ctx, name)
			return err
		})
	}
	err = g.Wait()
	for i, name := range sample {
		switch results[i] {
		case valueRight:
			found.compared++
		case valueWrong:
			found.compared++
			found.wrong = append(found.wrong, name)
		case valueUnknown:
			found.unknown++
		}
	}
	slices.Sort(found.wrong)
	return found, err
}

// valueResult is the result of the comparison of one check value.
type valueResult int

const (
	valueUnknown valueResult = iota // the token did not encrypt with the key, or the version was deleted meanwhile
	valueRight
	valueWrong
)

// valueDiffers reports whether a version's check value was right in the last comparison, and is wrong now, or the other
// way round.
func (p *Provider) valueDiffers(ctx context.Context, version string) (bool, error) {
	_, wasWrong := p.fit.wrong.Load(version)
	result, err := p.testValue(ctx, version)
	return err == nil && result != valueUnknown && (result == valueWrong) != wasWrong, err
}

// testValue compares a version's check value. It calls the token each time: a value that was right before may be
// wrong now. If the token does not encrypt with the key, that says nothing about its value.
func (p *Provider) testValue(ctx context.Context, version string) (valueResult, error) {
	e, err := p.entry(ctx, version)
	if claviger.Is(err, claviger.VersionNotFound) { // deleted meanwhile
		return valueUnknown, nil
	}
	if err != nil {
		return valueUnknown, err
	}
	got, err := p.checkValue(ctx, e)
	switch {
	case err == nil && bytes.Equal(got, e.check):
		p.fit.wrong.Delete(version)
		return valueRight, nil
	case err == nil:
		_ = p.refuse(e, got) // the caller reports it
	case !errors.Is(err, errMismatch):
		return valueUnknown, ctx.Err()
	}
	p.fit.wrong.Store(version, struct{}{})
	return valueWrong, nil
}

// checkCompared returns an error if most versions of a comparison could not be compared. After a misfit such a
// comparison does not show that token and store fit together again.
func (v *values) checkCompared() error {
	if v.unknown <= v.compared {
		return nil
	}
	return claviger.Errorf("hsm.fits", claviger.Unavailable, "", "the HSM token and the metastore did not fit "+
		"together, and whether they do now is not known: the token did not encrypt with %d of the %d keys that were "+
		"to be compared", v.unknown, v.unknown+v.compared)
}

// wrongValues returns the misfit error for a token whose keys have wrong check values.
func (p *Provider) wrongValues(v *values) error {
	return p.misfit("token %s holds other keys under the names of key versions of metastore %s: of %d key versions "+
		"that were compared, %d have another check value than the metastore says: %s; %s",
		tokenName(p.tok.Info()), p.store.URI(), v.compared, len(v.wrong), summarize(v.wrong), p.cureWrong())
}

// cureWrong says what an operator can do about keys with wrong check values.
func (p *Provider) cureWrong() string {
	return fmt.Sprintf("restore the token or the metastore from the backup that fits the other, or name the right "+
		"token in the keystore file, and restart the server; if the right keys are lost for good, destroy these "+
		"objects by the HSM's own tool; then %s gives the versions up by name", p.adoptCommandLine("--rebind"))
}
