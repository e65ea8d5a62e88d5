package hsm

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// Candidate is a key of which the token holds versions that the store does not know. An operator can adopt it.
type Candidate struct {
	Key      string   `json:"key"`
	Versions []Object `json:"versions"` // oldest first, as far as the token shows the order
	// Known: the store has a key of that name. Adopting adds the versions to that key.
	Known bool `json:"known"`
	// Unordered: two or more versions have no number, and the token does not show which of them is the newest.
	Unordered bool `json:"unordered"`
	// Why says why the versions cannot be adopted; "" if they can.
	Why string `json:"why,omitempty"`
	// Keys are the names of the versions, grouped by key. Versions whose CKA_IDs begin differently may belong to
	// different keys that had the name one after the other. Nil if all versions belong to one key, and that key is
	// the store's key, if the store has one.
	Keys [][]string `json:"keys,omitempty"`
	// Step is the interrupted creation or migration that made all of the versions, if the metastore has it.
	Step *Step `json:"step,omitempty"`
}

// Step says how an interrupted step wanted a key to be.
type Step struct {
	Op          string            `json:"op"` // "create", "import"
	Attributes  map[string]string `json:"attributes"`
	Description *string           `json:"description,omitempty"`
	Created     time.Time         `json:"created,omitzero"` // zero if an older release began the step
}

// stepOf finds the step that made all of a key's versions. A step that made only some of them says nothing about the
// others: another user may have made those under other rules.
func (p *Provider) stepOf(ctx context.Context, key string, versions []Object) (*Step, error) {
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range pending {
		if i.Key != key || i.Op != opCreate && i.Op != opImport {
			continue
		}
		for _, o := range versions {
			if !slices.ContainsFunc(i.Refs, func(r metastore.Ref) bool { return r.Object == o.ID }) {
				return nil, nil // no such step
			}
		}
		var planned stepPlan
		err := json.Unmarshal(i.Payload, &planned)
		if err != nil || planned.ofOlderRelease() {
			return nil, nil //nolint:nilerr // it says nothing about the key
		}
		return &Step{i.Op, planned.Attributes, planned.Description, planned.Created}, nil
	}
	return nil, nil // no such step
}

// Candidates lists the keys of which the token holds versions that the store does not know, or that were set aside.
func (p *Provider) Candidates(ctx context.Context) ([]Candidate, error) {
	objects, err := p.Objects(ctx)
	if err != nil {
		return nil, err
	}
	byKey := map[string][]Object{}
	for _, o := range objects {
		if o.adoptable() {
			byKey[o.Key()] = append(byKey[o.Key()], o)
		}
	}
	list := []Candidate{}
	for key, versions := range byKey {
		c, err := p.candidate(ctx, key, versions)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Candidate) int { return cmp.Compare(a.Key, b.Key) })
	return list, nil
}

// candidate sorts a key's versions and finds what prevents their adoption.
func (p *Provider) candidate(ctx context.Context, key string, versions []Object) (Candidate, error) {
	c := Candidate{Key: key, Versions: versions}
	number := func(o Object) int { // -1 for a version without a number: it is older than all that have one
		if n, ok := claviger.VersionNumber(o.Label); ok {
			return n
		}
		return -1
	}
	slices.SortFunc(versions, func(a, b Object) int {
		return cmp.Or(cmp.Compare(number(a), number(b)),
			cmp.Compare(a.ID, b.ID))
	})
	unnumbered := 0
	for i, o := range versions {
		if number(o) < 0 {
			unnumbered++
		} else if i > 0 && versions[i-1].Label == o.Label {
			c.Why = fmt.Sprintf("the token holds two keys of the label %s; claviger cannot know which of them is "+
				"right: give one of them another label with the HSM's own tool", o.Label)
		}
		if o.Bits != versions[0].Bits {
			c.Why = fmt.Sprintf("%s has %d bits and %s has %d; all versions of a key have one length",
				versions[0].Label, versions[0].Bits, o.Label, o.Bits)
		}
	}
	c.Unordered = unnumbered > 1
	k, err := p.key(ctx, key)
	if err != nil {
		return c, err
	}
	if k == nil {
		// Everything that one step has made belongs to one key.
		if c.Step, err = p.stepOf(ctx, key, versions); err != nil || c.Step != nil {
			return c, err
		}
		c.Keys = keysOf(versions, nil)
		deleted, err := p.store.DeletedKeys(ctx, key)
		for _, k := range deleted {
			if c.Why == "" && len(keysOf(versions, k.List)) < max(1, len(c.Keys)) {
				c.Why = fmt.Sprintf("some of its versions belong to the deleted key that has %s; bring that key back "+
					"first, by claviger key undelete", claviger.VersionName(key, k.List[0].ID))
			}
		}
		return c, err
	}
	c.Known = true
	c.Keys = keysOf(versions, k.List)
	switch {
	case c.Why != "":
	case k.BitLength != versions[0].Bits:
		c.Why = fmt.Sprintf("the metastore's key %s has %d bits, and %s has %d", key, k.BitLength, versions[0].Label,
			versions[0].Bits)
	}
	return c, nil
}

