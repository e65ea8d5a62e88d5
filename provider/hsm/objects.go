package hsm

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// Mark says what uses an object on the token.
type Mark string

// The marks.
const (
	InUse   Mark = "in use"  // a version that the store knows
	Pending Mark = "pending" // an interrupted step made it; the same step, made again, uses it
	Deleted Mark = "deleted" // a version of a deleted key that can come back
	// Orphan: this store has destroyed the object, but the token still holds it. The token is bound to this store
	// alone, and nothing refers to the object. Orphans may be pruned.
	Orphan Mark = "orphan"
	// Unknown: the object is named like an object of claviger, and this store does not know it. The store is older than
	// the token, or the key belongs to another store. Unknown objects are never pruned.
	Unknown Mark = "unknown"
	Aside   Mark = "set aside" // unknown, and an operator has decided to keep it
	Foreign Mark = "foreign"   // not named like an object of claviger
)

// Marks lists the marks in the order of reports.
func Marks() []Mark { return []Mark{InUse, Deleted, Pending, Unknown, Aside, Orphan, Foreign} }

// Object is an AES key on the token.
type Object struct {
	ID          string `json:"id"` // CKA_ID in hex
	Label       string `json:"label"`
	Bits        int    `json:"bits"`
	Extractable bool   `json:"extractable"`
	Sensitive   bool   `json:"sensitive"`
	// WasOutside is the same as in pkcs11.KeyInfo.
	WasOutside bool `json:"wasOutside,omitempty"`
	// Damaged: it has no length, so it is not a complete key. SoftHSM leaves such objects if it is killed within
	// C_GenerateKey. It reports them as not sensitive.
	Damaged bool `json:"damaged,omitempty"`
	Mark    Mark `json:"mark"`
	// Since is set for orphans only: CKA_START_DATE, or the time when a server or a prune first found that nothing
	// refers to the object. It is nil if that is not known.
	Since *time.Time `json:"since,omitempty"`

	deletes bool // pending: the step deletes the key
}

// madeByStep reports whether an interrupted step made the object. It may be in use, if the store is a copy from before
// the step ended.
func (o Object) madeByStep() bool { return o.Mark == Pending && !o.deletes }

// adoptable reports whether an operator can adopt the object.
func (o Object) adoptable() bool { return o.Mark == Unknown || o.Mark == Aside || o.madeByStep() }

// Key returns the key name in the object's label.
func (o Object) Key() string {
	key, _ := claviger.KeyOfVersion(o.Label)
	return key
}

// Alarm returns a warning about a damaged key, or about a key that the token does not protect; "" for other keys.
func (o Object) Alarm() string {
	switch {
	case o.Damaged:
		return "  DAMAGED: an incomplete key, which has encrypted nothing; destroy it with the HSM's own tool"
	case o.Extractable:
		return "  EXTRACTABLE!"
	case !o.Sensitive:
		return "  NOT SENSITIVE!"
	}
	return ""
}

// Unguarded reports whether the object is a key of claviger that could leave the token.
func (o Object) Unguarded() bool { return o.Alarm() != "" && !o.Damaged && o.Mark != Foreign }

// settingAside is the setting with the CKA_IDs that were set aside, as a JSON list.
const settingAside = "hsm.aside"

// Objects returns all AES keys on the token with their marks.
func (p *Provider) Objects(ctx context.Context) ([]Object, error) {
	keys, err := p.tok.List(ctx)
	if err != nil {
		return nil, err
	}
	// Read the token first: an intent is written before its objects are made. The transaction that makes the objects
	// part of a key removes the intent.
	r, err := p.records(ctx)
	if err != nil {
		return nil, err
	}
	list, err := p.markWith(ctx, keys, r)
	if err != nil {
		return nil, err
	}
	unreferenced := false
	for _, o := range list {
		unreferenced = unreferenced || o.Mark == Orphan || o.Mark == Unknown
	}
	if !unreferenced {
		return list, nil
	}
	// Objects to which nothing refers may have been destroyed meanwhile.
	if keys, err = p.tok.List(ctx); err != nil {
		return nil, err
	}
	still := map[string]bool{}
	for _, k := range keys {
		still[fmt.Sprintf("%x", k.ID)] = true
	}
	kept := list[:0]
	for _, o := range list {
		if still[o.ID] || o.Mark != Orphan && o.Mark != Unknown {
			kept = append(kept, o)
		}
	}
	return kept, nil
}

