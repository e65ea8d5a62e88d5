package replica

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/typo"
)

// Recovered is the result of Recover.
type Recovered struct {
	// Lacked counts the records that the store lacked or held in another state. It does not count
	// records that the store has replaced by newer ones.
	Lacked Loss
	// Added counts the records that were added and can be used. Names has their readable names.
	Added Loss
	Names []string
	// Aside are the full names of key versions that the store holds as deleted, because no key document
	// names them. Their EDEKs open after the KT KMS has adopted them.
	Aside []string
	// NotAdded says, in readable form, why parts of Lacked were not added.
	NotAdded []string
	// NotLacked are the names in Revive of which the store lacks nothing.
	NotLacked []string
}

// RecoverOptions are the options of Recover.
type RecoverOptions struct {
	// Dry makes Recover change nothing.
	Dry bool
	// Revive names keys, or labels of other deposits, to add even if the store has deleted them.
	Revive []string
}

// Recover adds the records to the store into that it lacks of the store from, which is a saved copy of
// dropped records. It changes no record of the store. The deposits of a key belong together:
//
//   - A key of which the store holds nothing is added, its versions before its document.
//   - A key that the store has deleted is not added, unless Revive names it.
//   - If the store has the key in another state, or another key of that name, the document is not added.
//     The versions that the store lacks are added as deleted deposits, Aside. A KT KMS does not treat
//     deleted deposits as the remains of an interrupted change. Only the owner can read and sign
//     documents, so only the owner can merge the versions into the key.
//
// A deposit that is older than the newest deposit in both stores was once in both. If the store lacks
// it, the store has deleted or replaced it. Kind KeyNotFound if Revive has a name that the other store
// does not hold; then nothing is changed.
func Recover(ctx context.Context, into, from server.Store, o RecoverOptions) (*Recovered, error) {
	r := &recovery{into: into, now: time.Now(), revive: o.Revive, dry: o.Dry, mine: holdings{}, res: new(Recovered),
		storeDeposits: map[string]storeDeposit{}, otherLive: map[string]bool{}, groups: map[depositsOf]*depositGroup{},
		put: map[depositsOf][]*server.Row{}, names: map[string]bool{}}
	if err := into.Export(ctx, r.holds); err != nil {
		return nil, err
	}
	var lacked []server.Record
	err := from.Export(ctx, func(rec server.Record) error {
		if r.lacks(rec) {
			lacked = append(lacked, rec)
		}
		return nil
	})
	if err == nil {
		err = r.checkRevive()
	}
	if err != nil {
		return nil, err
	}
	for _, rec := range lacked {
		if err := r.takeRecord(ctx, rec); err != nil {
			return r.res, err
		}
	}
	for _, name := range o.Revive {
		if !r.lacksAny(name) {
			r.res.NotLacked = append(r.res.NotLacked, name)
		}
	}
	return r.res, r.deposits(ctx)
}

// checkRevive refuses a name in Revive that the other store does not hold, because it is probably
// misspelt.
func (r *recovery) checkRevive() error {
	for _, name := range r.revive {
		if !r.names[name] {
			return claviger.Errorf("replica.Recover", claviger.KeyNotFound, "",
				"--revive %s: the file holds no key, and no other deposit, of that name%s",
				claviger.Printable(name), typo.DidYouMean(name, slices.Sorted(maps.Keys(r.names)), claviger.Printable))
		}
	}
	return nil
}

// lacksAny reports whether the store lacks any deposit of a name.
func (r *recovery) lacksAny(name string) bool {
	for of := range r.groups {
		if of.name == name {
			return true
		}
	}
	return false
}

