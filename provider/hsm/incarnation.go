package hsm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"claviger"
	"claviger/metastore"
)

// A copy of a store has the id of the store that it was copied from. What tells them apart
// is the incarnation: a random number that a server at its start, and a command before its
// first change, writes first to the history of its store and then to the token; both write
// another after changes within the hour, or at their end. A store whose history does not
// know the incarnation that the token has is a copy, or older than the token: another copy
// has used the token since. It makes and destroys nothing there.
//
// A copy that knows the newest incarnation cannot be told from the original but by its place.
// A server takes the token from the original. A command does not. A server on an older state
// at the place that the token names serves keys, and changes none.
//
// A token whose incarnation the store knows, but which had a newer one before, is older
// than the store: it was restored from a backup, or cloned from one.

const (
	// settingHistory is the setting with the incarnations of a store, as JSON, oldest first.
	settingHistory = "store.incarnations"
	// keptIncarnations is how many a store remembers, beside the newest of each token.
	keptIncarnations = 512
	// keptPending is how many of those that no token is known to have had are remembered of
	// each token. An HSM may end the call of a process that gave up waiting.
	keptPending = 16
	// settingTaken is the setting with the incarnation that an operator has made known last
	// to a store which did not know it.
	settingTaken = "store.taken"
	// atOnce is how often a token is read that other nodes write to meanwhile.
	atOnce = 3
	// followWithin bounds how long the token waits for the standbys of the store.
	followWithin = 5 * time.Second
)

// incarnation is one entry of a store's history.
type incarnation struct {
	ID     string `json:"id"`     // 16 hex digits
	Serial string `json:"serial"` // of the token that it was made for
	// Put: that token has had it. A process that was killed leaves entries without.
	Put bool `json:"put,omitempty"`
	// URI is where the store was, in the newest entry of each token.
	URI string `json:"uri,omitempty"`
}

// usedHere tells whether a store was at this place when it was last used with this token, by
// its history.
func (p *Provider) usedHere(list []incarnation) bool {
	for _, e := range slices.Backward(list) {
		if e.Serial == p.tok.Info().Serial {
			return e.URI == p.store.URI()
		}
	}
	return false
}

// history returns a store's incarnations, oldest first.
func history(ctx context.Context, s metastore.Settings) (list []incarnation, err error) {
	text, _, err := s.Setting(ctx, settingHistory)
	if err != nil || text == "" {
		return nil, err
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, claviger.Errorf("hsm.history", claviger.Internal, "", "setting %s of the metastore: %w",
			settingHistory, err)
	}
	return list, nil
}

// setHistory writes the newest of a list, the newest that each token has had (a member of an
// HA group may be away for long), and those that a token has now.
func setHistory(ctx context.Context, s metastore.Settings, list []incarnation, now ...Binding) error {
	var kept []incarnation
	newest, placed, pending := map[string]bool{}, map[string]bool{}, map[string]int{}
	for _, e := range slices.Backward(list) {
		if !e.Put {
			pending[e.Serial]++
		}
		if placed[e.Serial] {
			e.URI = ""
		}
		placed[e.Serial] = true
		switch {
		case e.Put && !newest[e.Serial], hasIncarnation(now, e.ID),
			len(kept) < keptIncarnations && (e.Put || pending[e.Serial] <= keptPending):
			kept = append(kept, e)
		}
		newest[e.Serial] = newest[e.Serial] || e.Put
	}
	slices.Reverse(kept)
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return s.SetSetting(ctx, settingHistory, string(data))
}

// bond is what a token keeps of stores, as one of them sees it.
type bond struct {
	mine   []Binding // objects of this store; several after a crash
	others []Binding
	older  bool // the token has had a newer incarnation of this store
	lost   bool // see objectLost
	here   bool // see usedHere
}

// bond reads the token, and compares its incarnation with the store's history. The error is a
// stale misfit where another copy of the store has used the token since.
func (p *Provider) bond(ctx context.Context, id string) (b bond, err error) {
	for range atOnce { // another node may write to the token between the two
		if b, err = p.bondNow(ctx, id); !b.older && !b.lost {
			break
		}
	}
	return b, err
}

