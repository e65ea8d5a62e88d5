package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/metastore"
	"claviger/provider"
	"claviger/secret"
	"claviger/trace"
)

// Create makes a key. spec.Cipher "" and spec.BitLength 0 mean the defaults. A caller without the GET right does not
// get the version's material. Kinds Denied, KeyDenied, and those of provider.Writer.
func (r *Ring) Create(ctx context.Context, c claviger.Caller, spec provider.Spec) (_ claviger.KeyVersion, err error) {
	ctx, span := trace.Start(ctx, "keyring.Create")
	defer span.EndWith(&err)
	if err := checkSpec(spec); err != nil {
		return claviger.KeyVersion{}, err
	}
	q, err := r.enter(ctx, &c, audit.CreateKey, &spec.Name, authz.Create)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	given := spec.Material != nil
	if given {
		if err := q.needRight(ctx, &spec.Name, authz.SetKeyMaterial); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	if r.cfg.KeyAuthorization {
		if spec.Attributes, err = q.needCreate(ctx, spec.Name, spec.Attributes); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	v, err := r.create(ctx, &q, spec)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	q.did.version = v.Name
	description := "null" // as Java prints it
	if spec.Description != nil {
		description = *spec.Description
	}
	q.ok(ctx, spec.Name, fmt.Sprintf("UserProvidedMaterial:%t Description:%s", given, description))
	return q.show(v), nil
}

// needCreate checks the key-level rules for a key that does not exist yet, and returns its attributes with the ACL name
// that will guard it.
func (q *request) needCreate(ctx context.Context, key string, attributes map[string]string) (map[string]string, error) {
	aclName := attributes[claviger.ACLNameAttribute]
	if aclName == "" {
		aclName = key
		attributes = maps.Clone(attributes)
		if attributes == nil {
			attributes = map[string]string{}
		}
		attributes[claviger.ACLNameAttribute] = key
	}
	if !q.hasKey(ctx, aclName, authz.KeyManagement) {
		return nil, claviger.Errorf("keyring.Create", claviger.KeyDenied, key, "User [%s] is not authorized to create "+
			"key !!", q.caller.Short)
	}
	return attributes, nil
}

// create checks in Hadoop's order: it checks the length of given material only after it has found no key of the name.
func (r *Ring) create(ctx context.Context, q *request, spec provider.Spec) (claviger.KeyVersion, error) {
	const op = "keyring.Create"
	if spec.Cipher == "" {
		spec.Cipher = r.cfg.DefaultCipher
	}
	if spec.BitLength == 0 {
		spec.BitLength = r.cfg.DefaultBitLength
	}
	wanted := spec
	wanted.Material = nil
	if err := provider.CheckSpec(op, wanted); err != nil {
		return claviger.KeyVersion{}, err
	}
	unlock, err := r.manage.lock(ctx, spec.Name)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	defer unlock()
	if spec.Material != nil || r.primary.keepsDeleted() || r.mayBelongToSource() {
		_, err := r.readMetadata(ctx, spec.Name)
		if err == nil {
			return claviger.KeyVersion{}, claviger.E(op, claviger.KeyExists, spec.Name, nil)
		}
		// For a key whose records are lost, the provider's own error has the reason.
		if !claviger.Is(err, claviger.KeyNotFound) && !errors.Is(err, provider.ErrLost) {
			return claviger.KeyVersion{}, err
		}
	}
	if spec.Material != nil {
		if err := provider.CheckMaterial(op, spec.Name, spec.BitLength, spec.Material); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	if err := r.needFreeName(ctx, op, spec.Name); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := q.needUnreservedName(ctx, op, spec.Name); err != nil {
		return claviger.KeyVersion{}, err
	}
	// Also after an error: a call that failed may still have made the key.
	defer r.forget(spec.Name)
	return r.primary.Create(ctx, spec)
}

// Roll adds a version; material as in Create. The next request through this Ring sees the version.
func (r *Ring) Roll(ctx context.Context, c claviger.Caller, key string,
	material secret.Bytes) (_ claviger.KeyVersion, err error) {
	ctx, span := trace.Start(ctx, "keyring.Roll")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.RollNewVersion, &key, authz.Rollover)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	given := material != nil
	if given {
		if err := q.needRight(ctx, &key, authz.SetKeyMaterial); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	here, err := r.nameHere(ctx, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	v, err := r.roll(ctx, &q, here, material)
	if err != nil {
		return claviger.KeyVersion{}, r.explainMissing(ctx, err, key)
	}
	q.did.version = v.Name
	q.ok(ctx, key, fmt.Sprintf("UserProvidedMaterial:%t NewVersion:%s", given, v.Name))
	return q.show(v), nil
}

func (r *Ring) roll(ctx context.Context, q *request, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	const op = "keyring.Roll"
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	defer unlock()
	m, err := r.needManagement(ctx, q, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if material != nil {
		if err := provider.CheckMaterial(op, key, m.BitLength, material); err != nil {
			return claviger.KeyVersion{}, err
		}
	}
	defer r.forget(key)
	return r.primary.rollIf(ctx, key, material, q.stillMay(ctx, m))
}

// stillMay checks the rules again, in the step that changes the key, if that key is not the key whose rules were
// checked before: another process may have deleted that key and made a new one.
func (q *request) stillMay(ctx context.Context, checked *claviger.Metadata) func(*claviger.Metadata) error {
	return func(now *claviger.Metadata) error {
		if sameKey(checked, now) {
			return nil
		}
		return q.needKey(ctx, now, authz.KeyManagement)
	}
}

// show returns the version as the caller may see it.
func (q *request) show(v claviger.KeyVersion) claviger.KeyVersion {
	v = owned(v)
	if !q.has(authz.Get) {
		v.Material.Wipe()
		v.Material = nil
	}
	return v
}

// Delete deletes a key. Kinds Denied, KeyDenied, KeyNotFound. Ready-made EDEKs of the key are dropped too; Hadoop waits
// for the client's invalidation. A file under an EDEK that is sent after the deletion would be lost.
func (r *Ring) Delete(ctx context.Context, c claviger.Caller, key string) (err error) {
	ctx, span := trace.Start(ctx, "keyring.Delete")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.DeleteKey, &key, authz.Delete)
	if err != nil {
		return err
	}
	if err := r.delete(ctx, &q, key); err != nil {
		return err
	}
	q.ok(ctx, key, "")
	return nil
}

func (r *Ring) delete(ctx context.Context, q *request, key string) error {
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := r.needManagement(ctx, q, key)
	if err != nil {
		return err
	}
	if err := r.mayDestroy(ctx, false); err != nil {
		return err
	}
	defer r.forget(key)
	return r.primary.deleteIf(ctx, key, q.stillMay(ctx, m))
}

// mayDestroy calls Config.MayDestroy, if it is set.
func (r *Ring) mayDestroy(ctx context.Context, purge bool) error {
	if r.cfg.MayDestroy == nil {
		return nil
	}
	return r.cfg.MayDestroy(ctx, purge)
}

// needManagement checks the rules of a key that is to be changed. It reads the metadata without the cache: a key that
// another node has made again may have another ACL name and another length. Kinds KeyNotFound, KeyDenied.
func (r *Ring) needManagement(ctx context.Context, q *request, key string) (*claviger.Metadata, error) {
	m, err := r.readMetadata(ctx, key)
	if err != nil {
		return nil, err
	}
	return m, q.needKey(ctx, m, authz.KeyManagement)
}

// Invalidate drops a key from the caches and drains its queue of EDEKs, on every node if nodes share keys. A key that
// does not exist causes no error: Hadoop's client sends this to every host for a key that it has just deleted.
func (r *Ring) Invalidate(ctx context.Context, c claviger.Caller, key string) (err error) {
	ctx, span := trace.Start(ctx, "keyring.Invalidate")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.InvalidateCache, &key, authz.Rollover, authz.Delete)
	if err != nil {
		return err
	}
	// The rules are those of the key that has the name in another spelling.
	here, err := r.nameHere(ctx, key)
	if err != nil {
		return err
	}
	if r.cfg.KeyAuthorization {
		if _, err := r.needManagement(ctx, &q, here); err != nil && !claviger.Is(err, claviger.KeyNotFound) {
			return err
		}
	}
	names := []string{key}
	if here != key {
		names = append(names, here)
	}
	for _, name := range names {
		r.forget(name)
		if r.cfg.Shared == nil {
			continue
		}
		// The other nodes too: a client may know only one of the nodes.
		if err := r.cfg.Shared.Announce(ctx, metastore.Notice{Key: name, Change: metastore.Invalidated}); err != nil {
			return err
		}
	}
	q.ok(ctx, key, "")
	return nil
}
