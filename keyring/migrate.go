package keyring

import (
	"context"
	"strings"

	"claviger"
	"claviger/audit"
	"claviger/authz"
)

// Migrator takes over keys from the source of a migration into the primary.
type Migrator interface {
	// SourceMetadata is what the source says of a key. Kinds KeyNotFound,
	// SourceUnreachable, SourceRefused.
	SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error)
	// RunKey takes the key over, if it is not here yet, and returns the full names of
	// its versions here that stand for the source's, oldest first. It may be called
	// again after an error. Kinds, beside those of SourceMetadata: Invalid where the
	// key cannot be taken over, Unavailable where another process migrates.
	RunKey(ctx context.Context, key string) ([]string, error)
}

// Migrate takes a key over from the source, and returns the versions made for it.
// It needs the key-level right MIGRATE alone, which is asked for under the ACL name
// that the key has at the source, and also where key authorization is off: without
// it a migration would be everybody's. Who has no right is not told whether the
// source has such a key. Kinds KeyDenied, Unsupported, and those of Migrator.
func (r *Ring) Migrate(ctx context.Context, c claviger.Caller, key string) ([]string, error) {
	const op = "keyring.Migrate"
	q, err := r.enterUnasked(&c, audit.MigrateKey, key)
	if err != nil {
		return nil, err
	}
	if r.cfg.Migrator == nil {
		return nil, claviger.Errorf(op, claviger.Unsupported, key, "this server has no source to take keys over from (hadoop.kms.key.provider.reencryption.source.uri), or one that cannot be migrated from")
	}
	aclName := key
	m, missing := r.cfg.Migrator.SourceMetadata(ctx, key)
	switch {
	case missing == nil:
		aclName = m.ACLName()
	case !claviger.Is(missing, claviger.KeyNotFound):
		return nil, missing
	}
	if !q.policy.MayMigrate(aclName, c.Principal, r.cfg.Groups) {
		r.cfg.Audit.Log(ctx, audit.Event{Status: audit.Unauthorized, Op: audit.Op(authz.KeyMigrate), KeyRight: true, Key: aclName, Caller: c})
		return nil, claviger.Errorf("keyring.access", claviger.KeyDenied, key, "User [%s] is not authorized to perform [%s] on key with ACL name [%s]!!", c.Short, authz.KeyMigrate, aclName)
	}
	if missing != nil {
		return nil, missing
	}
	if err := q.begin(ctx, key); err != nil {
		return nil, err
	}
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer r.forget(key)
	versions, err := r.cfg.Migrator.RunKey(ctx, key)
	if err != nil {
		return nil, err
	}
	if n := len(versions); n > 0 {
		q.did.version = versions[n-1]
	}
	q.ok(ctx, key, "Versions:"+strings.Join(versions, ","))
	return versions, nil
}