func (p *Provider) bondNow(ctx context.Context, id string) (b bond, err error) {
	// The token first: what it has is in the history before.
	all, err := bindings(ctx, p.tok)
	if err != nil {
		return b, err
	}
	b.mine, b.others = apart(all, id)
	list, err := history(ctx, p.store)
	if err != nil {
		return b, err
	}
	if b.older, err = p.compare(b.mine, list); err != nil {
		return b, err
	}
	b.here = p.usedHere(list)
	err = p.objectLost(ctx, b, list)
	b.lost = IsStale(err)
	return b, err
}

func (p *Provider) compare(mine []Binding, list []incarnation) (older bool, err error) {
	if len(mine) == 0 {
		return false, nil
	}
	at := -1 // an object from before there were incarnations
	for _, b := range mine {
		if b.Incarnation == "" {
			continue
		}
		i := slices.IndexFunc(list, func(e incarnation) bool { return e.ID == b.Incarnation })
		if i < 0 {
			return false, p.stale(b)
		}
		at = max(at, i)
	}
	serial := p.tok.Info().Serial
	// A clone that was never served is compared with what other tokens have had.
	served := slices.ContainsFunc(list, func(e incarnation) bool { return e.Put && e.Serial == serial })
	return slices.ContainsFunc(list[at+1:], func(e incarnation) bool {
		return e.Put && (e.Serial == serial || !served)
	}), nil
}

// stale says that another copy of the store has used the token.
func (p *Provider) stale(b Binding) error {
	here := b.URI == p.store.URI()
	where, why := "at "+b.URI, "another copy was started"
	if here {
		where = "at this very place"
		why = "the file was put back from an older copy, the database was restored or has failed over to a standby " +
			"that lacks the newest, an older program has used it meanwhile, or another host has a copy at the " +
			"same path"
	}
	err := stalef("metastore %s is a copy of the metastore %s (or an older state of it) that has used token %s "+
		"since %s, which this one does not know of: %s; two copies would destroy each other's keys, so nothing is "+
		"made or destroyed with this one; if it is an old copy, name the other by claviger.metastore.uri; if this "+
		"is the one to go on, stop the other, and give the token to this one: %s; then %s makes records of what the "+
		"other has made",
		p.store.URI(), where, tokenName(p.tok.Info()), b.served().UTC().Format(time.RFC3339), why,
		p.accept(), p.adopt(""))
	if here {
		return hereError{err}
	}
	return err
}

// accept is the command that has a store take the token up.
func (p *Provider) accept() string { return ourCommand("metastore accept", p.confDir, "--yes") }

// elsewhere refuses a command that would change keys with a store which another place has
// used last, where no operator has decided that this one goes on: a server may still use the
// other. mine are the objects of this store that the token has.
func (p *Provider) elsewhere(ctx context.Context, mine []Binding) error {
	b, err := p.lastElsewhere(ctx, mine)
	if err != nil || b == nil {
		return err
	}
	return stalef("token %s was last used with the metastore at %s, since %s, and metastore %s may be a copy of "+
		"that one; a command on it would stop a server that uses the other, so nothing is made, destroyed or "+
		"adopted with it; if it is a copy, name the other by claviger.metastore.uri; if this is the one to go on, "+
		"stop the other, and give the token to this one: %s (or start a server on it)",
		tokenName(p.tok.Info()), b.URI, b.served().UTC().Format(time.RFC3339), p.store.URI(), p.accept())
}

// lastElsewhere returns the object of this store that another place has written; nil where
// one names this place, or an operator has decided.
func (p *Provider) lastElsewhere(ctx context.Context, mine []Binding) (*Binding, error) {
	taken, _, err := p.store.Setting(ctx, settingTaken)
	if err != nil {
		return nil, err
	}
	for _, b := range mine {
		if b.URI == p.store.URI() || b.Incarnation == "" || b.Incarnation == taken {
			return nil, nil //nolint:nilnil // there is none
		}
	}
	if len(mine) == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	return &mine[0], nil
}

