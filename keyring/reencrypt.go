package keyring

import (
	"context"
	"errors"
	"fmt"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/secret"
	"claviger/trace"
)

// Reencrypt wraps the DEK of an EDEK under the current version, with the same IV. Kinds: those of Decrypt; Invalid if
// the version is a source's and Config.Reencryption is false.
//
// The version must belong to the key even with key authorization off, although Hadoop would wrap one key's DEK under
// another key then.
func (r *Ring) Reencrypt(ctx context.Context, c claviger.Caller, key string, hasKey bool,
	e claviger.EDEK) (_ claviger.EDEK, err error) {
	ctx, span := trace.Start(ctx, "keyring.Reencrypt")
	defer span.EndWith(&err)
	named := nameIf(hasKey, &key)
	q, err := r.enter(ctx, &c, audit.ReencryptEEK, named, authz.GenerateEEK)
	if err != nil {
		return claviger.EDEK{}, err
	}
	q.did.edeks = 1
	out, err := r.reencrypt(ctx, &q, named, []claviger.EDEK{e})
	if err != nil {
		return claviger.EDEK{}, err
	}
	q.ok(ctx, key, "")
	return out[0], nil
}

// ReencryptBatch re-encrypts many EDEKs, in order. An EDEK of the current version is returned unchanged. If one EDEK
// cannot be re-encrypted, the whole batch fails. For an empty batch the key's rules are not checked, as in Hadoop.
func (r *Ring) ReencryptBatch(ctx context.Context, c claviger.Caller, key string,
	es []claviger.EDEK) (_ []claviger.EDEK, err error) {
	ctx, span := trace.Start(ctx, "keyring.ReencryptBatch")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.ReencryptEEKBatch, &key, authz.GenerateEEK)
	if err != nil {
		return nil, err
	}
	q.did.edeks = len(es)
	out := []claviger.EDEK{}
	if len(es) > 0 {
		if out, err = r.reencrypt(ctx, &q, &key, es); err != nil {
			return nil, err
		}
	}
	q.ok(ctx, key, fmt.Sprintf("reencrypted %d keys", len(es)))
	return out, nil
}

// MayReencryptBatch checks the rules that ReencryptBatch checks first. Package kmsapi calls it before it reads the long
// body of a request. Kind Denied.
func (r *Ring) MayReencryptBatch(ctx context.Context, c claviger.Caller, key string) error {
	q, err := r.admit(&c, audit.ReencryptEEKBatch, key)
	if err != nil {
		return err
	}
	return q.needRight(ctx, &key, authz.GenerateEEK)
}

// reencrypt re-encrypts the EDEKs of one key under its current version. es is not empty.
func (r *Ring) reencrypt(ctx context.Context, q *request, named *string, es []claviger.EDEK) ([]claviger.EDEK, error) {
	var here string // the key's name
	if named != nil {
		// The store's epoch comes before any version is looked up; and Hadoop looks for the key first if it has no
		// rules to check.
		v, err := r.newest(ctx, *named)
		if here = v.Key; here == "" {
			here = *named
		}
		if err != nil && (!r.cfg.KeyAuthorization || !claviger.Is(err, claviger.KeyNotFound)) {
			return nil, r.explainMissing(ctx, err, *named)
		}
	}
	for again := true; ; again = false {
		q.did.from = nil
		out, err := r.reencryptOnce(ctx, q, named, here, es)
		if err == nil || !again || named == nil {
			return out, err
		}
		if errors.Is(err, errTwoKeys) {
			r.forget(here)
		} else if !r.replaced(err, here) {
			return nil, err
		}
	}
}

// errTwoKeys: two keys had the name one after the other, and the key was read from both.
var errTwoKeys = errors.New("the key was deleted and made again while its EDEKs were re-encrypted")

