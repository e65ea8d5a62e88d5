// Package keytrustee is the provider of a Key Trustee KMS: EZ keys that it makes
// itself, encrypts to its own OpenPGP key and deposits at a Key Trustee Server,
// which can read none of them.
//
// A key is one deposit, labelled key/<name>, that holds its metadata and the uuids
// of its versions; each version is one more, labelled version/<name>@<id>, with its
// material. A version counts from when the key's deposit names it, and that deposit
// is only ever replaced by compare and set: of two hosts that roll a key at one
// moment, none loses its version. A deleted key is a deposit deleted/<name>/<id>
// in place of key/<name>.
//
// site.go reads kts-site.xml. open.go reads the identity, registers it, and compares
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
	// parallel is how many deposits are fetched at once for one call.
	parallel = 5
	// changeTime bounds a Create or Roll, from the moment on in which its version is
	// deposited. strayAge is far more: a version that no key names by then never
	// will be named.
	changeTime = 5 * time.Minute
	strayAge   = time.Hour
	// tries bounds how often a change is made again since somebody else was faster.
	tries = 100
)

// Config is what a Provider is made of.
type Config struct {
	// URI names the provider in messages.
	URI string
	Box trustee.Box
	// Identity is whom all is encrypted to: the one that Box is the box of.
	Identity *trustee.Identity
	// SoftDelete: Delete keeps a key until it is purged.
	SoftDelete bool
	// MaterialLife is how long material stays in memory since it was fetched; 0 is
	// 10 minutes.
	MaterialLife time.Duration
	Log          *slog.Logger
	Now          func() time.Time // time.Now where nil
	// Closer, if not nil, is called by Close.
	Closer func() error
	// memory of the newest change; nil: none.
	memory *memory
	// place of the private key; nil: it is not watched.
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

// New makes a provider. It asks nothing.
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

// ready is what every method asks first.
func (p *Provider) ready(ctx context.Context, op, about string) error {
	if p.closed.Load() {
		return claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, about, err)
	}
	return nil
}

// failed puts the kind of a box's error into the words of this contract: whom the
// trustee does not let in is we, not the user, and what does not fit its signature
// is a fault of the store.
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

// Check asks the trustee one question.
func (p *Provider) Check(ctx context.Context) error {
	const op = "keytrustee.Check"
	if err := p.ready(ctx, op, ""); err != nil {
		return err
	}
	// A server that cannot say what it lacks reads the keys that it holds.
	if _, err := p.cfg.Box.List(ctx, keyPrefix, false, "", 1); err != nil && !errors.Is(err, trustee.ErrUnsure) {
		return failed(op, "", err)
	}
	if err := p.intact(ctx); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return nil
}
