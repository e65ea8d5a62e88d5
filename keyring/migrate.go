package keyring

import (
	"context"
	"errors"
	"strings"

	"github.com/sony/gobreaker/v2"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/trace"
)

// Migrator takes keys over from the source of a migration into the primary.
type Migrator interface {
	// SourceMetadata returns the source's metadata of a key. Kinds KeyNotFound,
	// SourceUnreachable, SourceRefused.
	SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error)
	// RunKey takes the key over, if it is not here yet, and returns the full names of the versions that were made for
	// it, oldest first. It may be called again after an error. Kinds, beside those of SourceMetadata: Invalid if the
	// key cannot be taken over, Unavailable if another process migrates.
	RunKey(ctx context.Context, key string) ([]string, error)
}

// Migrate takes a key over from the source, and returns the versions made for it. It needs only the key-level right
// MIGRATE, under the ACL name that the key has at the source. The right is needed even if key authorization is off:
// otherwise any user could migrate. A caller without the right does not learn whether the source has the key. Kinds
// KeyDenied, Unsupported, and those of Migrator.
func (r *Ring) Migrate(ctx context.Context, c claviger.Caller, key string) (_ []string, err error) {
	const op = "keyring.Migrate"
	ctx, span := trace.Start(ctx, op)
	defer span.EndWith(&err)
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
		// The text has the name in the request even if the key has another ACL name, because not every caller may know
		// the ACL name at the source.
		return claviger.Errorf("keyring.access", claviger.KeyDenied, key,
			"User [%s] is not authorized to perform [%s] on key with ACL name [%s]!!", c.Short, authz.KeyMigrate, key)
	}
	// The first check needs no request to the source, which may hang: not every caller may cause such a request.
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
	return r.migrate(ctx, &q, key)
}

// migrate takes the key over and audits that, while no other management operation changes the key.
func (r *Ring) migrate(ctx context.Context, q *request, key string) (versions []string, err error) {
	const op = "keyring.Migrate"
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.primary.keepsDeleted() {
		// The same check as for Create, unless the key is here.
		switch _, err := r.readMetadata(ctx, key); {
		case claviger.Is(err, claviger.KeyNotFound):
			if err := q.needUnreservedName(ctx, op, key); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		}
	}
	defer r.forget(key)
	defer r.origins.forget()
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

// sourceMetadata reads a key's metadata from the source of the migration: without the request's slot, with the source's
// timeout, and not while its breaker is open.
func (r *Ring) sourceMetadata(ctx context.Context, key string) (m *claviger.Metadata, err error) {
	src := r.sources.migration()
	read := func(ctx context.Context) (err error) {
		m, err = r.cfg.Migrator.SourceMetadata(ctx, key)
		return err
	}
	var missing error
	err = r.waitForSource(ctx, "keyring.Migrate", key, func() error {
		if src == nil {
			missing = read(ctx)
		} else if missing = src.call(ctx, read); missing != nil && noAnswer(missing) ||
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