// keysOf groups the names of versions by the key to which they may belong. It keeps their order, and returns nil if all
// of them belong to one key. existing are the versions of the key to which they would be added; keysOf leaves out the
// versions that surely belong to that key.
func keysOf(versions []Object, existing []metastore.Version) (keys [][]string) {
	var parts []string
	for _, o := range versions {
		part := partOf(o.ID)
		if slices.ContainsFunc(existing, func(v metastore.Version) bool { return partOf(v.Object) == part }) {
			continue
		}
		at := slices.Index(parts, part)
		if at < 0 {
			at, parts, keys = len(parts), append(parts, part), append(keys, nil)
		}
		keys[at] = append(keys[at], o.Label)
	}
	if len(existing) == 0 && len(keys) == 1 {
		return nil
	}
	return keys
}

// Restrict returns the candidate with only those of its versions that keep accepts. There must be at least one.
func (p *Provider) Restrict(ctx context.Context, c Candidate, keep func(Object) bool) (Candidate, error) {
	kept := slices.DeleteFunc(slices.Clone(c.Versions), func(o Object) bool { return !keep(o) })
	return p.candidate(ctx, c.Key, kept)
}

// severalKeys returns the message that a candidate's versions may belong to several keys, and what an operator can do.
func (c Candidate) severalKeys() string {
	lists := make([]string, len(c.Keys))
	for i, names := range c.Keys {
		lists[i] = summarize(names)
	}
	if c.Known {
		return fmt.Sprintf("the token does not show that %s are versions of the metastore's key %s; they may belong "+
			"to another key, which had that name earlier or later, under other rules. Set them aside (--aside); or "+
			"delete the metastore's key and adopt these versions in its place; or, if you know that they are "+
			"versions of the metastore's key, use --one-key", strings.Join(lists, ", "), c.Key)
	}
	return fmt.Sprintf("the token does not show that these versions belong to one key; they may belong to several "+
		"keys that had the name %s one after the other, under other rules: %s. Name the versions of one key, and set "+
		"the others aside (--aside); or, if you know that all of them are versions of one key, use --one-key", c.Key,
		strings.Join(lists, "; "))
}

// MayAdopt says why a candidate cannot be adopted; nil if it can. Kind Invalid.
func (c Candidate) MayAdopt(a Adoption) error {
	why := c.Why
	if why == "" && len(c.Keys) > 0 && !a.OneKey {
		why = c.severalKeys()
	}
	if why == "" {
		return nil
	}
	return claviger.Errorf("hsm.Adopt", claviger.Invalid, c.Key, "%s", why)
}

// Adoption has an operator's statements about a key that the token does not show.
type Adoption struct {
	// OneKey: all versions belong to one key, although their CKA_IDs do not show that.
	OneKey bool
	// ACLName is the attribute key.acl.name. If it is "", the rules of the key's own name apply, or those that its
	// Step names.
	ACLName     string
	Description *string // nil: the description of its Step
	By          string  // user who adopts, for the journal
}

// adopted is the journal's record of an adoption.
type adopted struct {
	Key      string   `json:"key"`
	Versions []string `json:"versions"`
	Objects  []string `json:"objects"`
	Aside    bool     `json:"aside,omitempty"`
	OneKey   bool     `json:"oneKey,omitempty"`
	ACLName  string   `json:"aclName,omitempty"`
	// Made is the creation time of the new record of the key; nil if the versions were added to a key of the store.
	Made  *time.Time `json:"made,omitempty"`
	By    string     `json:"by,omitempty"`
	At    time.Time  `json:"at"`
	State string     `json:"state"` // "begun", "done"
}

// journalRun names the run of the journal that has the records of all adoptions.
const journalRun = "adoption"

