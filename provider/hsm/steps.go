package hsm

import (
	"bytes"
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
	"claviger/shellword"
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

// keyPart is the length in bytes of the common beginning of the CKA_IDs of all versions of one key. It is random and is
// drawn when the key is made. So the token alone shows which versions belong to one key, and which to a deleted key of
// the same name. In versions of older releases these bytes are random too, and differ in each version.
const keyPart = 4

// partOf returns the common part of a CKA_ID in hex, or "" if claviger did not make the CKA_ID.
func partOf(object string) string {
	if len(object) != 2*idSize {
		return ""
	}
	return object[:2*keyPart]
}

// newObject draws the CKA_ID of a version, in hex. sibling is the CKA_ID of the key's newest version; if claviger did
// not make that, or if it is "", the version begins a new key.
func newObject(sibling string) (string, error) {
	id := make([]byte, idSize)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	object := hex.EncodeToString(id)
	if part := partOf(sibling); part != "" {
		object = part + object[len(part):]
	}
	return object, nil
}

// stepPlan is the payload of an intent: how its keys must be, so that a later call can use them.
type stepPlan struct {
	Bits int `json:"bits"`
	// Attributes of the key. A call with other attributes, and so with other rules, must not get objects that were made
	// before. It is nil in intents of older releases.
	Attributes map[string]string `json:"attributes,omitempty"`
	// An adoption gives the key these values too.
	Description *string   `json:"description,omitempty"`
	Created     time.Time `json:"created,omitzero"`
}

// ofOlderRelease reports whether an older release began the step: then the plan says nothing about the key but its
// length.
func (s stepPlan) ofOlderRelease() bool { return s.Attributes == nil && s.Created.IsZero() }

// lock takes the key's lock, which all processes on the store respect. held ends if the lock is lost: then another node
// may make the same step.
func (p *Provider) lock(ctx context.Context, op, key string) (held context.Context, unlock func(), err error) {
	if err := p.ready(op, key); err != nil {
		return nil, nil, err
	}
	if err := p.needsToken(ctx, op); err != nil { // the binding of store and token is not verified yet
		return nil, nil, err
	}
	held, unlock, _, err = metastore.Hold(ctx, p.store, keyLock(key), true)
	p.changed.Store(true) // the caller is about to change the key
	return held, unlock, err
}

// lockKey takes the key's lock, as lock does, and reads the key. k is nil if the store has no such key.
func (p *Provider) lockKey(ctx context.Context, op, key string) (held context.Context, unlock func(), k *metastore.Key,
	err error) {
	held, unlock, err = p.lock(ctx, op, key)
	if err != nil {
		return nil, nil, nil, err
	}
	if k, err = p.key(held, key); err != nil {
		unlock()
		return nil, nil, nil, err
	}
	return held, unlock, k, nil
}

// makeKey makes a key with n versions, with numbers from first on. It writes an intent, makes the objects in the HSM,
// and then writes the key in one transaction.
func (p *Provider) makeKey(ctx context.Context, op, kind string, m claviger.Metadata, n, first int,
	afterStep func(string) error) ([]claviger.KeyVersion, error) {
	ctx, unlock, k, err := p.lockKey(ctx, op, m.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k != nil {
		return nil, claviger.E(op, claviger.KeyExists, m.Name, nil)
	}
	report := func(progress string) error {
		if afterStep == nil {
			return nil
		}
		if err := afterStep(progress); err != nil {
			return claviger.Errorf(op, claviger.KindOf(err), m.Name, "interrupted after %q: %w", progress, err)
		}
		return nil
	}
	if err := p.mayMake(ctx); err != nil {
		return nil, err
	}
	if err := p.refuseHidden(ctx, op, m.Name, nil, n); err != nil {
		return nil, err
	}
	planned := stepPlan{m.BitLength, m.Attributes, m.Description, m.Created}
	list := make([]metastore.Version, n)
	err = p.takeStep(ctx, kind, m.Name, planned, n, first, "", func(intent metastore.Intent) error {
		if err := report("intent"); err != nil {
			return err
		}
		for i, ref := range intent.Refs {
			if list[i], err = p.ensureObject(ctx, op, m.Name, ref, m.BitLength); err == nil {
				err = report(fmt.Sprintf("generated %d of %d", i+1, n))
			}
			if err != nil {
				return err
			}
		}
		m.Versions = metastore.CountVersions(list)
		return p.store.FinishCreate(ctx, intent, metastore.Key{Metadata: m, List: list})
	})
	if err != nil {
		return nil, err
	}
	versions := p.cacheVersions(&m, list)
	return versions, report("committed")
}

// takeStep begins a step, or goes on with it, and calls take to make its versions and to write them to the store. A
// step that fails is remembered, see sweepSteps. The arguments are those of beginStep.
func (p *Provider) takeStep(ctx context.Context, kind, key string, planned stepPlan, n, first int, sibling string,
	take func(metastore.Intent) error) error {
	servers := serversOf(p.store)
	intent, fresh, err := p.beginStep(ctx, kind, key, planned, n, first, sibling)
	if err != nil {
		return err
	}
	if err := take(intent); err != nil {
		p.stepFailed(intent, fresh, servers)
		return err
	}
	p.failed.forget(key)
	return nil
}

// cacheVersions caches versions that were just made. Their check values need no verification.
func (p *Provider) cacheVersions(m *claviger.Metadata, list []metastore.Version) []claviger.KeyVersion {
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

// beginStep writes the intent of a step, or returns the intent that an earlier call of the same step left. First it
// ends other steps of the key, and steps with numbers below first. It takes the step from any process that may still
// make it, so that nothing finishes the step while this process destroys an object that does not work. sibling is the
// CKA_ID of the key's newest version, or "" for a new key. fresh says that this process wrote the intent. The key's
// lock is held.
func (p *Provider) beginStep(ctx context.Context, kind, key string, planned stepPlan, n, first int, sibling string) (
	_ metastore.Intent, fresh bool, err error) {
	if first > 0 {
		if err := p.store.SkipNumbers(ctx, key, first); err != nil {
			return metastore.Intent{}, false, err
		}
	}
	pending, err := p.store.Pending(ctx, key)
	if err != nil {
		return metastore.Intent{}, false, err
	}
	for _, i := range pending {
		var earlier stepPlan
		if i.Op == kind && len(i.Refs) == n && numberedFrom(first, i.Refs) &&
			json.Unmarshal(i.Payload, &earlier) == nil && earlier.Bits == planned.Bits &&
			maps.Equal(earlier.Attributes, planned.Attributes) {
			p.log.Info("a step that was interrupted is continued", "key", key, "step", kind, "begun", i.Begun)
			_, fresh := p.failed.get(i)
			i, err := p.store.Take(ctx, i, i.Op)
			return i, fresh, err
		}
		if err := p.endStep(ctx, i); err != nil {
			return metastore.Intent{}, false, err
		}
	}
	refs := make([]metastore.Ref, n) // without version ids: the store numbers them
	for i := range refs {
		object, err := newObject(cmp.Or(sibling, refs[0].Object))
		if err != nil {
			return metastore.Intent{}, false, err
		}
		refs[i].Object = object
	}
	payload, err := json.Marshal(planned)
	if err != nil {
		return metastore.Intent{}, false, err
	}
	i, err := p.store.Begin(ctx, metastore.Intent{Key: key, Op: kind, Refs: refs, Begun: time.Now(), Payload: payload})
	return i, err == nil, err
}

// numberedFrom reports whether all refs have numbers, from first on. Intents of older releases have none, and a source
// may have used a number since the step began.
func numberedFrom(first int, refs []metastore.Ref) bool {
	for _, r := range refs {
		if n, ok := claviger.NumberOfID(r.ID); !ok || n < first {
			return false
		}
	}
	return true
}

// endStep ends a step that is not continued. It finishes a deletion. If another step has made a working key, endStep
// refuses and leaves the key: the key may be in use, if this store is a copy from before the step ended.
func (p *Provider) endStep(ctx context.Context, i metastore.Intent) error {
	if i.Op == opDelete {
		return p.destroyObjects(ctx, i)
	}
	i, err := p.store.Take(ctx, i, i.Op)
	if err != nil {
		return err
	}
	made, err := p.workingObjects(ctx, i)
	if err != nil {
		return err
	}
	if len(made) > 0 {
		var planned stepPlan
		_ = json.Unmarshal(i.Payload, &planned) // intents of older releases have none
		return claviger.Errorf("hsm.end", claviger.Invalid, i.Key,
			"the step %q of key %q was interrupted, and the token holds what it made: %s; something may be encrypted "+
				"with it, if the metastore is an old copy. Make the same step again (%d bits, %d versions, the same "+
				"attributes), or have an operator adopt it (claviger hsm adopt %s) or set it aside (with --aside)",
			i.Op, i.Key, summarize(made), planned.Bits, len(i.Refs), shellword.Quote(i.Key))
	}
	return p.store.Drop(ctx, i.Key)
}

// workingObjects returns the names of a step's versions that the token holds as working keys. It destroys objects that
// do not work. This process must have taken the step.
func (p *Provider) workingObjects(ctx context.Context, i metastore.Intent) (names []string, err error) {
	for _, ref := range i.Refs {
		name := claviger.VersionName(i.Key, ref.ID)
		raw, err := decodeID("hsm.made", name, ref.Object)
		if err != nil {
			return nil, err
		}
		_, err = p.tok.CheckValue(ctx, raw, name)
		unusable := false
		if errors.Is(err, pkcs11.ErrRefused) {
			unusable, err = p.tok.Unusable(ctx, raw, name)
		}
		switch {
		case claviger.Is(err, claviger.KeyNotFound):
		case unusable: // see remakeObject
			if err = p.mayDestroyUnfinished(ctx, i.Key, ref, oneUnusable); err == nil {
				err = p.destroy(ctx, raw, name)
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

// destroyObjects destroys the objects of a deletion, or of a step whose key is deleted, and removes the intent.
func (p *Provider) destroyObjects(ctx context.Context, i metastore.Intent) error {
	if err := p.mayDestroy(ctx); err != nil {
		return err
	}
	for _, ref := range i.Refs {
		name := claviger.VersionName(i.Key, ref.ID)
		raw, err := decodeID("hsm.clear", name, ref.Object)
		if err != nil {
			return err
		}
		if err := recordDestroyed(ctx, p.store, ref.Object, name); err != nil {
			return err
		}
		if err := p.destroy(ctx, raw, name); err != nil {
			return err
		}
		p.versions.Delete(name)
	}
	return p.store.Drop(ctx, i.Key)
}

// destroy destroys the objects of a version. If another object may have been destroyed in their place, it compares
// token and store at once: then a lost version is known, and is refused, before a request needs it.
func (p *Provider) destroy(ctx context.Context, id []byte, version string) error {
	err := p.tok.Destroy(ctx, id, version)
	if !errors.Is(err, pkcs11.ErrOtherDestroyed) {
		return err
	}
	found := "no key version of the metastore is missing on the token"
	if failed := p.checkFit(ctx, allKeys); failed != nil && !IsMisfit(failed) {
		found = fmt.Sprintf("whether a key is missing could not be seen (%v)", failed)
	} else if h := p.LastHoldings(); len(h.All()) > 0 {
		found = "the token lacks these key versions: " + h.Names()
	}
	return claviger.Answer(claviger.Errorf("hsm.destroy", claviger.Internal, version, "%w; %s", err, found),
		"the key is no longer served; but while the HSM destroyed it, handles of objects changed, and another object "+
			"on the HSM token may have been destroyed in its place: tell an operator to read the server's log, to run "+
			"claviger hsm list, and to restore what is missing from the HSM's backup")
}

// EndSteps ends the pending steps of a store that is, or may be, older than its token: a restored copy, or a database
// that lost changes. Clients may have used the objects of these steps since. Objects of a creation or a roll are
// unknown from then on, and an operator can adopt them. Objects that a deletion was about to destroy are orphans.
// EndSteps skips steps that a node is making now. It also forgets which versions were never used, because that may have
// changed too.
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
		err = endStoredStep(ctx, s, i)
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func endStoredStep(ctx context.Context, s metastore.Store, i metastore.Intent) error {
	if i.Op == opDelete {
		for _, ref := range i.Refs {
			if err := recordDestroyed(ctx, s, ref.Object, claviger.VersionName(i.Key, ref.ID)); err != nil {
				return err
			}
		}
	}
	return s.Drop(ctx, i.Key)
}

// keyLock is the name of the lock of a key's steps.
func keyLock(key string) string { return "key " + key }

// ensureObject makes the HSM object of a version. If the token has an object with its CKA_ID, as this step would have
// made it, ensureObject uses that object.
func (p *Provider) ensureObject(ctx context.Context, op, key string, ref metastore.Ref,
	bits int) (metastore.Version, error) {
	name := claviger.VersionName(key, ref.ID)
	raw, err := decodeID(op, name, ref.Object)
	if err != nil {
		return metastore.Version{}, err
	}
	info, err := p.tok.Find(ctx, raw)
	if errors.Is(err, pkcs11.ErrSeveral) {
		info, err = p.removeSeveral(ctx, key, ref, raw, err)
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
	if errors.Is(err, pkcs11.ErrRefused) && info != nil {
		check, err = p.remakeObject(ctx, key, ref, raw, bits, err)
	}
	if err == nil && info == nil {
		err = p.checkDistinct(op, name, check)
	}
	if errors.Is(err, pkcs11.ErrUnproved) && info == nil { // this call made the object, so nothing uses it
		err = errors.Join(err, p.destroy(ctx, raw, name))
	}
	if err != nil {
		return metastore.Version{}, err
	}
	return metastore.Version{ID: ref.ID, Object: ref.Object, Created: time.Now().Truncate(time.Millisecond),
		Check: check}, nil
}

// checkDistinct returns ErrUnproved if the check value of a new key equals the check value of a version that is in use
// here: then the token computed it with the key of that version. checkDistinct does not compare with versions that were
// not used yet, because the store does not find these by check value.
func (p *Provider) checkDistinct(op, name string, check []byte) error {
	for _, v := range p.versions.Range {
		if e, _ := v.(*entry); e.name != name && bytes.Equal(e.check, check) {
			return claviger.Errorf(op, claviger.Unavailable, name, "%w: the token gives the new key the check value "+
				"of %s; handles of objects may have changed; try again when the HSM is steady", pkcs11.ErrUnproved,
				e.name)
		}
	}
	return nil
}

// What the token holds of an unfinished step, for messages.
const (
	severalObjects = "several objects"
	oneUnusable    = "an object that it refuses to use"
)

// mayDestroyUnfinished refuses to destroy what the token holds of an unfinished step, unless the token proves that the
// store is not an old copy. In an old copy a step may be pending whose version is in use. A token that keeps no data
// objects cannot prove it.
func (p *Provider) mayDestroyUnfinished(ctx context.Context, key string, ref metastore.Ref, held string) error {
	if !p.keepsNoData.Load() {
		return p.mayDestroy(ctx)
	}
	return claviger.Errorf("hsm.mayDestroy", claviger.Invalid, key,
		"the token holds %s of a step with key %q that was interrupted (version %s, CKA_ID %s); something may be "+
			"encrypted with it, if the metastore is an old copy, and this token keeps no data objects that would show "+
			"it; destroy what is not used with the HSM's own tool, and make the same step again", held, key,
		claviger.VersionName(key, ref.ID), ref.Object)
}

// removeSeveral destroys several objects of one CKA_ID, and returns what the token still holds under it. Several
// attempts of a step each made one, because the token did not show the earlier ones. No version uses any of them yet.
func (p *Provider) removeSeveral(ctx context.Context, key string, ref metastore.Ref, raw []byte,
	several error) (*pkcs11.KeyInfo, error) {
	name := claviger.VersionName(key, ref.ID)
	if err := p.mayDestroyUnfinished(ctx, key, ref, severalObjects); err != nil {
		return nil, err
	}
	p.log.Warn("the token holds several objects of a step that was interrupted; the key is made again", "version", name,
		"err", several)
	if err := p.destroy(ctx, raw, name); err != nil {
		return nil, err
	}
	return p.tok.Find(ctx, raw)
}

// remakeObject replaces an object of a step that is not a working key, and returns the check value of the new one.
// SoftHSM, killed within C_GenerateKey, leaves an object with all attributes but its value. No data was ever encrypted
// with it, because no version uses it yet. An object that the token has refused only once stays.
func (p *Provider) remakeObject(ctx context.Context, key string, ref metastore.Ref, raw []byte, bits int,
	broken error) ([]byte, error) {
	name := claviger.VersionName(key, ref.ID)
	if unusable, err := p.tok.Unusable(ctx, raw, name); err != nil {
		return nil, err
	} else if !unusable {
		return p.tok.CheckValue(ctx, raw, name)
	}
	if err := p.mayDestroyUnfinished(ctx, key, ref, oneUnusable); err != nil {
		return nil, err
	}
	p.log.Warn("the token holds an unusable object of a step that was interrupted; the key is made again", "version",
		name, "err", broken)
	if err := p.destroy(ctx, raw, name); err != nil {
		return nil, err
	}
	if err := p.tok.GenerateKey(ctx, raw, name, bits); err != nil {
		return nil, err
	}
	return p.tok.CheckValue(ctx, raw, name)
}

// finishPending finishes interrupted deletions. It logs other interrupted steps: sweepSteps finishes or ends
// them later, or the same step, made again, goes on with them.
func (p *Provider) finishPending(ctx context.Context) error {
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return err
	}
	var interrupted []string
	for _, i := range pending {
		if i.Op != opDelete {
			interrupted = append(interrupted, i.Key)
			continue
		}
		unlock, ok, err := p.store.TryLock(ctx, keyLock(i.Key))
		if err != nil {
			return err
		}
		if !ok {
			continue // another process is finishing it
		}
		err = p.destroyObjects(ctx, i)
		unlock()
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			p.log.Error("a deleted key's objects are still on the token; claviger tries again", "key", i.Key, "err",
				err, "in", watchPause)
		}
	}
	if len(interrupted) > 0 {
		p.log.Info("steps were interrupted; the same step, made again, goes on, and a server finishes or ends them by "+
			"itself after a while", "after", sweepLeftAfter, "count", len(interrupted), "keys",
			summarize(interrupted))
	}
	return nil
}