// recovery is a call of Recover.
type recovery struct {
	into   server.Store
	now    time.Time
	dry    bool
	revive []string
	res    *Recovered

	mine          holdings
	storeDeposits map[string]storeDeposit // deposits of the store, by uuid
	// otherLive is true for the live deposits of the other store; names are the names of all its deposits.
	otherLive map[string]bool
	names     map[string]bool
	// newestCommon is the creation time of the newest deposit in both stores.
	newestCommon time.Time
	groups       map[depositsOf]*depositGroup
	// put has the versions that were added before the document of their key.
	put map[depositsOf][]*server.Row
}

// storeDeposit is a deposit of the store.
type storeDeposit struct {
	of      depositsOf
	kind    string
	live    bool
	created time.Time
}

// depositsOf names deposits that belong together: the deposits of a key, or those with another label.
type depositsOf struct {
	owner, name string
	key         bool
}

// depositGroup holds the deposits that the store lacks and that belong together.
type depositGroup struct {
	of   depositsOf
	rows []lackedRow
}

type lackedRow struct {
	row     *server.Row
	kind    string
	created time.Time
}

// groupOf returns the group of a deposit, and the kind of its label.
func groupOf(d *server.Row) (kind string, of depositsOf) {
	kind, key := trustee.KeyOfLabel(d.Label)
	if kind == "" {
		return "", depositsOf{d.Owner, d.Label, false}
	}
	return kind, depositsOf{d.Owner, key, true}
}

// holds adds a record that the store holds.
func (r *recovery) holds(rec server.Record) error {
	if d := rec.Deposit; d != nil {
		created, err := d.Sealed.Made()
		if err != nil {
			return err
		}
		kind, of := groupOf(d)
		r.storeDeposits[d.UUID] = storeDeposit{of, kind, d.Sealed.Deleted == nil, created}
	}
	r.mine.add(rec, r.now)
	return nil
}

// lacks adds a record of the other store, and reports whether the store lacks it.
func (r *recovery) lacks(rec server.Record) bool {
	if d := rec.Deposit; d != nil {
		_, of := groupOf(d)
		r.names[of.name] = true
		r.otherLive[d.UUID] = d.Sealed.Deleted == nil
		if k, there := r.storeDeposits[d.UUID]; there && k.created.After(r.newestCommon) {
			r.newestCommon = k.created
		}
	}
	var one Loss
	r.mine.lacks(rec, r.now, &one)
	return !one.None()
}

// notAdded adds a reason to NotAdded.
func (r *recovery) notAdded(format string, args ...any) {
	r.res.NotAdded = append(r.res.NotAdded, fmt.Sprintf(format, args...))
}

// takeRecord adds an organization or client to the store, or a deposit to its group.
func (r *recovery) takeRecord(ctx context.Context, rec server.Record) error {
	key, name, _, _ := holding(rec, r.now)
	d := rec.Deposit
	if _, there := r.mine[key]; there {
		r.res.Lacked.count(rec, name)
		if kind := trustee.LabelVersion; d != nil && d.Sealed.Deleted == nil && r.storeDeposits[d.UUID].kind == kind {
			r.aside(d) // an earlier call has added it as deleted
		} else {
			r.notAdded("%s: the store holds it in another state (deleted or not, disabled or not, another secret)",
				name)
		}
		return nil
	}
	if d != nil {
		created, err := d.Sealed.Made()
		if err != nil {
			return err
		}
		kind, of := groupOf(d)
		if r.groups[of] == nil {
			r.groups[of] = &depositGroup{of: of}
		}
		r.groups[of].rows = append(r.groups[of].rows, lackedRow{d, kind, created})
		return nil
	}
	r.res.Lacked.count(rec, name)
	if r.dry {
		return nil
	}
	var err error
	switch {
	case rec.Org != nil:
		err = r.into.AddOrg(ctx, *rec.Org)
	case rec.Client != nil:
		_, err = r.into.AddClient(ctx, *rec.Client, server.Once{})
	}
	added, err := r.outcome(name, err)
	if added {
		r.res.Added.count(rec, name)
		r.res.Names = append(r.res.Names, name)
	}
	return err
}

