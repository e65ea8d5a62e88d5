package hsm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// Ops of intents.
const (
	opCreate = "create"
	opRoll   = "roll"
	opImport = "import"
	opDelete = "delete"
)

// idSize is the length of a CKA_ID in bytes.
const idSize = 8

// keyPart is the length in bytes of what the CKA_IDs of all versions of one key begin with.
// It is random, drawn when the key is made. So the token alone tells the versions of a key
// from those of another that had the name before and was deleted. Versions that older
// programs made begin with random bytes each.
const keyPart = 4

// partOf returns the key's part of a CKA_ID in hex; "" where it is none of ours.
func partOf(object string) string {
	if len(object) != 2*idSize {
		return ""
	}
	return object[:2*keyPart]
}

// newObject draws the CKA_ID of a version, in hex: of the key whose newest version has the
// CKA_ID kin, of a new key where kin is none of ours.
func newObject(kin string) (string, error) {
	id := make([]byte, idSize)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	object := hex.EncodeToString(id)
	if part := partOf(kin); part != "" {
		object = part + object[len(part):]
	}
	return object, nil
}

// plan is the payload of an intent: what its keys must be like for a later call
// to use them.
type plan struct {
	Bits int `json:"bits"`
	// Attributes of a key that is made. Who makes it with others, and so under other
	// rules, gets nothing of what was made before. nil in what an older program wrote.
	Attributes map[string]string `json:"attributes,omitempty"`
	// What an adoption gives the key beside that.
	Description *string   `json:"description,omitempty"`
	Created     time.Time `json:"created,omitzero"`
}

// lock takes the key's lock, which all processes on the store respect.
// held ends where the lock is lost: another node may be at the same step then.
func (p *Provider) lock(ctx context.Context, op, key string) (held context.Context, unlock func(), err error) {
	if err := p.ready(op, key); err != nil {
		return nil, nil, err
	}
	held, unlock, _, err = metastore.Hold(ctx, p.store, keyLock(key), true)
	p.changed.Store(true) // soon
	return held, unlock, err
}

// make makes a key with n versions, numbered from first at least: an intent, the
// HSM's objects, then the key itself in one transaction.
func (p *Provider) make(ctx context.Context, op, kind string, m claviger.Metadata, n, first int,
	step func(string) error) ([]claviger.KeyVersion, error) {
	ctx, unlock, err := p.lock(ctx, op, m.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k, err := p.key(ctx, m.Name); err != nil {
		return nil, err
	} else if k != nil {
		return nil, claviger.E(op, claviger.KeyExists, m.Name, nil)
	}
	told := func(what string) error {
		if step == nil {
			return nil
		}
		if err := step(what); err != nil {
			return claviger.Errorf(op, claviger.KindOf(err), m.Name, "broken off after %q: %w", what, err)
		}
		return nil
	}
	if err := p.mayMake(ctx); err != nil {
		return nil, err
	}
	if err := p.unhide(ctx, op, m.Name, nil, n); err != nil {
		return nil, err
	}
	intent, err := p.begin(ctx, kind, m.Name, plan{m.BitLength, m.Attributes, m.Description, m.Created}, n, first, "")
	if err == nil {
		err = told("intent")
	}
	if err != nil {
		return nil, err
	}
	list := make([]metastore.Version, n)
	for i, ref := range intent.Refs {
		if list[i], err = p.ensure(ctx, op, m.Name, ref, m.BitLength); err == nil {
			err = told(fmt.Sprintf("generated %d of %d", i+1, n))
		}
		if err != nil {
			return nil, err
		}
	}
	m.Versions = metastore.CountVersions(list)
	if err := p.store.Insert(ctx, metastore.Key{Metadata: m, List: list}); err != nil {
		return nil, err
	}
	vs := p.remember(&m, list)
	return vs, told("committed")
}

// remember caches versions that were just made: their check values are known to
// be right.
func (p *Provider) remember(m *claviger.Metadata, list []metastore.Version) []claviger.KeyVersion {
	vs := make([]claviger.KeyVersion, len(list))
	for i, v := range list {
		name := claviger.VersionName(m.Name, v.ID)
		vs[i] = claviger.KeyVersion{Key: m.Name, Name: name, BitLength: m.BitLength}
		if e, err := newEntry(m, v); err == nil {
			e.verified.Store(p.epoch.Load() + 1)
			p.versions.Store(name, e)
		}
	}
	return vs
}

// begin writes the intent of a step, or takes up the one that an earlier call of
// the same step left. What another step left is ended first, and so is what has numbers
// below first. kin is the CKA_ID of the key's newest version, "" of a new key. The key's
// lock is held.
func (p *Provider) begin(ctx context.Context, kind, key string, want plan, n, first int, kin string) (
	metastore.Intent, error) {
	if first > 0 {
		if err := p.store.SkipNumbers(ctx, key, first); err != nil {
			return metastore.Intent{}, err
		}
	}
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return metastore.Intent{}, err
	}
	for _, i := range pending {
		if i.Key != key {
			continue
		}
		var was plan
		if i.Op == kind && len(i.Refs) == n && numberedFrom(first, i.Refs) && json.Unmarshal(i.Payload, &was) == nil &&
			was.Bits == want.Bits && maps.Equal(was.Attributes, want.Attributes) {
			p.log.Info("a step that was broken off is taken up again", "key", key, "step", kind, "begun", i.Begun)
			return i, nil
		}
		if err := p.end(ctx, i); err != nil {
			return metastore.Intent{}, err
		}
	}
	refs := make([]metastore.Ref, n) // without ids: the store numbers them
	for i := range refs {
		object, err := newObject(cmp.Or(kin, refs[0].Object))
		if err != nil {
			return metastore.Intent{}, err
		}
		refs[i].Object = object
	}
	payload, err := json.Marshal(want)
	if err != nil {
		return metastore.Intent{}, err
	}
	return p.store.Begin(ctx, metastore.Intent{Key: key, Op: kind, Refs: refs, Begun: time.Now(), Payload: payload})
}

