// Package keytrustee is the provider of a Key Trustee KMS. The KMS makes EZ keys itself, encrypts them to its own
// OpenPGP key and deposits them at a Key Trustee Server. The server can read none of them.
//
// A key is one deposit, labelled key/<name>, with the key's metadata and the uuids of its versions. This deposit is
// called the key's document. Each version is another deposit, labelled version/<name>@<id>, with the material. A
// version belongs to the key as soon as the document names it. The document is replaced by compare and set only, so
// two hosts that roll a key at the same time both keep their versions. Delete replaces the document key/<name> by
// deleted/<name>/<id>.
//
// site.go reads kts-site.xml. open.go reads the identity, registers it, and compares the identities of an organization.
// material.go keeps material in memory and wipes it. newest.go and seen.go notice a server that was restored from an
// older backup. served.go marks and locks the KMS's folder.
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
	// defaultLife is how long fetched material stays in memory if the configuration sets no time. It is Hadoop's
	// default of hadoop.kms.cache.timeout.ms.
	defaultLife = 10 * time.Minute
	// parallel is how many deposits one call fetches at the same time.
	parallel = 5
	// changeTime bounds a Create or Roll, counted from the time when its version is deposited. strayAge is much longer:
	// a version of that age that no document names will never be named by one.
	changeTime = 5 * time.Minute
	strayAge   = time.Hour
	// tries bounds the attempts of a change when other hosts change the same key first.
	tries = 100
)

// Config is the configuration of a Provider.
type Config struct {
	// URI names the provider in messages.
	URI string
	// Box stores the deposits.
	Box trustee.Box
	// Identity owns Box; every deposit is encrypted to it.
	Identity *trustee.Identity
	// SoftDelete is true if Delete keeps a key until it is purged.
	SoftDelete bool
	// MaterialLife is how long material stays in memory after it was fetched; 0 means 10 minutes.
	MaterialLife time.Duration
	Log          *slog.Logger
	Now          func() time.Time // nil means time.Now
	// Closer, if not nil, is called by Close.
	Closer func() error
	// memory remembers the newest change; nil for none.
	memory *memory
	// watch checks that the private key is still in its folder; nil for no check.
	watch *folderWatch
}

// Provider is a provider.Provider, a BlockEncrypter and a SoftDeleter. It accepts and returns material.
type Provider struct {
	cfg  Config
	kept *materials
	seen seenVersions
	// box is cfg.Box.
	box    *recordingBox
	closed atomic.Bool
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
	box := &recordingBox{Box: cfg.Box}
	cfg.Box = box
	return &Provider{cfg: cfg, kept: newMaterials(cfg.MaterialLife), box: box}
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

// ready fails if the provider is closed or ctx is done. Every method calls it first.
func (p *Provider) ready(ctx context.Context, op, about string) error {
	if p.closed.Load() {
		return claviger.E(op, claviger.Closed, about, nil)
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, about, err)
	}
	return nil
}

// boxError translates an error of a trustee.Box to the kinds of the provider contract. Kind Denied becomes Unavailable,
// because the Key Trustee Server refuses the KMS, not the user. A deposit that does not fit its signature is a fault of
// the store, so its kind becomes Internal.
func boxError(op, about string, err error) error {
	kind := claviger.KindOf(err)
	switch kind {
	case claviger.Denied:
		kind = claviger.Unavailable
	case claviger.Invalid, claviger.KeyNotFound, claviger.KeyExists:
		kind = claviger.Internal
	}
	return claviger.E(op, kind, about, err)
}

// Check sends the Key Trustee Server one request, and regularly checks that the server has all remembered changes.
func (p *Provider) Check(ctx context.Context) error {
	const op = "keytrustee.Check"
	if err := p.ready(ctx, op, ""); err != nil {
		return err
	}
	// ErrUnsure is not a failure: the server does not know whether it lacks deposits, but serves those that it has.
	if _, err := p.cfg.Box.List(ctx, keyPrefix, false, "", 1); err != nil && !errors.Is(err, trustee.ErrUnsure) {
		return boxError(op, "", err)
	}
	if err := p.checkRegularly(ctx); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return nil
}
