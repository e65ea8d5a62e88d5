package kms

import (
	"context"

	"claviger"
	"claviger/keyring"
	"claviger/migrate"
)

// migrator takes keys over at users' requests; nil where there is no source, or
// where the primary makes no keys of its own.
func (s *Service) migrator() keyring.Migrator {
	_, target := s.Primary.(migrate.Target)
	_, source := s.ReencryptionSource()
	if !target || !source {
		return nil
	}
	return keyMigrator{s}
}

// keyMigrator makes an engine for each request: they are rare, and what an engine
// finds out about this host must not hold up a server's start. The engine does not
// audit; the ring does, in the name of who asked.
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

// OwnCaller is who does what nobody has asked the server for. Rules of
// kms-acls.xml do not bind whoever may read our files.
func OwnCaller() claviger.Caller {
	user := OSUser()
	return claviger.Caller{Principal: claviger.Principal{Name: user, Short: user}}
}
