package hsm

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// sampleDiffers compares a few keys. It reports whether one of them is in another state than the last comparison found:
// the token has newly lost a version, or has a lost version again, or a check value is newly wrong, or right again.
func (p *Provider) sampleDiffers(ctx context.Context, scope sampleScope) (bool, error) {
	keys, err := p.sampleKeys(ctx, scope)
	if err != nil {
		return false, err
	}
	lost := p.LastHoldings().Lost
	values := watchValues // the number of check values that are still to be compared
	if scope == randomKeys {
		values = stepValues
	}
	for _, k := range keys {
		if k == nil || len(k.List) == 0 {
			continue
		}
		sampled := []metastore.Version{k.List[len(k.List)-1]}
		if older := k.List[:len(k.List)-1]; scope == nextKeys && len(older) > 0 {
			sampled = append(sampled, older[rand.IntN(len(older))]) //nolint:gosec // a sample, no secret
		}
		for _, v := range sampled {
			onToken, err := p.tokenHas(ctx, &k.Metadata, v)
			if err != nil {
				return false, err
			}
			if _, known := slices.BinarySearch(lost, claviger.VersionName(k.Name, v.ID)); onToken == known {
				given, err := p.givenUp(ctx)
				if err != nil || !given[v.Object] {
					return err == nil, err
				}
			}
			if values--; onToken && values >= 0 {
				differs, err := p.valueDiffers(ctx, claviger.VersionName(k.Name, v.ID))
				if err != nil || differs {
					return differs, err
				}
			}
		}
	}
	return false, nil
}

// manyNames limits how long a step takes. With manyNames names or more, a step takes its sample from the names that the
// server's last periodic check read. It is a variable for tests.
var manyNames = 1000

// sampleKeys reads the keys of a sample. If there are many names, sampleKeys uses the names that the server's last
// periodic check read, if any key of the sample still exists: a step must not take longer because other users have many
// keys.
func (p *Provider) sampleKeys(ctx context.Context, scope sampleScope) ([]*metastore.Key, error) {
	f := &p.fit
	f.mu.Lock()
	names, age := slices.Clone(f.watchNames), time.Since(f.namesRead)
	f.mu.Unlock()
	if scope == randomKeys && age < 2*watchPause && len(names) >= manyNames {
		keys, err := p.store.Get(ctx, p.sampleNames(names, scope)...)
		if err != nil || slices.ContainsFunc(keys, func(k *metastore.Key) bool { return k != nil }) {
			return keys, err
		}
	}
	names, err := p.store.Names(ctx)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	f.mu.Lock()
	f.watchNames, f.namesRead = slices.Clone(names), time.Now()
	f.mu.Unlock()
	return p.store.Get(ctx, p.sampleNames(names, scope)...)
}

// sampleNames returns a few of the names: for the server's periodic check the next names in turn and those that have
// lost a version, otherwise random names.
func (p *Provider) sampleNames(names []string, scope sampleScope) []string {
	if scope == randomKeys {
		// nolint:gosec // a sample, no secret
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		return names[:min(stepSample, len(names))]
	}
	n := min(watchSample, len(names))
	list := make([]string, 0, n)
	for i := range n {
		list = append(list, names[(p.fit.watchNext+i)%len(names)])
	}
	p.fit.watchNext = (p.fit.watchNext + n) % len(names)
	for _, version := range p.LastHoldings().Lost {
		if key, ok := claviger.KeyOfVersion(version); ok && len(list) < 2*watchSample && !slices.Contains(list, key) {
			list = append(list, key)
		}
	}
	return list
}

// tokenHas reports whether the token has the object of a version.
func (p *Provider) tokenHas(ctx context.Context, m *claviger.Metadata, v metastore.Version) (bool, error) {
	e, err := newEntry(m, v)
	if err != nil {
		return false, err
	}
	found, err := p.tok.FindLabel(ctx, e.name)
	return slices.ContainsFunc(found, func(k pkcs11.KeyInfo) bool { return bytes.Equal(k.ID, e.id) }), err
}
