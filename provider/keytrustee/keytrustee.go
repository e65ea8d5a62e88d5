// Package keytrustee is the provider of a Key Trustee KMS. The KMS makes EZ keys itself, encrypts
// them to its own OpenPGP key and deposits them at a Key Trustee Server, which can read none of
// them.
//
// A key is one deposit, labelled key/<name>, with the key's metadata and the uuids of its versions.
// Each version is another deposit, labelled version/<name>@<id>, with the material. A version
// counts from the moment when the key's deposit names it, and that deposit is only replaced by
// compare and set: if two hosts roll a key at the same time, neither loses its version. A deleted
// key is a deposit deleted/<name>/<id> in place of key/<name>.
//
// site.go reads kts-site.xml. open.go reads the identity, registers it, and compares the identities
// of an organization. material.go keeps material in memory and wipes it.
// the identities of an organization. material.go keeps material and wipes it.
package keytrustee

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/trustee"
)

const (
	// material of a version is kept for that long since it was fetched, unless the
	// configuration says otherwise: Hadoop's own hadoop.kms.cache.timeout.ms.
	defaultLife = 10 * time.Minute
	// parallel is how many deposits one call fetches at once.
	parallel = 5
	// changeTime bounds a Create or Roll, from the moment when its version is deposited. strayAge
	// is far more: a version that no key names by then will never be named.
	changeTime = 5 * time.Minute
	strayAge   = time.Hour
	// tries bounds how often a change is repeated after another host changed the key first.
	tries = 100
)

// Config is what a Provider is made of.
type Config struct {
	// URI names the provider in messages.
	URI string
	Box trustee.Box
	// Identity owns Box; every deposit is encrypted to it.
	Identity *trustee.Identity
	// SoftDelete: Delete keeps a key until it is purged.
	SoftDelete bool
	// MaterialLife is how long material stays in memory after it was fetched; 0 is 10 minutes.
	MaterialLife time.Duration
	Log          *slog.Logger
	Now          func() time.Time // time.Now where nil
	// Closer, if not nil, is called by Close.
	Closer func() error
	// memory remembers the newest change; nil for none.
	memory *memory
	// place is where the private key is; nil if it is not watched.
	place *place
}

// Provider is a provider.Provider, a BlockEncrypter and a SoftDeleter. It shows and
// takes material.
type Provider struct {
	cfg  Config
	kept *materials
	seen seen
	// written is cfg.Box.
	written *written
	closed  atomic.Bool
}

var (
	_ provider.Provider       = (*Provider)(nil)
	_ provider.BlockEncrypter = (*Provider)(nil)
	_ provider.Conditional    = (*Provider)(nil)
	_ provider.SoftDeleter    = (*Provider)(nil)
	_ provider.Health         = (*Provider)(nil)
)

// New makes a provider. It sends no request.
func New(cfg Config) *Provider {
	if cfg.MaterialLife <= 0 {
		cfg.MaterialLife = defaultLife
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	w := &written{Box: cfg.Box}
	cfg.Box = w
	return &Provider{cfg: cfg, kept: newMaterials(cfg.MaterialLife), written: w}
}

// URI names the provider.
func (p *Provider) URI() string { return p.cfg.URI }

// Close wipes all material.
func (p *Provider) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	p.kept.close()
	if p.cfg.Closer != nil {
		return p.cfg.Closer()
	}
	return nil
}

// ready is called first by every method.
func (p *Provider) ready(ctx context.Context, op, about string) error {
	if p.closed.Load() {
		return claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, about, err)
	}
	return nil
}

// failed translates the kind of a box's error into this contract: the trustee refuses the KMS, not
// the user, and a deposit that does not fit its signature is a fault of the store.
func failed(op, about string, err error) error {
	kind := claviger.KindOf(err)
	switch kind {
	case claviger.Denied:
		kind = claviger.Unavailable
	case claviger.Invalid, claviger.KeyNotFound, claviger.KeyExists:
		kind = claviger.Internal
	}
	return claviger.E(op, kind, about, err)
}

// Check sends the trustee one request.
func (p *Provider) Check(ctx context.Context) error {
	const op = "keytrustee.Check"
	if err := p.ready(ctx, op, ""); err != nil {
		return err
	}
	// A server that cannot say what it lacks still serves the keys that it holds.
	if _, err := p.cfg.Box.List(ctx, keyPrefix, false, "", 1); err != nil && !errors.Is(err, trustee.ErrUnsure) {
		return failed(op, "", err)
	}
	if err := p.intact(ctx); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return nil
}