// olderToken says that a token is a backup's, and lacks keys.
func (p *Provider) olderToken(h *Holdings) error {
	return p.misfit("token %s is older than metastore %s: it was restored from a backup, or is a clone that was made "+
		"before these key versions, which it lacks: %s; what is made on it now would be lost with the restoration "+
		"of a newer backup; keys that are there are served; %s",
		tokenName(p.tok.Info()), p.store.URI(), h.Names(), p.CureLost())
}

// hasIncarnation tells whether one of the objects has an incarnation.
func hasIncarnation(objects []Binding, id string) bool {
	return slices.ContainsFunc(objects, func(b Binding) bool { return b.Incarnation == id })
}

// beginIncarnation writes a new incarnation to the store's history. One that this process
// began is used again until the token has taken it: the process changes no key before. mine
// are the objects of this store that the token has now. The binding lock is held.
func (p *Provider) beginIncarnation(ctx context.Context, mine []Binding) (id string, err error) {
	list, err := history(ctx, p.store)
	if err != nil {
		return "", err
	}
	if !p.putIncarnation.Load() && slices.ContainsFunc(list, func(e incarnation) bool { return e.ID == p.begun }) {
		return p.begun, nil
	}
	for i := range list { // a process that was killed may not have noted it
		list[i].Put = list[i].Put || hasIncarnation(mine, list[i].ID)
	}
	raw := make([]byte, 8)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	e := incarnation{ID: hex.EncodeToString(raw), Serial: p.tok.Info().Serial, URI: p.store.URI()}
	if err := setHistory(ctx, p.store, append(list, e), mine...); err != nil {
		return "", err
	}
	p.begun = e.ID
	return e.ID, nil
}

// awaitCopies gives a store's standbys a moment to have the incarnation that was just written,
// before the token has it: one that took the store's place without it would be stale, though it
// lacks no key.
func (p *Provider) awaitCopies(ctx context.Context) {
	r, ok := p.store.(metastore.Replicated)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, followWithin)
	defer cancel()
	if err := r.Followed(ctx); err != nil {
		p.log.Warn("a standby lacks what was just written to the metastore; where it takes over before it has that, "+
			"no key is made until an operator has decided", "within", followWithin, "decides", p.accept(), "err", err)
	}
}

// endIncarnation notes that the token has it. The binding lock is held.
func (p *Provider) endIncarnation(ctx context.Context, id string) error {
	list, err := history(ctx, p.store)
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].ID == id {
			list[i].Put = true
		}
	}
	return setHistory(ctx, p.store, list)
}

// renew gives the token an incarnation of this process, unless another copy of the store
// was faster.
func (p *Provider) renew(ctx context.Context) error {
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := p.bond(ctx, p.id)
	if err != nil || len(b.mine) == 0 {
		return err
	}
	return p.bindTo(ctx, p.id, b.mine, len(b.others) == 0)
}

// take gives the token an incarnation of a command, just before the command's first change.
// It does not take it from a store at another place, unless the command is an operator's
// word for that.
func (p *Provider) take(ctx context.Context) error {
	if p.access == Serve || !p.access.Changes() || p.putIncarnation.Load() || p.keepsNone.Load() {
		return nil
	}
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := p.bond(ctx, p.id)
	if claviger.Is(err, claviger.Unsupported) {
		return nil
	}
	if err != nil || len(b.mine) == 0 {
		return err
	}
	if p.access != Rebind {
		if err := p.elsewhere(ctx, b.mine); err != nil {
			return err
		}
	}
	if b.older {
		if h, err := p.Holdings(ctx); err != nil || len(h.All()) > 0 {
			return err // it stays older, so that every start sees that
		}
	}
	return p.bindTo(ctx, p.id, b.mine, len(b.others) == 0)
}

// renewChanged gives the token a new incarnation where keys were changed since the last, so
// that a copy of the store from before the changes is known as one.
func (p *Provider) renewChanged(ctx context.Context) {
	if !p.access.Changes() || p.keepsNone.Load() || !p.putIncarnation.Load() || !p.changed.Swap(false) {
		return
	}
	if err := p.renew(ctx); err != nil && !IsMisfit(err) {
		p.changed.Store(true)
		p.log.Warn("the token did not take a new incarnation of the metastore after changes; a copy of the "+
			"metastore from before them would not be noticed",
			"token", tokenName(p.tok.Info()), "metastore", p.store.URI(), "err",
			err)
	}
}

