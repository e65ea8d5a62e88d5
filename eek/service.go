package eek

import (
	"context"
	"errors"

	"claviger"
	"claviger/secret"
)

// Pinned is the part that this package needs of a provider that may use the name of a deleted version again.
// provider.Pinned has the contract.
type Pinned interface {
	EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error
}

// ErrReplaced marks the error of a version that was deleted after it was read. Its name may belong to another version
// now.
var ErrReplaced = errors.New("the version was deleted after it was read")

// Service makes, opens and re-encrypts EDEKs under versions that its caller has read, with a provider that encrypts
// blocks. Many goroutines may call its methods at the same time. Their errors are those of the functions with the same
// names. A pinned Service also returns kind VersionNotFound with ErrReplaced.
type Service struct {
	blocks BlockEncrypter
	pinned Pinned // nil if the provider never uses the name of a version again
	check  SelfCheck
	wrong  mismatches                                      // that the self-check has found
	vouch  func(ctx context.Context, version string) error // nil unless Generate makes implied EDEKs
}

// NewService makes a Service that finds versions by their names.
func NewService(blocks BlockEncrypter) *Service { return &Service{blocks: blocks} }

// NewPinnedService makes a Service that encrypts only under the versions that were read, even if their names belong to
// other versions now.
func NewPinnedService(pinned Pinned) *Service { return &Service{pinned: pinned} }

// Check makes decrypts and re-encryptions check the provider's results from now on. It returns s, and must be called
// before s is used.
func (s *Service) Check(c SelfCheck) *Service {
	s.check = c
	return s
}

// Imply lets Generate make implied EDEKs from now on, see Implied. vouch is called before each of these calls, and
// returns nil if the provider has the version's key; Generate returns its errors. Imply returns s, and must be called
// before s is used.
func (s *Service) Imply(vouch func(ctx context.Context, version string) error) *Service {
	s.vouch = vouch
	return s
}

// Generate makes n EDEKs under v.
func (s *Service) Generate(ctx context.Context, v claviger.KeyVersion, n int) ([]claviger.EDEK, error) {
	if s.vouch != nil && n > 0 {
		if err := s.vouch(ctx, v.Name); err != nil {
			return nil, err
		}
		return Implied(v.Name, v.BitLength/8, n, nil)
	}
	return Generate(ctx, s.under(v), v.Name, v.BitLength/8, n, nil)
}

// Unwrap opens EDEKs of v. The third argument, the user on whose behalf they are opened, is not used.
func (s *Service) Unwrap(ctx context.Context, v claviger.KeyVersion, _ string,
	edeks []claviger.EDEK) ([]secret.Bytes, error) {
	return Unwrap(ctx, s.checked(s.under(v)), edeks)
}

// Wrap makes one EDEK from each DEK under v, as a part of a re-encryption.
func (s *Service) Wrap(ctx context.Context, v claviger.KeyVersion, ivs [][]byte,
	deks []secret.Bytes) ([]claviger.EDEK, error) {
	return Wrap(ctx, s.checked(s.under(v)), v.Name, ivs, deks)
}

// Reencrypt re-encrypts EDEKs of the versions from under the version to.
func (s *Service) Reencrypt(ctx context.Context, from []claviger.KeyVersion, to claviger.KeyVersion,
	edeks []claviger.EDEK) ([]claviger.EDEK, error) {
	return Reencrypt(ctx, s.checked(s.underEach(from)), s.checked(s.under(to)), to.Name, edeks)
}

// under returns the BlockEncrypter for v.
func (s *Service) under(v claviger.KeyVersion) BlockEncrypter {
	if s.pinned == nil {
		return s.blocks
	}
	return pinnedVersion{s.pinned, v}
}

// underEach returns the BlockEncrypter for several versions.
func (s *Service) underEach(versions []claviger.KeyVersion) BlockEncrypter {
	if s.pinned == nil {
		return s.blocks
	}
	return pinnedVersions{s.pinned, versions}
}

// pinnedVersion encrypts under one version.
type pinnedVersion struct {
	Pinned
	version claviger.KeyVersion
}

func (p pinnedVersion) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if version != p.version.Name {
		return notRead(version)
	}
	return encryptOf(ctx, p.Pinned, p.version, blocks)
}

// pinnedVersions encrypts under a few versions.
type pinnedVersions struct {
	Pinned
	versions []claviger.KeyVersion
}

func (p pinnedVersions) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	for i := range p.versions {
		if p.versions[i].Name == version {
			return encryptOf(ctx, p.Pinned, p.versions[i], blocks)
		}
	}
	return notRead(version)
}

func notRead(version string) error {
	return claviger.Errorf("eek.encrypt", claviger.Internal, version, "the version was not read before its use")
}

func encryptOf(ctx context.Context, p Pinned, v claviger.KeyVersion, blocks []byte) error {
	err := p.EncryptBlocksOf(ctx, v, blocks)
	if claviger.Is(err, claviger.VersionNotFound) {
		return claviger.E("eek.encrypt", claviger.VersionNotFound, v.Name, ErrReplaced)
	}
	return err
}
