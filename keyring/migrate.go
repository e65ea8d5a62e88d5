package keyring

import (
	"context"
	"errors"
	"strings"

	"github.com/sony/gobreaker/v2"

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
	q, err := r.admit(&c, audit.MigrateKey, key)
	if err != nil {
		return nil, err
	}
	if r.cfg.Migrator == nil {
		return nil, claviger.Errorf(op, claviger.Unsupported, key, "this server has no source to take keys over from "+
			"(hadoop.kms.key.provider.reencryption.source.uri), or one that cannot be migrated from")
	}
	refuse := func(aclName string) error {
		r.cfg.Audit.Log(ctx, audit.Event{Status: audit.Unauthorized, Op: audit.Op(authz.KeyMigrate), KeyRight: true,
			Key: aclName, Caller: c})
		// The name that was asked for, also where the rules stand under another: what the
		// source calls its key's rules is not everybody's to know.
		return claviger.Errorf("keyring.access", claviger.KeyDenied, key, "User [%s] is not authorized to perform [%s] "+
			"on key with ACL name [%s]!!", c.Short, authz.KeyMigrate, key)
	}
	// First without the source, which may hang, and is not everybody's to be asked.
	if !q.policy.MayMigrateAny(c.Principal, r.cfg.Groups) {
		return nil, refuse(key)
	}
	aclName := key
	m, missing := r.sourceMetadata(ctx, key)
	switch {
	case missing == nil:
		aclName = m.ACLName()
	case !claviger.Is(missing, claviger.KeyNotFound):
		return nil, missing
	}
	if !q.policy.MayMigrate(aclName, c.Principal, r.cfg.Groups) {
		return nil, refuse(aclName)
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
	if r.primary.keepsDeleted() {
		// As a key that is made by hand, unless the key is here.
		switch _, err := r.readMetadata(ctx, key); {
		case claviger.Is(err, claviger.KeyNotFound):
			if err := q.needUnshelvedName(ctx, op, key); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		}
	}
	defer r.forget(key)
	defer r.origins.forget()
	var versions []string
	err = r.waitForSource(ctx, op, key, func() (err error) {
		versions, err = r.cfg.Migrator.RunKey(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	if n := len(versions); n > 0 {
		q.did.version = versions[n-1]
	}
	q.ok(ctx, key, "Versions:"+strings.Join(versions, ","))
	return versions, nil
}

// sourceMetadata asks the source of the migration for a key, without the request's
// turn, within the source's time, and not while it is left alone.
func (r *Ring) sourceMetadata(ctx context.Context, key string) (m *claviger.Metadata, err error) {
	src := r.sources.migration()
	ask := func(ctx context.Context) (err error) {
		m, err = r.cfg.Migrator.SourceMetadata(ctx, key)
		return err
	}
	var missing error
	err = r.waitForSource(ctx, "keyring.Migrate", key, func() error {
		if src == nil {
			missing = ask(ctx)
		} else if missing = src.call(ctx, ask); missing != nil && noAnswer(missing) ||
			errors.Is(missing, gobreaker.ErrOpenState) {
			return src.explain(missing, aboutMetadata(key, key))
		}
		if claviger.Is(missing, claviger.KeyNotFound) {
			return nil
		}
		return missing
	})
	if err == nil {
		err = missing
	}
	return m, err
}