// settingDestroyed, followed by a CKA_ID, is the setting with the label of an object that this store has destroyed. If
// the token still holds the object, it is an orphan: the HSM did not show the object when this store destroyed it. The
// version's number alone does not prove that, because another copy of the store may have given the same number.
const settingDestroyed = "hsm.destroyed."

// recordDestroyed records that the store has destroyed the object with that label.
func recordDestroyed(ctx context.Context, s metastore.Settings, object, label string) error {
	record, err := destroyedRecord(ctx, s, label)
	if err != nil {
		return err
	}
	return s.SetSetting(ctx, settingDestroyed+object, record)
}

// destroyedRecord returns the value of settingDestroyed for an object with that label. Once an operator has decided
// between two copies of the store (see AcceptCopy), earlier values no longer count: the other copy may have used the
// object.
func destroyedRecord(ctx context.Context, s metastore.Settings, label string) (string, error) {
	accepted, _, err := s.Setting(ctx, settingAccepted)
	if accepted != "" {
		label += " " + accepted
	}
	return label, err
}

// isDestroyed reports whether the store has destroyed the object with that label.
func isDestroyed(ctx context.Context, store metastore.Store, id, label string) (bool, error) {
	record, err := destroyedRecord(ctx, store, label)
	if err != nil {
		return false, err
	}
	stored, _, err := store.Setting(ctx, settingDestroyed+id)
	return stored == record, err
}

// Forget removes the record that a store has destroyed an object, because another copy of the store has used the object
// since.
func Forget(ctx context.Context, s metastore.Settings, object string) error {
	if _, ok, err := s.Setting(ctx, settingDestroyed+object); err != nil || !ok {
		return err
	}
	return s.SetSetting(ctx, settingDestroyed+object, "")
}

// records are a store's records of objects, by CKA_ID in hex.
type records struct {
	live, deleted, aside map[string]bool
	begun                map[string]string // Op of the interrupted step that has the object
	// kept has the version names of deleted keys. journal returns the version names in the journal, which it reads
	// once. An object with such a name is not an orphan, whatever its CKA_ID is.
	kept    map[string]bool
	journal func() (map[string]bool, error)
}