// journalAdoption writes an adoption to the journal. created is the value of adopted.Made.
func (p *Provider) journalAdoption(ctx context.Context, c Candidate, a Adoption, created *time.Time, aside bool,
	state string) error {
	rec := adopted{Key: c.Key, Aside: aside, OneKey: a.OneKey, ACLName: a.ACLName, Made: created, By: a.By,
		At: time.Now().UTC().Truncate(time.Second), State: state}
	for _, o := range c.Versions {
		rec.Versions, rec.Objects = append(rec.Versions, o.Label), append(rec.Objects, o.ID)
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	item := c.Key + " " + c.Versions[0].ID
	return p.store.Put(ctx, journalRun, item, data)
}

// recheck reads a candidate again, under the key's lock: nodes may serve, and may have changed the key since the
// operator saw it. Kind Invalid if the candidate has changed in the meantime.
func (p *Provider) recheck(ctx context.Context, op string, c Candidate) (Candidate, error) {
	var found []pkcs11.KeyInfo
	done := map[string]bool{}
	for _, o := range c.Versions {
		if done[o.Label] {
			continue
		}
		done[o.Label] = true
		keys, err := p.tok.FindLabel(ctx, o.Label)
		if err != nil {
			return c, err
		}
		found = append(found, keys...)
	}
	marked, err := p.markFound(ctx, found)
	if err != nil {
		return c, err
	}
	versions := make([]Object, len(c.Versions))
	for i, was := range c.Versions {
		at := slices.IndexFunc(marked, func(o Object) bool { return o.ID == was.ID && o.Label == was.Label })
		switch {
		case at < 0:
			return c, claviger.Errorf(op, claviger.Invalid, c.Key, "the token does not hold %s any more; nothing "+
				"was done with key %s; list the keys again (claviger hsm adopt)", was.Label, c.Key)
		case !marked[at].adoptable():
			return c, claviger.Errorf(op, claviger.Invalid, c.Key, "%s has the mark %q now; nothing was done with "+
				"key %s; list the keys again (claviger hsm adopt)", was.Label, marked[at].Mark, c.Key)
		}
		versions[i] = marked[at]
	}
	now, err := p.candidate(ctx, c.Key, versions)
	switch {
	case err != nil:
		return c, err
	case c.Known && !now.Known:
		return c, claviger.Errorf(op, claviger.Invalid, c.Key, "key %s was deleted after it was listed; nothing was "+
			"done with it; list the keys again (claviger hsm adopt)", c.Key)
	case !c.Known && now.Known:
		return c, claviger.Errorf(op, claviger.Invalid, c.Key, "a key named %s was made after the keys were listed; "+
			"nothing was done with it; list the keys again (claviger hsm adopt)", c.Key)
	}
	return now, nil
}

// Adopt writes records of a candidate's versions: a new key, or newer versions of a key of the store. If it was
// interrupted, the same call finishes it: versions that are already in the store no longer belong to a candidate. Nodes
// may serve meanwhile. Kind Invalid if the candidate cannot be adopted.
func (p *Provider) Adopt(ctx context.Context, c Candidate, a Adoption) error {
	const op = "hsm.Adopt"
	ctx, unlock, err := p.lock(ctx, op, c.Key)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err = p.checkAdoption(ctx, op, c, a); err != nil {
		return err
	}
	list := make([]metastore.Version, len(c.Versions))
	for i, o := range c.Versions {
		if list[i], err = p.recordOf(ctx, o); err != nil {
			return err
		}
	}
	var made *time.Time
	if !c.Known {
		made = &list[0].Created
	}
	if err := p.journalAdoption(ctx, c, a, made, false, "begun"); err != nil {
		return err
	}
	// Adopting the objects of a step ends the step: for a new key, Insert does that. Other objects of the step are
	// unknown from then on.
	if c.Known {
		if err := p.store.Drop(ctx, c.Key); err != nil {
			return err
		}
		if err := p.add(ctx, c.Key, list); err != nil {
			return err
		}
	} else if err := p.store.Insert(ctx, c.newKey(a, list)); err != nil {
		return err
	}
	return p.journalAdoption(ctx, c, a, made, false, "done")
}

// checkAdoption reads a candidate again and refuses to adopt it if anything prevents that. The key's lock is held.
func (p *Provider) checkAdoption(ctx context.Context, op string, c Candidate, a Adoption) (Candidate, error) {
	if err := p.mayRecord(ctx); err != nil {
		return c, err
	}
	c, err := p.recheck(ctx, op, c)
	if err != nil {
		return c, err
	}
	if err := c.MayAdopt(a); err != nil {
		return c, err
	}
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return c, err
	}
	for _, i := range pending {
		if i.Key == c.Key && i.Op == opDelete {
			return c, claviger.Errorf(op, claviger.Invalid, c.Key, "a deletion of this key was interrupted; the next "+
				"start of a server finishes it")
		}
	}
	return c, nil
}

