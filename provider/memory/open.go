// Package memory is a provider that keeps its keys in the process's memory, for tests and demos. Its keys are gone
// after Close.
package memory

import (
	"context"
	"sync"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// Config is the behaviour of a memory provider. With the zero value it shows its material, takes material, and
// numbers its versions as the HSM provider does: no number is used twice for a name.
type Config struct {
	// URI names the provider in messages; "memory:" where it is empty.
	URI string
	// SequentialIDs: versions are key@0, key@1, ... as a Java keystore's, also those
	// of a key that was made anew.
	SequentialIDs bool
	// OpaqueIDs: versions have random ids, as a Key Trustee KMS's.
	OpaqueIDs bool
	// SoftDelete: Delete keeps a key until it is purged.
	SoftDelete bool
	// Sealed: material is neither shown nor taken, as by an HSM.
	Sealed bool
}

// Provider is a provider.Provider, a BlockEncrypter and an Importer.
type Provider struct {
	cfg Config

	importing sync.Mutex // one import at a time; taken before mu

	mu       sync.RWMutex
	closed   bool
	keys     map[string]*key
	versions map[string]*version // by full name, half-made ones included
	half     map[string]*key     // imports that were begun, by key name
	deleted  []*key              // softly, longest deleted first
	next     map[string]int      // the next number of a version, by key name; stays when the key goes
}

type key struct {
	meta     claviger.Metadata
	versions []*version // oldest first
	since    time.Time  // of its deletion
}

type version struct {
	of       *key
	name     string
	bits     int
	material secret.Bytes
	visible  bool // false while the import that made it is not committed, and while its key is deleted
}

var (
	_ provider.Provider       = (*Provider)(nil)
	_ provider.BlockEncrypter = (*Provider)(nil)
	_ provider.Pinned         = (*Provider)(nil)
	_ provider.Conditional    = (*Provider)(nil)
	_ provider.Importer       = (*Provider)(nil)
	_ provider.Health         = (*Provider)(nil)
	_ provider.SoftDeleter    = (*Provider)(nil)
)

// New makes an empty provider.
func New(cfg Config) *Provider {
	if cfg.URI == "" {
		cfg.URI = "memory:"
	}
	return &Provider{cfg: cfg, keys: map[string]*key{}, versions: map[string]*version{}, half: map[string]*key{},
		next: map[string]int{}}
}

// Scheme is the registry's line for URIs "memory:".
func Scheme() provider.Scheme {
	open := func(_ context.Context, uri string, _ provider.Env) (provider.Provider, error) {
		return New(Config{URI: uri}), nil
	}
	return provider.Scheme{Name: "memory", Open: open}
}

// URI names the provider.
func (p *Provider) URI() string { return p.cfg.URI }

// Close wipes all keys.
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.versions {
		v.material.Wipe()
	}
	for _, k := range p.deleted {
		p.wipe(k)
	}
	p.closed = true
	clear(p.keys)
	clear(p.versions)
	clear(p.half)
	p.deleted = nil
	return nil
}

// ready is the first check of every method. Needs the lock.
func (p *Provider) ready(ctx context.Context, op, about string) error {
	if p.closed {
		return claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, about, err)
	}
	return nil
}

// Check never finds anything wrong before Close.
func (p *Provider) Check(ctx context.Context) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.ready(ctx, "memory.Check", "")
}

// Objects returns the number of key versions, with those of imports that were begun and not finished.
func (p *Provider) Objects() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.versions)
}