// outcome reports whether a record was added. If the store has refused the record, outcome adds the
// reason to NotAdded.
func (r *recovery) outcome(name string, err error) (added bool, _ error) {
	switch {
	case claviger.Is(err, claviger.KeyExists):
		r.notAdded("%s: the store has another of that name by now", name)
	case claviger.Is(err, claviger.Denied), claviger.Is(err, claviger.Invalid):
		r.notAdded("%s: %v", name, err)
	case err != nil:
		return false, err
	default:
		return true, nil
	}
	return false, nil
}

// aside adds a version to Aside.
func (r *recovery) aside(d *server.Row) {
	r.res.Aside = append(r.res.Aside, strings.TrimPrefix(d.Label, trustee.LabelVersion))
}

// step adds a deposit.
type step struct {
	lackedRow
	after time.Time // by which steps are sorted
	aside bool      // add the version as deleted
}

// deposits decides on each group, and adds deposits in the order of their creation. After an
// interruption, every deposit that the store still lacks is newer than those that were added. So the
// next call does not treat it as deleted.
func (r *recovery) deposits(ctx context.Context) error {
	groups := make([]*depositGroup, 0, len(r.groups))
	for _, g := range r.groups {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b *depositGroup) int {
		return cmp.Or(strings.Compare(a.of.name, b.of.name), strings.Compare(a.of.owner, b.of.owner))
	})
	has := map[depositsOf]state{}
	for uuid, k := range r.storeDeposits {
		s := has[k.of]
		s.live = s.live || k.live && k.kind != trustee.LabelVersion && k.kind != trustee.LabelDeleted
		s.deleted = s.deleted || k.live && k.kind == trustee.LabelDeleted && !r.otherLive[uuid]
		has[k.of] = s
	}
	var steps []step
	for _, g := range groups {
		steps = append(steps, r.group(g, has[g.of])...)
	}
	if r.dry {
		return nil
	}
	slices.SortStableFunc(steps, func(a, b step) int { return a.after.Compare(b.after) })
	for _, s := range steps {
		if err := r.add(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// state says what the store holds of a group.
type state struct {
	live    bool // the document of the key, or a live deposit with the label
	deleted bool // a document of the deleted key, which the other store lacks
}

// group returns the steps that add deposits of a group.
func (r *recovery) group(g *depositGroup, has state) (steps []step) {
	revive := slices.Contains(r.revive, g.of.name)
	last := time.Time{}
	gone := has.deleted
	docs := 0
	for _, l := range g.rows {
		if l.created.After(last) {
			last = l.created
		}
		gone = gone || r.deletedOrReplaced(l)
		if l.kind != trustee.LabelVersion && l.row.Sealed.Deleted == nil {
			docs++
		}
	}
	if gone && !has.live && !revive {
		r.refuse(g)
		return nil
	}
	for _, l := range g.rows {
		deleted, version := l.row.Sealed.Deleted != nil, l.kind == trustee.LabelVersion
		if has.live && l.kind != trustee.LabelDeleted && !version && !deleted && r.deletedOrReplaced(l) {
			continue // the store has replaced it by the live deposit
		}
		r.count(&r.res.Lacked, l.row)
		s := step{lackedRow: l, after: l.created}
		switch {
		case deleted:
		case version && r.deletedOrReplaced(l) && !revive:
			r.notAdded("REVIVED version %q: the store has deleted it; --revive %q keeps it", nameOf(l.row), g.of.name)
			continue
		case version && (has.live || docs == 0):
			s.aside = true
		case version:
		case has.live && l.kind == trustee.LabelKey:
			r.notAdded("key %q: the store has another state of it, or another key of that name, and uses that one",
				g.of.name)
			continue
		case has.live && l.kind == trustee.LabelDeleted:
			r.notAdded("deleted key %q: the store has a key of that name, which stays; delete it at the KT KMS if it "+
				"is to go", g.of.name)
			continue
		case has.live:
			r.notAdded("deposit %.200q: the store has another of that name by now", l.row.Label)
			continue
		default:
			s.after = last // after its versions, even if the clocks of the hosts differ
		}
		steps = append(steps, s)
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(rank(a), rank(b)) })
	return steps
}

// rank puts versions before the documents that name them.
func rank(s step) int {
	if s.kind == trustee.LabelVersion {
		return 0
	}
	return 1
}

// deletedOrReplaced reports whether the store has deleted or replaced a deposit that it lacks.
func (r *recovery) deletedOrReplaced(l lackedRow) bool { return l.created.Before(r.newestCommon) }

// refuse adds a group that the store has deleted to NotAdded.
func (r *recovery) refuse(g *depositGroup) {
	var versions []string
	live := false
	for _, l := range g.rows {
		if l.row.Sealed.Deleted != nil {
			continue // deleted in both stores
		}
		live = true
		r.count(&r.res.Lacked, l.row)
		if l.kind == trustee.LabelVersion {
			versions = append(versions, fmt.Sprintf("%q", nameOf(l.row)))
		}
	}
	what := fmt.Sprintf("deposit %.200q", g.of.name)
	if g.of.key {
		what = fmt.Sprintf("key %q", g.of.name)
		if len(versions) > 0 {
			what += fmt.Sprintf(" (of its versions the store lacks %s)", strings.Join(versions, ", "))
		}
	}
	if live {
		r.notAdded("REVIVED %s: the store has deleted it, and it would be in use again; --revive %q adds it", what,
			g.of.name)
	}
}

func nameOf(d *server.Row) string { return strings.TrimPrefix(d.Label, trustee.LabelVersion) }

// readable returns the readable name of a deposit.
func readable(d *server.Row) string { return fmt.Sprintf("deposit %.200q", d.Label) }

// count counts a deposit under its readable name.
func (r *recovery) count(l *Loss, d *server.Row) { l.count(server.Record{Deposit: d}, readable(d)) }

// add adds a deposit.
func (r *recovery) add(ctx context.Context, s step) error {
	row := *s.row
	if s.aside {
		row.Sealed.Deleted = &r.now
	}
	added, err := r.outcome(readable(&row), r.into.Put(ctx, row, "", server.Once{}))
	_, of := groupOf(&row)
	if !added && err == nil && s.kind == trustee.LabelKey {
		return r.deleteVersions(ctx, of)
	}
	if !added || err != nil {
		return err
	}
	if s.aside {
		r.aside(s.row)
		return nil
	}
	r.count(&r.res.Added, s.row)
	switch key := of.name; {
	case s.kind == trustee.LabelKey && row.Sealed.Deleted == nil:
		r.res.Names = append(r.res.Names, fmt.Sprintf("key %q", key))
	case s.kind == trustee.LabelDeleted && row.Sealed.Deleted == nil:
		r.res.Names = append(r.res.Names, fmt.Sprintf("deleted key %q", key))
	case s.kind == trustee.LabelVersion && row.Sealed.Deleted == nil:
		r.put[of] = append(r.put[of], s.row) // Names gets the name of its key
	default:
		r.res.Names = append(r.res.Names, readable(&row))
	}
	return nil
}

// deleteVersions deletes the versions of a key that were added, and moves them from Added to Aside. The
// document of the key could not be added, because the KT KMS made a key of that name meanwhile.
func (r *recovery) deleteVersions(ctx context.Context, of depositsOf) error {
	var uuids []string
	for _, row := range r.put[of] {
		uuids = append(uuids, row.UUID)
		r.aside(row)
		r.res.Added.Deposits--
		r.res.Added.Names = slices.DeleteFunc(r.res.Added.Names,
			func(name string) bool { return name == readable(row) })
	}
	if len(uuids) == 0 {
		return nil
	}
	return r.into.Delete(ctx, of.owner, uuids, r.now, server.Once{})
}
