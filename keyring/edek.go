package keyring

import (
	"context"
	"errors"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/provider"
	"claviger/secret"
	"claviger/trace"
)

// MaxGenerate is the number of EDEKs that one Generate can make. Hadoop has no such limit, and runs out of memory;
// its clients request 500.
const MaxGenerate = 100_000

// Generate makes n EDEKs under the key's current version. n <= 0 makes none, checks no rules of the key, and the key
// need not exist, as in Hadoop. One call to the provider makes the EDEKs that the queue does not hold. With
// Config.ImpliedLease, none is needed while the version has a lease. Kinds KeyNotFound, and Invalid if n is above
// MaxGenerate.
func (r *Ring) Generate(ctx context.Context, c claviger.Caller, key string, n int) (_ []claviger.EDEK, err error) {
	ctx, span := trace.Start(ctx, "keyring.Generate")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GenerateEEK, &key, authz.GenerateEEK)
	if err != nil {
		return nil, err
	}
	if n > MaxGenerate {
		return nil, claviger.Errorf("keyring.Generate", claviger.Invalid, key, "%d EDEKs were requested; at most %d "+
			"are made in one request", n, MaxGenerate)
	}
	edeks := []claviger.EDEK{}
	if n > 0 {
		if edeks, err = r.generate(ctx, &q, key, n); err != nil {
			return nil, err
		}
	}
	if err := r.used.beginEDEKs(ctx, edeks, nil); err != nil {
		return nil, err
	}
	if q.did.edeks = len(edeks); len(edeks) > 0 {
		q.did.version = edeks[0].Version
	}
	q.ok(ctx, key, "")
	return edeks, nil
}

// generate checks the rules of the key of the EDEKs that it returns. The queue may have made them under a key that got
// the name after the first reading.
func (r *Ring) generate(ctx context.Context, q *request, key string, n int) ([]claviger.EDEK, error) {
	if !r.primary.makesEDEKs {
		if err := r.epochs.catchUp(ctx, key); err != nil {
			return nil, err
		}
		if err := r.needKey(ctx, q, key, authz.KeyGenerateEEK); err != nil {
			return nil, err
		}
		return r.primary.Generate(ctx, claviger.KeyVersion{Key: key}, n)
	}
	v, err := r.newest(ctx, key)
	if err != nil {
		return nil, r.explainMissing(ctx, err, key)
	}
	key = v.Key
	if err := q.needVersion(ctx, &v, authz.KeyGenerateEEK); err != nil {
		return nil, err
	}
	// EDEKs under a version in conflict could not be opened.
	if err := r.needNotInConflict(ctx, "keyring.Generate", &v); err != nil {
		return nil, err
	}
	if r.queue == nil {
		// A queue would give out EDEKs after the end of the lease.
		edeks, err := r.primary.Generate(ctx, v, n)
		r.implied.Add(int64(len(edeks)))
		return edeks, err
	}
	edeks, err := r.queue.Take(ctx, key, n)
	if err != nil || !r.cfg.KeyAuthorization {
		return edeks, err
	}
	checked := v.Name
	for _, e := range edeks {
		if e.Version == checked {
			continue // its version's rules were checked already, usually for all EDEKs
		}
		made, err := r.ownVersion(ctx, e.Version)
		if err != nil {
			return nil, err
		}
		if err := q.needSame(ctx, &v, &made, authz.KeyGenerateEEK); err != nil {
			return nil, err
		}
		checked = e.Version
	}
	if r.primary.reuses {
		// If names are given again, a name proves nothing. The queue's EDEKs were made under a version that was read
		// earlier.
		now, err := r.currentVersion(ctx, key)
		if err != nil {
			return nil, err
		}
		if err := q.needSame(ctx, &v, &now, authz.KeyGenerateEEK); err != nil {
			return nil, err
		}
	}
	return edeks, nil
}

// needSame checks the rules again if a version that was read later belongs to another key than the version whose rules
// were checked.
func (q *request) needSame(ctx context.Context, checked, later *claviger.KeyVersion, right authz.KeyOp) error {
	if sameKey(checked.Of, later.Of) {
		return nil
	}
	return q.needVersion(ctx, later, right)
}

// makeEDEKs fills the queue.
func (r *Ring) makeEDEKs(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	for again := true; ; again = false {
		v, err := r.currentVersion(ctx, key)
		if err != nil {
			return nil, err
		}
		edeks, err := r.primary.Generate(ctx, v, n)
		r.drainUnusable(err, key)
		if err == nil || !again || !r.replaced(err, key) {
			return edeks, err
		}
	}
}