// reencryptOnce is reencrypt with one reading of each version.
func (r *Ring) reencryptOnce(ctx context.Context, q *request, named *string, here string,
	es []claviger.EDEK) ([]claviger.EDEK, error) {
	// The first version is read before the rules are checked, because Hadoop first reports that a version does not
	// belong to the key. The others are read after that: a batch may name a hundred thousand versions, and its sender
	// may have no right.
	b := batch{edeks: es}
	if err := r.readVersions(ctx, q, named, &b, 1); err != nil {
		return nil, r.missingInBatch(ctx, q, err, len(es))
	}
	current, err := r.currentVersion(ctx, here)
	if err != nil {
		return nil, r.explainMissing(ctx, err, here)
	}
	if err := q.needVersion(ctx, &current, authz.KeyGenerateEEK); err != nil {
		return nil, err
	}
	if err := r.readVersions(ctx, q, named, &b, len(es)); err != nil {
		return nil, r.missingInBatch(ctx, q, err, len(es))
	}
	if err := r.needReencryptable(ctx, b.own, &current); err != nil {
		return nil, err
	}
	q.did.version = current.Name
	var out []claviger.EDEK
	if len(b.foreign) > 0 {
		out, err = r.reencryptForeign(ctx, q, current, &b)
	} else {
		out, err = r.primary.Reencrypt(ctx, b.own, current, es)
		r.drainUnusable(err, current.Key)
	}
	if err != nil {
		return nil, err
	}
	if err := r.used.beginEDEKs(ctx, es, b.foreign); err != nil {
		return nil, err
	}
	if err := r.used.begin(ctx, current.Name); err != nil {
		return nil, err
	}
	return out, nil
}

// missingInBatch counts EDEKs whose version a source that is not configured may have, and explains the error for a
// version that is not found.
func (r *Ring) missingInBatch(ctx context.Context, q *request, err error, edeks int) error {
	r.countUnserved(ctx, q, err, authz.KeyGenerateEEK, edeks)
	return r.explainMissing(ctx, err, "")
}

