package keyring

import (
	"context"
	"strings"

	"claviger"
	"claviger/provider"
	"claviger/secret"
	"claviger/trace"
)

// The methods in this file are those of the primary and of a source, as steps of the traced request that calls them.

// schemeOf returns the scheme of a provider's URI, in lower case.
func schemeOf(p provider.Provider) string {
	scheme, _, _ := strings.Cut(p.URI(), ":")
	return strings.ToLower(scheme)
}

func (p *primary) step(ctx context.Context, name string) (context.Context, *trace.Span) {
	ctx, span := trace.Start(ctx, name)
	span.Word(trace.Provider, p.scheme)
	return ctx, span
}

// Generate is the crypter's.
func (p *primary) Generate(ctx context.Context, v claviger.KeyVersion, n int) (_ []claviger.EDEK, err error) {
	ctx, span := p.step(ctx, "provider.Generate")
	defer span.EndWith(&err)
	return p.crypter.Generate(ctx, v, n)
}

// Unwrap is the crypter's.
func (p *primary) Unwrap(ctx context.Context, v claviger.KeyVersion, user string,
	edeks []claviger.EDEK) (_ []secret.Bytes, err error) {
	ctx, span := p.step(ctx, "provider.Unwrap")
	defer span.EndWith(&err)
	return p.crypter.Unwrap(ctx, v, user, edeks)
}

// Wrap is the crypter's.
func (p *primary) Wrap(ctx context.Context, v claviger.KeyVersion, ivs [][]byte,
	deks []secret.Bytes) (_ []claviger.EDEK, err error) {
	ctx, span := p.step(ctx, "provider.Wrap")
	defer span.EndWith(&err)
	return p.crypter.Wrap(ctx, v, ivs, deks)
}

// Reencrypt is the crypter's.
func (p *primary) Reencrypt(ctx context.Context, from []claviger.KeyVersion, to claviger.KeyVersion,
	edeks []claviger.EDEK) (_ []claviger.EDEK, err error) {
	ctx, span := p.step(ctx, "provider.Reencrypt")
	defer span.EndWith(&err)
	return p.crypter.Reencrypt(ctx, from, to, edeks)
}

// Create is the provider's.
func (p *primary) Create(ctx context.Context, spec provider.Spec) (_ claviger.KeyVersion, err error) {
	ctx, span := p.step(ctx, "provider.Create")
	defer span.EndWith(&err)
	return p.Provider.Create(ctx, spec)
}

// Keys is the provider's.
func (p *primary) Keys(ctx context.Context) (_ []string, err error) {
	ctx, span := p.step(ctx, "provider.Keys")
	defer span.EndWith(&err)
	return p.Provider.Keys(ctx)
}

// Metadata is the provider's.
func (p *primary) Metadata(ctx context.Context, names ...string) (_ []*claviger.Metadata, err error) {
	ctx, span := p.step(ctx, "provider.Metadata")
	defer span.EndWith(&err)
	return p.Provider.Metadata(ctx, names...)
}

// Versions is the provider's.
func (p *primary) Versions(ctx context.Context, key string) (_ []claviger.KeyVersion, err error) {
	ctx, span := p.step(ctx, "provider.Versions")
	defer span.EndWith(&err)
	return p.Provider.Versions(ctx, key)
}

// Current is the provider's.
func (p *primary) Current(ctx context.Context, key string) (_ claviger.KeyVersion, err error) {
	ctx, span := p.step(ctx, "provider.Current")
	defer span.EndWith(&err)
	return p.Provider.Current(ctx, key)
}

// Version is the provider's.
func (p *primary) Version(ctx context.Context, version string) (_ claviger.KeyVersion, err error) {
	ctx, span := p.step(ctx, "provider.Version")
	defer span.EndWith(&err)
	return p.Provider.Version(ctx, version)
}

func (s *source) step(ctx context.Context, name string) (context.Context, *trace.Span) {
	ctx, span := trace.Start(ctx, name)
	span.Word(trace.Provider, s.scheme)
	return ctx, span
}

// Unwrap is the crypter's.
func (s *source) Unwrap(ctx context.Context, v claviger.KeyVersion, user string,
	edeks []claviger.EDEK) (_ []secret.Bytes, err error) {
	ctx, span := s.step(ctx, "source.Unwrap")
	defer span.EndWith(&err)
	return s.crypter.Unwrap(ctx, v, user, edeks)
}

// Metadata is the provider's.
func (s *source) Metadata(ctx context.Context, names ...string) (_ []*claviger.Metadata, err error) {
	ctx, span := s.step(ctx, "source.Metadata")
	defer span.EndWith(&err)
	return s.Provider.Metadata(ctx, names...)
}

// Version is the provider's.
func (s *source) Version(ctx context.Context, version string) (_ claviger.KeyVersion, err error) {
	ctx, span := s.step(ctx, "source.Version")
	defer span.EndWith(&err)
	return s.Provider.Version(ctx, version)
}
