package keyring

import (
	"context"
	"errors"
	"fmt"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

// MaxGenerate is how many EDEKs one Generate makes. Hadoop has no such limit, and
// goes out of memory; its clients ask for 500.
const MaxGenerate = 100_000

// Generate makes n EDEKs under the key's current version; n <= 0 makes none, and
// then the key's rules are not asked and the key need not exist, as in Hadoop.
// What the queue does not hold is made in one call. Kinds KeyNotFound, and
// Invalid where n is above MaxGenerate.
func (r *Ring) Generate(ctx context.Context, c claviger.Caller, key string, n int) ([]claviger.EDEK, error) {
	q, err := r.enter(ctx, &c, audit.GenerateEEK, &key, authz.GenerateEEK)
	if err != nil {
		return nil, err
	}
	if n > MaxGenerate {
		return nil, claviger.Errorf("keyring.Generate", claviger.Invalid, key, "%d EDEKs were asked for; at most %d are made in one request", n, MaxGenerate)
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

// generate asks the rules of the key whose EDEKs it hands out: the queue may have
// made them under a key that took the name after the rules were asked.
func (r *Ring) generate(ctx context.Context, q *request, key string, n int) ([]claviger.EDEK, error) {
	if r.service != nil {
		if err := r.epochs.catchUp(ctx, key); err != nil {
			return nil, err
		}
		if err := r.needKey(ctx, q, key, authz.KeyGenerateEEK); err != nil {
			return nil, err
		}
		return r.service.Generate(ctx, key, n)
	}
	v, err := r.newest(ctx, key)
	if err != nil {
		return nil, r.explainMissing(ctx, err, key)
	}
	key = v.Key
	if err := q.needVersion(ctx, &v, authz.KeyGenerateEEK); err != nil {
		return nil, err
	}
	// Nothing would open what is made with it.
	if err := r.needNotInConflict(ctx, "keyring.Generate", &v); err != nil {
		return nil, err
	}
	edeks, err := r.queue.Take(ctx, key, n)
	if err != nil || !r.cfg.KeyAuthorization {
		return edeks, err
	}
	asked := v.Name
	for _, e := range edeks {
		if e.Version == asked {
			continue // of the key that was asked about; as a rule all are
		}
		made, err := r.ownVersion(ctx, e.Version)
		if err != nil {
			return nil, err
		}
		if err := q.needSame(ctx, &v, &made, authz.KeyGenerateEEK); err != nil {
			return nil, err
		}
		asked = e.Version
	}
	if r.pinned != nil {
		// Where names are given again the name proves nothing. What the queue holds was
		// made under a version that was read before now.
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

// needSame asks the rules anew where a version that was read later is not of the
// key that they were asked for.
func (q *request) needSame(ctx context.Context, asked, later *claviger.KeyVersion, right authz.KeyOp) error {
	if sameKey(asked.Of, later.Of) {
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
		edeks, err := eek.Generate(ctx, r.under(v), v.Name, v.BitLength/8, n, nil)
		r.drainUnusable(err, key)
		if err == nil || !again || !r.replaced(err, key) {
			return edeks, err
		}
	}
}

// Decrypt opens one EDEK. key is the name that the request gave, "" and
// hasKey false where it gave none. The caller owns the DEK, and wipes it. Kinds
// VersionNotFound, WrongKey, BadIV, and where a source is asked
// SourceUnreachable and SourceRefused.
func (r *Ring) Decrypt(ctx context.Context, c claviger.Caller, key string, hasKey bool, e claviger.EDEK) (secret.Bytes, error) {
	named := nameIf(hasKey, &key)
	q, err := r.enter(ctx, &c, audit.DecryptEEK, named, authz.DecryptEEK)
	if err != nil {
		return nil, err
	}
	q.did = work{version: e.Version, edeks: 1}
	var dek secret.Bytes
	for again := true; ; again = false {
		v, err := r.ownVersion(ctx, e.Version)
		switch {
		case err == nil:
			if dek, err = r.decryptOwn(ctx, &q, named, &v, e); err == nil {
				// A client may make an EDEK by having random bytes opened, as ORC does.
				err = r.used.begin(ctx, e.Version)
				r.opened.saw(err)
				if err != nil {
					dek.Wipe()
				}
			} else if again && r.replaced(err, v.Key) {
				continue
			}
		case r.mayBeForeign(err, e.Version):
			dek, err = r.decryptForeign(ctx, &q, named, e)
		default:
			r.opened.saw(err)
		}
		if err != nil {
			r.noteUnserved(ctx, &q, err, authz.KeyDecryptEEK, 1)
			return nil, r.explainMissing(ctx, err, key)
		}
		q.ok(ctx, key, "")
		return dek, nil
	}
}

func nameIf(given bool, key *string) *string {
	if given {
		return key
	}
	return nil
}

// decryptOwn opens an EDEK of a version of the primary. With key authorization off the name in the request is not looked at,
// as in Hadoop: it guards nothing then.
func (r *Ring) decryptOwn(ctx context.Context, q *request, named *string, v *claviger.KeyVersion, e claviger.EDEK) (secret.Bytes, error) {
	if r.cfg.KeyAuthorization {
		if err := r.belongs(ctx, e.Version, v.Key, named); err != nil {
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
	var deks []secret.Bytes
	var err error
	if r.service != nil {
		if deks, err = r.service.Unwrap(ctx, v.Key, q.caller.Short, one); err == nil {
			err = fits(one, deks)
		}
	} else {
		deks, err = eek.Unwrap(ctx, r.under(*v), one)
	}
	if err != nil {
		r.drainUnusable(err, v.Key)
		wipeAll(deks)
		return nil, err
	}
	return deks[0], nil
}

// drainUnusable gives up the EDEKs of a key that were made beforehand, where a version
// of it proves to be lost: those under it would never be opened.
func (r *Ring) drainUnusable(err error, key string) {
	if r.queue != nil && errors.Is(err, provider.ErrUnusable) {
		r.queue.Drain(key)
	}
}

// belongs says that the version is one of the key that the request names, or
// what Hadoop says where it isn't.
//
// A source that does not tell upper from lower case has one key under many
// spellings; they are one here too.
func (r *Ring) belongs(ctx context.Context, version, owner string, named *string) error {
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
	return claviger.Errorf("keyring.belongs", claviger.WrongKey, version, "KeyVersion '%s' does not belong to the key '%s'", version, name)
}

// Reencrypt wraps one EDEK's DEK anew under the current version, same IV. Kinds
// as of Decrypt; Invalid where the version is a source's and
// Config.Reencryption is false.
//
// That the version must belong to the key is asked even with key authorization
// off, where Hadoop would wrap one key's DEK under another.
func (r *Ring) Reencrypt(ctx context.Context, c claviger.Caller, key string, hasKey bool, e claviger.EDEK) (claviger.EDEK, error) {
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

// ReencryptBatch does so for many, in order; an EDEK that is at the current
// version already comes back as it was. One that can't be re-encrypted fails the
// whole. For an empty batch the key's rules are not asked, as in Hadoop.
func (r *Ring) ReencryptBatch(ctx context.Context, c claviger.Caller, key string, es []claviger.EDEK) ([]claviger.EDEK, error) {
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

// MayReencryptBatch asks the rules that ReencryptBatch asks first, for a face that does
// not want to wait for a long body of a caller without the right. Kind Denied.
func (r *Ring) MayReencryptBatch(ctx context.Context, c claviger.Caller, key string) error {
	q, err := r.enterUnasked(&c, audit.ReencryptEEKBatch, key)
	if err != nil {
		return err
	}
	return q.need(ctx, &key, authz.GenerateEEK)
}

// reencrypt brings the EDEKs of one key under its current version. es is not
// empty.
func (r *Ring) reencrypt(ctx context.Context, q *request, named *string, es []claviger.EDEK) ([]claviger.EDEK, error) {
	var here string // the key's name
	if named != nil {
		// As new as the store before any version is looked up; and Hadoop looks for the
		// key first where it has no rules to ask.
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

// errTwoKeys: what was read of a key, at different times, is of two keys that had
// its name one after the other.
var errTwoKeys = errors.New("the key was deleted and made anew while its EDEKs were re-encrypted")

// reencryptOnce is reencrypt by one reading of each version.
func (r *Ring) reencryptOnce(ctx context.Context, q *request, named *string, here string, es []claviger.EDEK) ([]claviger.EDEK, error) {
	// The first version is looked up before the rules are asked, since Hadoop says first
	// that a version is not the key's. The others wait for the rules: a batch may name a
	// hundred thousand, and the sender may have no right.
	foreign := map[string]struct{}{}
	own, err := r.checkVersions(ctx, q, named, es[:1], 0, nil, foreign)
	if err != nil {
		r.noteUnserved(ctx, q, err, authz.KeyGenerateEEK, len(es))
		return nil, r.explainMissing(ctx, err, "")
	}
	current, err := r.currentVersion(ctx, here)
	if err != nil {
		return nil, r.explainMissing(ctx, err, here)
	}
	key := current.Key
	if err := q.needVersion(ctx, &current, authz.KeyGenerateEEK); err != nil {
		return nil, err
	}
	if own, err = r.checkVersions(ctx, q, named, es, 1, own, foreign); err != nil {
		r.noteUnserved(ctx, q, err, authz.KeyGenerateEEK, len(es))
		return nil, r.explainMissing(ctx, err, "")
	}
	for i := range own {
		// An EDEK of a key that had the name before must not come under the rules of
		// this one.
		if r.cfg.KeyAuthorization && !sameKey(own[i].Of, current.Of) {
			return nil, claviger.E("keyring.Reencrypt", claviger.Unavailable, key, errTwoKeys)
		}
		if own[i].Name == current.Name {
			err = r.needNoKnownConflict(ctx, "keyring.Reencrypt", &own[i])
		} else {
			err = r.needNoConflict(ctx, "keyring.Reencrypt", &own[i])
		}
		if err != nil {
			return nil, err
		}
	}
	q.did.version = current.Name
	var out []claviger.EDEK
	switch {
	case len(foreign) > 0:
		out, err = r.reencryptForeign(ctx, q, current, own, foreign, es)
	case r.service != nil:
		out, err = r.reencryptAtPrimary(ctx, key, current.Name, es)
	default:
		out, err = eek.Reencrypt(ctx, r.underEach(own), r.under(current), current.Name, es)
		r.drainUnusable(err, current.Key)
	}
	if err != nil {
		return nil, err
	}
	if err := r.used.beginEDEKs(ctx, es, foreign); err != nil {
		return nil, err
	}
	if err := r.used.begin(ctx, current.Name); err != nil {
		return nil, err
	}
	return out, nil
}

// underEach is under for several versions.
func (r *Ring) underEach(vs []claviger.KeyVersion) provider.BlockEncrypter {
	if r.pinned == nil {
		return r.blocks
	}
	return pins{r.pinned, vs}
}

// pins encrypts under a few versions.
type pins struct {
	provider.Pinned
	versions []claviger.KeyVersion
}

func (p pins) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	for _, v := range p.versions {
		if v.Name == version {
			return encryptOf(ctx, p.Pinned, v, blocks)
		}
	}
	return claviger.Errorf("keyring.encrypt", claviger.Internal, version, "it was not read before it is used")
}

// checkVersions looks up each distinct version of the batch from the place first on, in
// its order. It appends those of the primary to own, which it returns, and puts those that
// may be a source's into foreign. All must belong to the key.
func (r *Ring) checkVersions(ctx context.Context, q *request, named *string, es []claviger.EDEK, first int,
	own []claviger.KeyVersion, foreign map[string]struct{}) ([]claviger.KeyVersion, error) {
	var seen map[string]struct{} // made when there is a second version
	for i := first; i < len(es); i++ {
		version := es[i].Version
		if i > 0 {
			if version == es[i-1].Version {
				continue
			}
			if _, ok := seen[version]; ok {
				continue
			}
			if seen == nil {
				seen = map[string]struct{}{es[0].Version: {}}
			}
			seen[version] = struct{}{}
		}
		q.did.from = append(q.did.from, version)
		v, err := r.ownVersion(ctx, version)
		owner := v.Key
		if err == nil {
			own = append(own, v)
		} else {
			if !r.mayBeForeign(err, version) {
				return nil, err
			}
			owner, _ = claviger.KeyOfVersion(version)
			foreign[version] = struct{}{}
		}
		if err := r.belongs(ctx, version, owner, named); err != nil {
			return nil, err
		}
	}
	return own, nil
}

// reencryptAtPrimary has a primary that is a KMS elsewhere do the work. EDEKs
// under the current version are not sent.
func (r *Ring) reencryptAtPrimary(ctx context.Context, key, current string, es []claviger.EDEK) ([]claviger.EDEK, error) {
	out := append([]claviger.EDEK(nil), es...)
	old, at := notUnder(current, es)
	if len(old) == 0 {
		return out, nil
	}
	fresh, err := r.service.Reencrypt(ctx, key, old)
	if err != nil {
		return nil, err
	}
	if len(fresh) != len(old) {
		return nil, claviger.Errorf("keyring.Reencrypt", claviger.Internal, key, "primary returned %d EDEKs for %d", len(fresh), len(old))
	}
	for i, e := range fresh {
		out[at[i]] = e
	}
	return out, nil
}

// notUnder returns the EDEKs that are not under the version, and their places.
func notUnder(version string, es []claviger.EDEK) (old []claviger.EDEK, at []int) {
	for i, e := range es {
		if e.Version != version {
			old, at = append(old, e), append(at, i)
		}
	}
	return old, at
}

// reencryptForeign is reencrypt where versions in foreign are not ours: DEKs are
// unwrapped, at the primary by one call for each version and at the sources,
// and then wrapped under the current version by one call.
func (r *Ring) reencryptForeign(ctx context.Context, q *request, current claviger.KeyVersion, ours []claviger.KeyVersion,
	foreign map[string]struct{}, es []claviger.EDEK) ([]claviger.EDEK, error) {
	const op = "keyring.Reencrypt"
	key := current.Key
	if !r.cfg.Reencryption {
		return nil, claviger.Errorf(op, claviger.Invalid, key,
			"key '%s': EDEKs of another KMS's key versions are not brought under a version of this one: "+
				"hadoop.kms.reencryption.crypto.enable is false; set it to true in kms-site.xml and restart", key)
	}
	if r.service != nil {
		return nil, claviger.Errorf(op, claviger.Unsupported, key,
			"the provider %s wraps no DEK that it has not made, so EDEKs of other providers' key versions can't be re-encrypted under it", r.PrimaryURI())
	}
	old, at := notUnder(current.Name, es)
	deks := make([]secret.Bytes, len(old))
	defer wipeAll(deks)
	ivs := make([][]byte, len(old))
	var own group
	var theirs []*group // in the order in which their versions first occur
	byVersion := make(map[string]*group, len(foreign))
	for i, e := range old {
		ivs[i] = e.IV
		g := &own
		if _, ok := foreign[e.Version]; ok {
			if g = byVersion[e.Version]; g == nil {
				g = &group{}
				byVersion[e.Version] = g
				theirs = append(theirs, g)
			}
		}
		g.edeks, g.at = append(g.edeks, e), append(g.at, i)
	}
	unwrapped, err := eek.Unwrap(ctx, r.underEach(ours), own.edeks)
	r.drainUnusable(err, current.Key)
	if err != nil {
		return nil, err
	}
	own.put(unwrapped, deks)
	guard := func(m *claviger.Metadata) error { return r.needSameOrigin(ctx, q, &current, m) }
	err = r.away(ctx, op, key, func() error {
		for _, g := range theirs {
			theirName, _ := claviger.KeyOfVersion(g.edeks[0].Version)
			unwrapped, err := r.unwrapAtSource(ctx, q, useReencrypt, theirName, "", guard, g.edeks)
			if err != nil {
				return err
			}
			g.put(unwrapped, deks)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	fresh, err := eek.Wrap(ctx, r.under(current), current.Name, ivs, deks)
	if err != nil {
		return nil, err
	}
	out := append([]claviger.EDEK(nil), es...)
	for i, e := range fresh {
		out[at[i]] = e
	}
	return out, nil
}

// group is the EDEKs of a batch that are opened together, and their places in
// it.
type group struct {
	edeks []claviger.EDEK
	at    []int
}

func (g *group) put(deks, into []secret.Bytes) {
	for i, dek := range deks {
		into[g.at[i]] = dek
	}
}

func wipeAll(deks []secret.Bytes) {
	for _, dek := range deks {
		dek.Wipe()
	}
}