// markFound marks objects that were found by their labels. It reads only the records of the key names in these labels,
// so it does not take longer if other users have many keys.
func (p *Provider) markFound(ctx context.Context, found []pkcs11.KeyInfo) ([]Object, error) {
	if len(found) == 0 {
		return nil, nil
	}
	var names []string
	for _, k := range found {
		if name := (Object{Label: k.Label}).Key(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	r, err := p.records(ctx, names...)
	if err != nil {
		return nil, err
	}
	return p.markWith(ctx, found, r)
}

// markWith marks objects. r must have the records of all key names in their labels.
func (p *Provider) markWith(ctx context.Context, keys []pkcs11.KeyInfo, r *records) (_ []Object, err error) {
	list := make([]Object, 0, len(keys))
	for _, k := range keys {
		o := Object{ID: fmt.Sprintf("%x", k.ID), Label: k.Label, Bits: k.Bits, Extractable: k.Extractable,
			Sensitive: k.Sensitive, WasOutside: k.WasOutside(), Damaged: k.Bits == 0, Mark: Foreign}
		switch {
		case r.live[o.ID]:
			o.Mark = InUse
		case r.begun[o.ID] != "":
			o.Mark, o.deletes = Pending, r.begun[o.ID] == opDelete
		case r.deleted[o.ID]:
			o.Mark = Deleted
		default:
			if o.Mark, err = p.markUnreferenced(ctx, k, o, r); err != nil {
				return nil, err
			}
		}
		list = append(list, o)
	}
	return list, nil
}

// markUnreferenced marks an object to which no key, no deleted key and no step refers.
func (p *Provider) markUnreferenced(ctx context.Context, k pkcs11.KeyInfo, o Object, r *records) (Mark, error) {
	if !isOurs(k) {
		return Foreign, nil
	}
	// A deleted key may have come back while the records were read.
	switch _, v, err := p.store.ByVersion(metastore.AllowIncomplete(ctx), o.Label); {
	case err == nil && v.Object == o.ID:
		return InUse, nil
	case err != nil && !claviger.Is(err, claviger.VersionNotFound):
		return "", err
	}
	if r.aside[o.ID] {
		return Aside, nil
	}
	if r.kept[o.Label] || !p.alone.Load() {
		return Unknown, nil
	}
	if journal, err := r.journal(); err != nil || journal[o.Label] {
		return Unknown, err
	}
	if destroyed, err := isDestroyed(ctx, p.store, o.ID, o.Label); err != nil || !destroyed {
		return Unknown, err
	}
	return Orphan, nil
}

// records reads what the store knows about the objects of these keys, or of all keys if no name is given.
func (p *Provider) records(ctx context.Context, names ...string) (*records, error) {
	r := &records{begun: map[string]string{}, live: map[string]bool{}, deleted: map[string]bool{},
		aside: map[string]bool{}, kept: map[string]bool{}}
	r.journal = sync.OnceValues(func() (map[string]bool, error) { return p.journalled(ctx) })
	pending, err := p.store.Pending(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, i := range pending {
		for _, ref := range i.Refs {
			r.begun[ref.Object] = i.Op
		}
	}
	live := func(k *metastore.Key) {
		for _, v := range k.List {
			r.live[v.Object] = true
		}
	}
	if len(names) == 0 {
		err = metastore.Each(ctx, p.store, live)
	} else {
		var keys []*metastore.Key
		keys, err = p.store.Get(metastore.AllowIncomplete(ctx), names...)
		for _, k := range keys {
			if k != nil {
				live(k)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	deleted, err := p.store.DeletedKeys(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, k := range deleted {
		for _, v := range k.List {
			r.deleted[v.Object] = true
			r.kept[claviger.VersionName(k.Name, v.ID)] = true
		}
	}
	list, err := p.setAsideIDs(ctx)
	for _, id := range list {
		r.aside[id] = true
	}
	return r, err
}

// setAsideIDs returns the CKA_IDs that were set aside.
func (p *Provider) setAsideIDs(ctx context.Context) ([]string, error) {
	text, ok, err := p.store.Setting(ctx, settingAside)
	if err != nil || !ok {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, claviger.Errorf("hsm.Objects", claviger.Internal, "", "setting %s of metastore %s: %w",
			settingAside, p.store.URI(), err)
	}
	return list, nil
}

// journalled returns the version names in the journal. Other packages write its records, as JSON. So every text in them
// that looks like a version name counts.
func (p *Provider) journalled(ctx context.Context) (map[string]bool, error) {
	names := map[string]bool{}
	runs, err := p.store.Runs(ctx)
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		list, err := p.store.Records(ctx, run)
		if err != nil {
			return nil, err
		}
		for _, rec := range list {
			var doc any
			if json.Unmarshal(rec.Data, &doc) == nil {
				collect(doc, names)
			}
		}
	}
	return names, nil
}

// collect adds each text in a JSON document that looks like a version name to names.
func collect(doc any, names map[string]bool) {
	switch v := doc.(type) {
	case string:
		if strings.ContainsRune(v, '@') {
			names[v] = true
		}
	case []any:
		for _, e := range v {
			collect(e, names)
		}
	case map[string]any:
		for _, e := range v {
			collect(e, names)
		}
	}
}
