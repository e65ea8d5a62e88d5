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

// sampleDiffers tells whether a look at a few keys found another state than the last
// comparison: a version that the token lacks now, or a lost one that it has again.
func (p *Provider) sampleDiffers(ctx context.Context, much depth) (bool, error) {
	keys, err := p.someKeys(ctx, much)
	if err != nil {
		return false, err
	}
	lost := p.Holds().Lost
	for _, k := range keys {
		if k == nil || len(k.List) == 0 {
			continue
		}
		looked := []metastore.Version{k.List[len(k.List)-1]}
		if older := k.List[:len(k.List)-1]; much == nextKeys && len(older) > 0 {
			looked = append(looked, older[rand.IntN(len(older))]) //nolint:gosec // a sample, no secret
		}
		for _, v := range looked {
			there, err := p.holds(ctx, &k.Metadata, v)
			if err != nil {
				return false, err
			}
			if _, known := slices.BinarySearch(lost, claviger.VersionName(k.Name, v.ID)); there == known {
				given, err := p.givenUp(ctx)
				if err != nil || !given[v.Object] {
					return err == nil, err
				}
			}
		}
	}
	return false, nil
}

// manyNames is from how many names on a step takes its sample from the names of the last
// look, and reads them not anew. It is a variable for tests.
var manyNames = 1000

// someKeys reads the keys of a sample. Where there are many names, those of the last look of
// the server itself are enough, if any of the sample is there still: a step must not take
// longer the more keys others have.
func (p *Provider) someKeys(ctx context.Context, much depth) ([]*metastore.Key, error) {
	f := &p.fit
	f.mu.Lock()
	names, age := slices.Clone(f.names), time.Since(f.named)
	f.mu.Unlock()
	if much == fewKeys && age < 2*watchPause && len(names) >= manyNames {
		keys, err := p.store.Get(ctx, p.sample(names, much)...)
		if err != nil || slices.ContainsFunc(keys, func(k *metastore.Key) bool { return k != nil }) {
			return keys, err
		}
	}
	names, err := p.store.Names(ctx)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	f.mu.Lock()
	f.names, f.named = slices.Clone(names), time.Now()
	f.mu.Unlock()
	return p.store.Get(ctx, p.sample(names, much)...)
}

// sample returns a few of the names: for the server's own look the next of them and those
// that have lost a version, else any.
func (p *Provider) sample(names []string, much depth) []string {
	if much == fewKeys {
		// nolint:gosec // a sample, no secret
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		return names[:min(sampled, len(names))]
	}
	n := min(watched, len(names))
	list := make([]string, 0, n)
	for i := range n {
		list = append(list, names[(p.fit.next+i)%len(names)])
	}
	p.fit.next = (p.fit.next + n) % len(names)
	for _, version := range p.Holds().Lost {
		if key, ok := claviger.KeyOfVersion(version); ok && len(list) < 2*watched && !slices.Contains(list, key) {
			list = append(list, key)
		}
	}
	return list
}

// holds tells whether the token has the object of a version.
func (p *Provider) holds(ctx context.Context, m *claviger.Metadata, v metastore.Version) (bool, error) {
	e, err := newEntry(m, v)
	if err != nil {
		return false, err
	}
	found, err := p.tok.FindLabel(ctx, e.name)
	return slices.ContainsFunc(found, func(k pkcs11.KeyInfo) bool { return bytes.Equal(k.ID, e.id) }), err
}
