package kms

import (
	"context"

	"claviger"
	"claviger/keyring"
	"claviger/migrate"
)

// migrator returns the Migrator for users' requests; nil if there is no source, or if
// the primary cannot take keys over.
func (s *Service) migrator() keyring.Migrator {
	_, target := s.Primary.(migrate.Target)
	_, source := s.ReencryptionSource()
	if !target || !source {
		return nil
	}
	return keyMigrator{s}
}

// keyMigrator makes an engine for each request. Requests are rare, and an engine
// examines this host, which must not delay the server's start. The ring, not the
// engine, writes the audit record, in the caller's name.
type keyMigrator struct{ svc *Service }

func (k keyMigrator) SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	e, err := k.svc.Engine(ctx, migrate.Config{Log: k.svc.Log})
	if err != nil {
		return nil, err
	}
	return e.SourceMetadata(ctx, key)
}

func (k keyMigrator) RunKey(ctx context.Context, key string) ([]string, error) {
	e, err := k.svc.Engine(ctx, migrate.Config{Log: k.svc.Log})
	if err != nil {
		return nil, err
	}
	return e.RunKey(ctx, key)
}

// OwnCaller is the caller of operations that the server starts by itself: its OS user.
// The rules of kms-acls.xml do not apply to it, because that user can read the files
// anyway.
func OwnCaller() claviger.Caller {
	user := OSUser()
	return claviger.Caller{Principal: claviger.Principal{Name: user, Short: user}}
}
