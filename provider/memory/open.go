// Package memory is a provider that keeps its keys in the process's memory, for tests and demos. Close wipes the keys.
package memory

import (
	"context"
	"sync"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// Config is the configuration of a memory provider. With the zero value the provider returns its material, accepts
// given material, and numbers its versions as the HSM provider does: it never uses a number twice for a name.
type Config struct {
	// URI names the provider in messages; empty means "memory:".
	URI string
	// SequentialIDs is true if versions are key@0, key@1, ... as in a Java keystore. A new key with the name of a
	// deleted key also begins with 0.
	SequentialIDs bool
	// OpaqueIDs is true if versions have random ids, as in a Key Trustee KMS.
	OpaqueIDs bool
	// SoftDelete is true if Delete keeps a key until it is purged.
	SoftDelete bool
	// Sealed is true if the provider neither returns nor accepts material, as an HSM.
	Sealed bool
}

// Provider is a provider.Provider, a BlockEncrypter and an Importer.
type Provider struct {
	cfg Config

	importing sync.Mutex // one import at a time; taken before mu

	mu         sync.RWMutex
	closed     bool
	keys       map[string]*key
	versions   map[string]*version // by full name, with those of unfinished imports
	unfinished map[string]*key     // keys of unfinished imports, by name
	deleted    []*key              // soft-deleted, in the order of their deletion
	next       map[string]int      // next number of a version, by key name; kept after Delete
}

type key struct {
	meta     claviger.Metadata
	versions []*version // oldest first
	since    time.Time  // time of its deletion
}

type version struct {
	of       *key
	name     string
	bits     int
	material secret.Bytes
	visible  bool // false before the import of its key is committed, and while its key is deleted
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
	return &Provider{cfg: cfg, keys: map[string]*key{}, versions: map[string]*version{}, unfinished: map[string]*key{},
		next: map[string]int{}}
}

// Scheme is the registry's entry for URIs "memory:".
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
	clear(p.unfinished)
	p.deleted = nil
	return nil
}

// ready fails if the provider is closed or ctx is done. Every method calls it first, with p.mu held.
func (p *Provider) ready(ctx context.Context, op, about string) error {
	if p.closed {
		return claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, about, err)
	}
	return nil
}

// Check fails only after Close.
func (p *Provider) Check(ctx context.Context) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.ready(ctx, "memory.Check", "")
}

// Objects returns the number of key versions, including those of unfinished imports.
func (p *Provider) Objects() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.versions)
}