// needReencryptable refuses versions of the primary whose EDEKs must not be re-encrypted under the current version:
// versions of another key, and versions whose name a version of another key at a source may have.
func (r *Ring) needReencryptable(ctx context.Context, own []claviger.KeyVersion, current *claviger.KeyVersion) error {
	const op = "keyring.Reencrypt"
	for i := range own {
		// An EDEK of a key that had the name before must not get the rules of this key.
		if r.cfg.KeyAuthorization && !sameKey(own[i].Of, current.Of) {
			return claviger.E(op, claviger.Unavailable, current.Key, errTwoKeys)
		}
		var err error
		if own[i].Name == current.Name {
			err = r.needNoKnownConflict(ctx, op, &own[i])
		} else {
			err = r.needNoConflict(ctx, op, &own[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// batch has the EDEKs of one re-encryption, and the versions that were read for them.
type batch struct {
	edeks   []claviger.EDEK
	read    int                            // the number of EDEKs whose versions were read
	own     []claviger.KeyVersion          // distinct versions of the primary, in the order of the EDEKs
	foreign map[string]claviger.VersionRef // by name, versions that may be a source's; nil: none
	seen    map[string]struct{}            // names of all versions that were read; nil while there is only one
}

// next returns the next version name, among the first limit EDEKs, that was not returned yet; ok is false at the end.
func (b *batch) next(limit int) (version string, ok bool) {
	for b.read < limit {
		i := b.read
		b.read++
		version := b.edeks[i].Version
		if i == 0 {
			return version, true
		}
		if version == b.edeks[i-1].Version {
			continue
		}
		if _, ok := b.seen[version]; ok {
			continue
		}
		if b.seen == nil {
			b.seen = map[string]struct{}{b.edeks[0].Version: {}}
		}
		b.seen[version] = struct{}{}
		return version, true
	}
	return "", false
}

// readVersions reads each distinct version of the first limit EDEKs that was not read yet, in their order. Each version
// must belong to the key.
func (r *Ring) readVersions(ctx context.Context, q *request, named *string, b *batch, limit int) error {
	for {
		version, ok := b.next(limit)
		if !ok {
			return nil
		}
		q.did.from = append(q.did.from, version)
		v, err := r.ownVersion(ctx, version)
		owner := v.Key
		if err == nil {
			b.own = append(b.own, v)
		} else {
			ref := claviger.ParseVersion(version)
			if !r.mayBeForeign(err, ref) {
				return err
			}
			if b.foreign == nil {
				b.foreign = map[string]claviger.VersionRef{}
			}
			owner, b.foreign[version] = ref.Key, ref
		}
		if err := r.needBelongs(ctx, version, owner, named); err != nil {
			return err
		}
	}
}

// reencryptForeign is reencrypt for a batch with versions that the primary does not have. The DEKs are unwrapped by one
// call for each version, at the primary and at the sources, and then wrapped under the current version by one call.
func (r *Ring) reencryptForeign(ctx context.Context, q *request, current claviger.KeyVersion,
	b *batch) ([]claviger.EDEK, error) {
	if !r.cfg.Reencryption {
		return nil, claviger.Errorf("keyring.Reencrypt", claviger.Invalid, current.Key,
			"key '%s': EDEKs of another KMS's key versions are not re-encrypted here, because "+
				"hadoop.kms.reencryption.crypto.enable is false; set it to true in kms-site.xml and restart",
			current.Key)
	}
	// If the primary cannot wrap, requests to sources would be useless.
	if _, err := r.primary.Wrap(ctx, current, nil, nil); err != nil {
		return nil, err
	}
	old, at := notUnder(current.Name, b.edeks)
	deks := make([]secret.Bytes, len(old))
	defer secret.WipeAll(deks...)
	if err := r.unwrapOld(ctx, q, current, b, old, deks); err != nil {
		return nil, err
	}
	if err := checkOpened(old, deks); err != nil {
		return nil, err // an EDEK that was not decrypted must not be replaced by an EDEK of an empty DEK
	}
	ivs := make([][]byte, len(old))
	for i := range old {
		ivs[i] = old[i].IV
	}
	fresh, err := r.primary.Wrap(ctx, current, ivs, deks)
	if err != nil {
		return nil, err
	}
	out := append([]claviger.EDEK(nil), b.edeks...)
	for i, e := range fresh {
		out[at[i]] = e
	}
	return out, nil
}

// unwrapOld unwraps the EDEKs in old, at the primary and at the sources, and puts the DEKs into deks, which the caller
// wipes.
func (r *Ring) unwrapOld(ctx context.Context, q *request, current claviger.KeyVersion, b *batch, old []claviger.EDEK,
	deks []secret.Bytes) error {
	byVersion, groups := groupByVersion(old)
	for i := range b.own {
		g := byVersion[b.own[i].Name]
		if g == nil {
			continue // the current version: its EDEKs stay as they are
		}
		opened, err := r.primary.Unwrap(ctx, b.own[i], "", g.edeks)
		r.drainUnusable(err, current.Key)
		if err != nil {
			return err
		}
		g.put(opened, deks)
	}
	guard := func(m *claviger.Metadata) error { return r.needSameOrigin(ctx, q, &current, m) }
	return r.waitForSource(ctx, "keyring.Reencrypt", current.Key, func() error {
		for _, g := range groups {
			v, foreign := b.foreign[g.version]
			if !foreign {
				continue
			}
			opened, err := r.openAtSource(ctx, q, useReencrypt, v, "", guard, g.edeks)
			if err != nil {
				return err
			}
			g.put(opened, deks)
		}
		return nil
	})
}

// group has the EDEKs of one version, and their indexes in the batch.
type group struct {
	version string
	edeks   []claviger.EDEK
	at      []int
}

// groupByVersion groups EDEKs by their versions, and returns the groups in the order in which the versions first
// occur.
func groupByVersion(es []claviger.EDEK) (byVersion map[string]*group, inOrder []*group) {
	byVersion = map[string]*group{}
	for i, e := range es {
		g := byVersion[e.Version]
		if g == nil {
			g = &group{version: e.Version}
			byVersion[e.Version] = g
			inOrder = append(inOrder, g)
		}
		g.edeks, g.at = append(g.edeks, e), append(g.at, i)
	}
	return byVersion, inOrder
}

// put stores the DEKs of the group at their places.
func (g *group) put(deks, into []secret.Bytes) {
	for i, dek := range deks {
		into[g.at[i]] = dek
	}
}