// Decrypt opens one EDEK. key is the key's name in the request; "" with hasKey false if the request has none. The
// caller owns the DEK, and wipes it. Kinds VersionNotFound, WrongKey, BadIV, and if a source is called
// SourceUnreachable and SourceRefused.
func (r *Ring) Decrypt(ctx context.Context, c claviger.Caller, key string, hasKey bool,
	e claviger.EDEK) (_ secret.Bytes, err error) {
	ctx, span := trace.Start(ctx, "keyring.Decrypt")
	defer span.EndWith(&err)
	named := nameIf(hasKey, &key)
	q, err := r.enter(ctx, &c, audit.DecryptEEK, named, authz.DecryptEEK)
	if err != nil {
		return nil, err
	}
	q.did = work{version: e.Version, edeks: 1}
	dek, err := r.decrypt(ctx, &q, named, claviger.ParseVersion(e.Version), e)
	if err != nil {
		r.countUnserved(ctx, &q, err, authz.KeyDecryptEEK, 1)
		return nil, r.explainMissing(ctx, err, key)
	}
	q.ok(ctx, key, "")
	return dek, nil
}

// decrypt opens an EDEK of the version, which is here or at a source.
func (r *Ring) decrypt(ctx context.Context, q *request, named *string, version claviger.VersionRef,
	e claviger.EDEK) (secret.Bytes, error) {
	for again := true; ; again = false {
		v, err := r.ownVersion(ctx, e.Version)
		switch {
		case err == nil:
			dek, err := r.decryptOwn(ctx, q, named, &v, e)
			if err == nil || !again || !r.replaced(err, v.Key) {
				return dek, err
			}
		case r.mayBeForeign(err, version):
			return r.decryptForeign(ctx, q, named, version, e)
		default:
			r.opened.record(err)
			return nil, err
		}
	}
}

func nameIf(given bool, key *string) *string {
	if given {
		return key
	}
	return nil
}

// decryptOwn opens an EDEK of a version of the primary. If key authorization is off, the name in the request is not
// checked, as in Hadoop, because it protects nothing then.
func (r *Ring) decryptOwn(ctx context.Context, q *request, named *string, v *claviger.KeyVersion,
	e claviger.EDEK) (secret.Bytes, error) {
	if r.cfg.KeyAuthorization {
		if err := r.needBelongs(ctx, e.Version, v.Key, named); err != nil {
			return nil, err
		}
		if err := q.needVersion(ctx, v, authz.KeyDecryptEEK); err != nil {
			return nil, err
		}
	}
	if err := r.needNotInConflict(ctx, "keyring.Decrypt", v); err != nil {
		return nil, err
	}
	one := []claviger.EDEK{e}
	deks, err := r.primary.Unwrap(ctx, *v, q.caller.Short, one)
	if err == nil {
		err = checkOpened(one, deks)
	}
	if err != nil {
		r.drainUnusable(err, v.Key)
		secret.WipeAll(deks...)
		return nil, err
	}
	// This may make an EDEK: some clients send random bytes and use the result as the DEK, as ORC does.
	err = r.used.begin(ctx, e.Version)
	r.opened.record(err)
	if err != nil {
		deks[0].Wipe()
		return nil, err
	}
	return deks[0], nil
}

// drainUnusable drops the ready-made EDEKs of a key if err means that a version of the key is lost: EDEKs under that
// version could not be opened.
func (r *Ring) drainUnusable(err error, key string) {
	if r.queue != nil && errors.Is(err, provider.ErrUnusable) {
		r.queue.Drain(key)
	}
}

// needBelongs returns nil if the version belongs to the key that the request names, otherwise Hadoop's error.
//
// If a source ignores case, it has one key under many spellings. They mean one key here too.
func (r *Ring) needBelongs(ctx context.Context, version, owner string, named *string) error {
	if named != nil && *named == owner {
		return nil
	}
	if named != nil && claviger.FoldName(*named) == claviger.FoldName(owner) && r.origins.history != nil {
		here, err := r.alias(ctx, *named)
		if err != nil {
			return err
		}
		if of, err := r.alias(ctx, owner); err != nil || of == here {
			return err
		}
	}
	name := "null" // as Java prints it
	if named != nil {
		name = *named
	}
	return claviger.Errorf("keyring.belongs", claviger.WrongKey, version, "KeyVersion '%s' does not belong to the key "+
		"'%s'", version, name)
}