// mayDestroy refuses to destroy keys on the token where another store, or another copy of
// this one, may use them by now.
func (p *Provider) mayDestroy(ctx context.Context) error {
	if _, err := p.bindingHolds(ctx); err != nil {
		return err
	}
	return p.take(ctx)
}

// Stale fails where another copy of the store has used the token since this one did (see
// IsStale), where a store at another place has, and where that cannot be known.
func (p *Provider) Stale(ctx context.Context) error {
	b, err := p.bond(ctx, p.id)
	if claviger.Is(err, claviger.Unsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.elsewhere(ctx, b.mine)
}

// mayRecord refuses what a command does to the records of keys where the store is stale; a
// command that gives the token to this store may do it.
func (p *Provider) mayRecord(ctx context.Context) error {
	if p.access == Rebind {
		return nil
	}
	if _, err := p.bond(ctx, p.id); err != nil && !claviger.Is(err, claviger.Unsupported) {
		return err
	}
	return p.take(ctx)
}

// TakeUp makes the incarnations of the token known to a store that does not know them, or
// knows them from another place: an operator has decided that this copy goes on. Steps that are
// pending in it end, and what it has had destroyed counts as no orphan any more: the other copy
// may have used it. from is where the other copy was, "" where there was nothing to decide.
//
// written tells that the token has got an incarnation of this copy, so that the other makes and
// destroys nothing any more. Otherwise it gets one at the next start: with an access that does not
// change the token, and where the token has no object of this store. An error with from says that
// the store has done its part, and the token not.
func (p *Provider) TakeUp(ctx context.Context) (from string, written bool, err error) {
	held, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return "", false, err
	}
	from, err = p.takeUp(held)
	unlock()
	if err != nil || from == "" {
		return "", false, err
	}
	err = p.take(ctx)
	return from, p.putIncarnation.Load(), err
}

// takeUp is TakeUp. The binding lock is held.
func (p *Provider) takeUp(ctx context.Context) (from string, err error) {
	id, _, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return "", err
	}
	all, err := bindings(ctx, p.tok)
	if claviger.Is(err, claviger.Unsupported) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	list, err := history(ctx, p.store)
	if err != nil {
		return "", err
	}
	mine, others := apart(all, id)
	taken := ""
	switch b, err := p.lastElsewhere(ctx, mine); {
	case err != nil:
		return "", err
	case b != nil:
		taken, from = b.Incarnation, b.URI
	}
	for _, b := range mine {
		if b.Incarnation == "" || slices.ContainsFunc(list,
			func(e incarnation) bool { return e.ID == b.Incarnation }) {
			continue
		}
		taken, from = b.Incarnation, b.URI
		list = append(list, incarnation{ID: b.Incarnation, Serial: p.tok.Info().Serial, Put: true, URI: p.store.URI()})
	}
	if lost := p.objectLost(ctx, bond{mine: mine, others: others}, list); IsStale(lost) {
		taken, from = p.forgetPut(list), "a place that is not known"
	} else if lost != nil {
		return "", lost
	}
	if taken == "" {
		return "", nil
	}
	if err := p.store.SetSetting(ctx, settingTaken, taken); err != nil {
		return "", err
	}
	if err := EndSteps(ctx, p.store); err != nil {
		return "", err
	}
	return from, setHistory(ctx, p.store, list) // last: until then the next run finds the same
}

// KeepHistory has a store know the incarnations of another, which it takes the place of.
func KeepHistory(ctx context.Context, s, other metastore.Settings) error {
	list, err := history(ctx, s)
	if err != nil {
		return err
	}
	others, err := history(ctx, other)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, e := range list {
		known[e.ID] = true
	}
	n := len(list)
	for _, e := range others {
		if !known[e.ID] {
			list = append(list, e)
		}
	}
	if len(list) == n {
		return nil
	}
	return setHistory(ctx, s, list)
}