// numberedFrom tells whether all refs have numbers, from first at least. An older
// program's have none, and a source may have used a number since the step began.
func numberedFrom(first int, refs []metastore.Ref) bool {
	for _, r := range refs {
		if n, ok := claviger.NumberOfID(r.ID); !ok || n < first {
			return false
		}
	}
	return true
}

// end ends a step that nobody will finish. A deletion is finished. Of what another step
// has made nobody can say that it was never used, for this store may be a copy from
// before the step was done: a key that works is left, and the step refused.
func (p *Provider) end(ctx context.Context, i metastore.Intent) error {
	if i.Op == opDelete {
		return p.clear(ctx, i)
	}
	made, err := p.made(ctx, i)
	if err != nil {
		return err
	}
	if len(made) > 0 {
		var was plan
		_ = json.Unmarshal(i.Payload, &was) // an older program's has none
		return claviger.Errorf("hsm.end", claviger.Invalid, i.Key,
			"the step %q of key %q was broken off, and the token holds what it made: %s; something may be encrypted "+
				"with it, if the metastore is an old copy. Make the same step again (%d bits, %d versions, the same "+
				"attributes), or have an operator adopt it (claviger hsm adopt %s) or set it aside (with --aside)",
			i.Op, i.Key, some(made), was.Bits, len(i.Refs), i.Key)
	}
	return p.store.Drop(ctx, i.Key)
}

// made returns the versions of a step that the token holds as keys that work. What does
// not work is destroyed.
func (p *Provider) made(ctx context.Context, i metastore.Intent) (names []string, err error) {
	for _, ref := range i.Refs {
		name := claviger.VersionName(i.Key, ref.ID)
		raw, err := objectID("hsm.made", name, ref.Object)
		if err != nil {
			return nil, err
		}
		_, err = p.tok.CheckValue(ctx, raw, name)
		switch {
		case claviger.Is(err, claviger.KeyNotFound):
		case claviger.Is(err, claviger.Internal) && !errors.Is(err, pkcs11.ErrSeveral): // see ensure
			if err = p.mayDestroy(ctx); err == nil {
				err = p.tok.Destroy(ctx, raw, name)
			}
			if err != nil {
				return nil, err
			}
		case err != nil && !errors.Is(err, pkcs11.ErrSeveral):
			return nil, err
		default:
			names = append(names, name)
		}
	}
	return names, nil
}

// clear destroys the objects of a deletion, or of a step whose key is destroyed, and ends
// its intent.
func (p *Provider) clear(ctx context.Context, i metastore.Intent) error {
	if err := p.mayDestroy(ctx); err != nil {
		return err
	}
	for _, ref := range i.Refs {
		name := claviger.VersionName(i.Key, ref.ID)
		raw, err := objectID("hsm.clear", name, ref.Object)
		if err != nil {
			return err
		}
		if err := noteDestroyed(ctx, p.store, ref.Object, name); err != nil {
			return err
		}
		if err := p.tok.Destroy(ctx, raw, name); err != nil {
			return err
		}
		p.versions.Delete(name)
	}
	return p.store.Drop(ctx, i.Key)
}

