package eek

import (
	"context"
	"errors"

	"claviger"
	"claviger/secret"
)

// Pinned is what this package needs of a provider that may give the name of a version to another key's version;
// provider.Pinned says how it behaves.
type Pinned interface {
	EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error
}

// ErrReplaced marks the error of a version that was deleted after it was read; its name may belong to another
// version by now.
var ErrReplaced = errors.New("the version was deleted since it was read")

// Service makes, opens and re-wraps EDEKs under versions that its caller has read, by a provider that encrypts
// blocks. Its methods may be called from many goroutines. Their errors are those of the functions of the same
// name. A pinned Service also returns kind VersionNotFound with ErrReplaced.
type Service struct {
	blocks BlockEncrypter
	pinned Pinned // nil: the name of a version suffices to find it
}

// NewService makes a Service that finds versions by their names.
func NewService(blocks BlockEncrypter) *Service { return &Service{blocks: blocks} }

// NewPinnedService makes a Service that encrypts under the very versions that were read.
func NewPinnedService(pinned Pinned) *Service { return &Service{pinned: pinned} }

// Generate makes n EDEKs under v.
func (s *Service) Generate(ctx context.Context, v claviger.KeyVersion, n int) ([]claviger.EDEK, error) {
	return Generate(ctx, s.under(v), v.Name, v.BitLength/8, n, nil)
}

// Unwrap opens EDEKs of v. The user on whose behalf it is done does not matter here.
func (s *Service) Unwrap(ctx context.Context, v claviger.KeyVersion, _ string,
	edeks []claviger.EDEK) ([]secret.Bytes, error) {
	return Unwrap(ctx, s.under(v), edeks)
}

// Wrap makes one EDEK of each DEK under v.
func (s *Service) Wrap(ctx context.Context, v claviger.KeyVersion, ivs [][]byte,
	deks []secret.Bytes) ([]claviger.EDEK, error) {
	return Wrap(ctx, s.under(v), v.Name, ivs, deks)
}

// Reencrypt brings EDEKs of the versions from under the version to.
func (s *Service) Reencrypt(ctx context.Context, from []claviger.KeyVersion, to claviger.KeyVersion,
	edeks []claviger.EDEK) ([]claviger.EDEK, error) {
	return Reencrypt(ctx, s.underEach(from), s.under(to), to.Name, edeks)
}

// under returns what encrypts under v.
func (s *Service) under(v claviger.KeyVersion) BlockEncrypter {
	if s.pinned == nil {
		return s.blocks
	}
	return pin{s.pinned, v}
}

// underEach returns what encrypts under several versions.
func (s *Service) underEach(versions []claviger.KeyVersion) BlockEncrypter {
	if s.pinned == nil {
		return s.blocks
	}
	return pins{s.pinned, versions}
}

// pin encrypts under one version.
type pin struct {
	Pinned
	version claviger.KeyVersion
}

func (p pin) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if version != p.version.Name {
		return notRead(version)
	}
	return encryptOf(ctx, p.Pinned, p.version, blocks)
}

// pins encrypts under a few versions.
type pins struct {
	Pinned
	versions []claviger.KeyVersion
}

func (p pins) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	for i := range p.versions {
		if p.versions[i].Name == version {
			return encryptOf(ctx, p.Pinned, p.versions[i], blocks)
		}
	}
	return notRead(version)
}

func notRead(version string) error {
	return claviger.Errorf("eek.encrypt", claviger.Internal, version, "it was not read before it is used")
}

func encryptOf(ctx context.Context, p Pinned, v claviger.KeyVersion, blocks []byte) error {
	err := p.EncryptBlocksOf(ctx, v, blocks)
	if claviger.Is(err, claviger.VersionNotFound) {
		return claviger.E("eek.encrypt", claviger.VersionNotFound, v.Name, ErrReplaced)
	}
	return err
}