// newKey is the record of a candidate that the store does not have. The step that made its versions, and the operator,
// say what the token does not show.
func (c Candidate) newKey(a Adoption, list []metastore.Version) metastore.Key {
	m := claviger.Metadata{Name: c.Key, Cipher: claviger.DefaultCipher, BitLength: c.Versions[0].Bits,
		Description: a.Description, Created: list[0].Created, Attributes: map[string]string{}}
	if s := c.Step; s != nil {
		maps.Copy(m.Attributes, s.Attributes)
		m.Description = cmp.Or(a.Description, s.Description)
		if !s.Created.IsZero() {
			m.Created = s.Created
		}
	}
	if a.ACLName != "" {
		m.Attributes[claviger.ACLNameAttribute] = a.ACLName
	}
	m.Versions = metastore.CountVersions(list)
	return metastore.Key{Metadata: m, List: list}
}

// add adds versions to a key of the store. Versions that are older than the key's newest one go before all others; add
// inserts these from the newest to the oldest, so that the current version never changes because of them.
func (p *Provider) add(ctx context.Context, key string, list []metastore.Version) error {
	k, err := p.key(ctx, key)
	if err != nil {
		return err
	}
	if k == nil {
		return claviger.E("hsm.Adopt", claviger.KeyNotFound, key, nil)
	}
	newest, numbered := claviger.NumberOfID(k.List[len(k.List)-1].ID)
	older := 0
	for _, v := range list {
		if n, ok := claviger.NumberOfID(v.ID); numbered && (!ok || n < newest) {
			older++
		}
	}
	for _, v := range slices.Backward(list[:older]) {
		if err := p.store.Prepend(ctx, key, v); err != nil {
			return err
		}
	}
	for _, v := range list[older:] {
		if err := p.store.Append(ctx, key, v); err != nil {
			return err
		}
	}
	return nil
}

// recordOf makes the record of a version that the token holds.
func (p *Provider) recordOf(ctx context.Context, o Object) (metastore.Version, error) {
	id, err := hex.DecodeString(o.ID)
	if err != nil {
		return metastore.Version{}, err
	}
	check, err := p.tok.CheckValue(ctx, id, o.Label)
	if err != nil {
		return metastore.Version{}, err
	}
	created, err := p.tok.StartDate(ctx, id, o.Label)
	if created.IsZero() {
		created = time.Now().Truncate(time.Millisecond)
	}
	return metastore.Version{ID: o.Label[len(o.Key())+1:], Object: o.ID, Created: created, Check: check}, err
}

// SetAside marks a candidate's versions as not to be used: requests for them get the answer for a version that does not
// exist, and new versions of the name get higher numbers. They can be adopted later.
func (p *Provider) SetAside(ctx context.Context, c Candidate, a Adoption) error {
	const op = "hsm.SetAside"
	ctx, unlock, err := p.lock(ctx, op, c.Key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.mayRecord(ctx); err != nil {
		return err
	}
	if c, err = p.recheck(ctx, op, c); err != nil {
		return err
	}
	if err := p.journalAdoption(ctx, c, a, nil, true, "begun"); err != nil {
		return err
	}
	for _, o := range c.Versions {
		if n, ok := claviger.VersionNumber(o.Label); ok {
			if err := p.store.SkipNumbers(ctx, c.Key, n+1); err != nil {
				return err
			}
		}
	}
	if err := p.store.Drop(ctx, c.Key); err != nil { // see Adopt
		return err
	}
	free, err := p.store.Lock(ctx, settingAside)
	if err != nil {
		return err
	}
	defer free()
	list, err := p.setAsideIDs(ctx)
	if err != nil {
		return err
	}
	for _, o := range c.Versions {
		if !slices.Contains(list, o.ID) {
			list = append(list, o.ID)
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := p.store.SetSetting(ctx, settingAside, string(data)); err != nil {
		return err
	}
	if err := p.journalAdoption(ctx, c, a, nil, true, "done"); err != nil {
		return err
	}
	// Nodes remember for a while that the token holds lost versions, which are set aside now. Adopt needs no notice:
	// it changes records, and the store announces such changes.
	if others, ok := p.store.(metastore.Notices); ok {
		return others.Announce(ctx, metastore.Notice{Key: c.Key, Change: metastore.Invalidated})
	}
	return nil
}

// Rebind gives the token to this store alone. From then on the store to which the token was bound is refused. Rebind is
// for a store that was lost and created again.
func (p *Provider) Rebind(ctx context.Context) error { return p.rebind(ctx) }

// Bindings lists the stores to which the token is bound, and reports whether this store is one of them. If the token
// keeps no data objects, it cannot be bound, and bound is true.
func (p *Provider) Bindings(ctx context.Context) (list []Binding, bound bool, err error) {
	id, _, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return nil, false, err
	}
	list, err = bindings(ctx, p.tok)
	if claviger.Is(err, claviger.Unsupported) || err == nil && p.keepsNoData.Load() {
		return nil, true, nil
	}
	return list, slices.ContainsFunc(list, func(b Binding) bool { return b.Store == id }), err
}