// EndSteps ends the steps that are pending in a store which is older than its token, or
// may be: a restored copy, a database that lost changes. What they made may have been used
// since. What a creation or a roll made is unknown then, and adopt takes it; what a
// deletion was about to destroy is an orphan. Steps that a node is at are left. Versions
// that were never used by what the store knows may have been used since, too.
func EndSteps(ctx context.Context, s metastore.Store) error {
	if err := s.ForgetUnused(ctx); err != nil {
		return err
	}
	pending, err := s.Pending(ctx)
	if err != nil {
		return err
	}
	for _, i := range pending {
		unlock, ok, err := s.TryLock(ctx, keyLock(i.Key))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		err = endStep(ctx, s, i)
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func endStep(ctx context.Context, s metastore.Store, i metastore.Intent) error {
	if i.Op == opDelete {
		for _, ref := range i.Refs {
			if err := noteDestroyed(ctx, s, ref.Object, claviger.VersionName(i.Key, ref.ID)); err != nil {
				return err
			}
		}
	}
	return s.Drop(ctx, i.Key)
}

// keyLock is the name of the lock of a key's steps.
func keyLock(key string) string { return "key " + key }

// ensure makes the HSM object of a version, or adopts the one that is there
// under its CKA_ID, if that is as it would have been made.
func (p *Provider) ensure(ctx context.Context, op, key string, ref metastore.Ref,
	bits int) (metastore.Version, error) {
	name := claviger.VersionName(key, ref.ID)
	raw, err := objectID(op, name, ref.Object)
	if err != nil {
		return metastore.Version{}, err
	}
	info, err := p.tok.Find(ctx, raw)
	if errors.Is(err, pkcs11.ErrSeveral) {
		// Each of several attempts made one, for the token did not show what the earlier
		// had made. In a store that is no old copy no version stands on any of them yet.
		if p.keepsNone.Load() {
			return metastore.Version{}, claviger.Errorf(op, claviger.Invalid, key,
				"the token holds several objects of a step with key %q that was broken off (version %s, CKA_ID "+
					"%s); something may be encrypted with one of them, if the metastore is an old copy, "+
					"and this token keeps no data objects that would tell; destroy those that are not used with "+
					"the HSM's own tool, and make the same step again", key, name, ref.Object)
		}
		p.log.Warn("the token holds several objects of a step that was broken off; it is made anew", "version", name,
			"err", err)
		if err = p.mayDestroy(ctx); err == nil {
			err = p.tok.Destroy(ctx, raw, name)
		}
		if err == nil {
			info, err = p.tok.Find(ctx, raw)
		}
	}
	switch {
	case err != nil:
		return metastore.Version{}, err
	case info == nil:
		err = p.tok.GenerateKey(ctx, raw, name, bits)
	case info.Label != name || info.Bits != bits || !info.Sensitive || info.Extractable || !info.Encrypt:
		err = claviger.Errorf(op, claviger.Internal, name,
			"the token holds an object with CKA_ID %s that was not made for this version (label %q, %d bits, "+
				"sensitive=%t, extractable=%t); see claviger hsm list", ref.Object, info.Label, info.Bits,
			info.Sensitive,
			info.Extractable)
	}
	if err != nil {
		return metastore.Version{}, err
	}
	check, err := p.tok.CheckValue(ctx, raw, name)
	if claviger.Is(err, claviger.Internal) && info != nil {
		// An object of ours that is no working key. SoftHSM, killed within
		// C_GenerateKey, leaves one that has all attributes but its value. Nothing was
		// ever encrypted with it: no version stands on it yet.
		p.log.Warn("the token holds an unusable object of a step that was broken off; it is made anew", "version",
			name, "err", err)
		if err = p.mayDestroy(ctx); err == nil {
			err = p.tok.Destroy(ctx, raw, name)
		}
		if err == nil {
			err = p.tok.GenerateKey(ctx, raw, name, bits)
		}
		if err == nil {
			check, err = p.tok.CheckValue(ctx, raw, name)
		}
	}
	if err != nil {
		return metastore.Version{}, err
	}
	return metastore.Version{ID: ref.ID, Object: ref.Object, Created: time.Now().Truncate(time.Millisecond),
		Check: check}, nil
}

// finishPending finishes deletions, and tells of other steps that were broken
// off: those wait for the same step to be made again.
func (p *Provider) finishPending(ctx context.Context) error {
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return err
	}
	for _, i := range pending {
		if i.Op != opDelete {
			p.log.Info("a step was broken off; making it again finishes it", "key", i.Key, "step", i.Op, "begun",
				i.Begun)
			continue
		}
		unlock, ok, err := p.store.TryLock(ctx, keyLock(i.Key))
		if err != nil {
			return err
		}
		if !ok {
			continue // another process is at it
		}
		err = p.clear(ctx, i)
		unlock()
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			p.log.Error("a deleted key's objects are still on the token; they are destroyed at the next start, or "+
				"when a key of that name is made", "key", i.Key, "err", err)
		}
	}
	return nil
}
