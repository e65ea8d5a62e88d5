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

// A copy of a store has the same id as the original. The incarnation distinguishes them: a random number that is
// written first to the history of the store and then to the token. A server writes one at its start, and a command
// before its first change. Both write another one after changes, within the hour, or when they end. If a store's
// history does not have the token's incarnation, the store is a copy, or older than the token: another copy has used
// the token since. Such a store makes and destroys nothing on the token.
//
// Suppose that a copy has the newest incarnation in its history. Then only its place distinguishes it from the
// original. A server takes the token over from the original; a command does not. A server on an older state of the
// store, at the place that the token names, serves keys and changes none.
//
// Suppose that the store has the token's incarnation, and that the token had a newer one before. Then the token is
// older than the store: it was restored from a backup, or it is a clone of one.

const (
	// settingHistory is the setting with the incarnations of a store, as JSON, oldest first.
	settingHistory = "store.incarnations"
	// maxIncarnations is how many incarnations a store keeps, beside the newest of each token.
	maxIncarnations = 512
	// maxPending is how many incarnations that were perhaps never written to a token are kept for each token. An
	// HSM may still execute the call of a process that gave up waiting.
	maxPending = 16
	// settingAccepted is the setting with the incarnation that an operator last added to a store that lacked it.
	settingAccepted = "store.taken"
	// readAttempts is how often a token is read if other nodes write to it meanwhile.
	readAttempts = 3
	// standbyTimeout bounds the wait for the standbys of the store before the token is written.
	standbyTimeout = 5 * time.Second
)

// incarnation is one entry of a store's history.
type incarnation struct {
	ID     string `json:"id"`     // 16 hex digits
	Serial string `json:"serial"` // serial number of the token for which it was made
	// Put: it was written to that token. A killed process leaves entries without Put.
	Put bool `json:"put,omitempty"`
	// URI is the place of the store; only the newest entry of each token has it.
	URI string `json:"uri,omitempty"`
}

// usedAtThisPlace reports whether the store was at its present place when it was last used with this token, according
// to its history.
func (p *Provider) usedAtThisPlace(list []incarnation) bool {
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

// setHistory writes the newest entries of the list, the newest that was written to each token (a member of an HA group
// may be unreachable for long), and those of the objects in now.
func setHistory(ctx context.Context, s metastore.Settings, list []incarnation, now ...Binding) error {
	var kept []incarnation
	newest, seen, pending := map[string]bool{}, map[string]bool{}, map[string]int{}
	for _, e := range slices.Backward(list) {
		if !e.Put {
			pending[e.Serial]++
		}
		if seen[e.Serial] {
			e.URI = ""
		}
		seen[e.Serial] = true
		switch {
		case e.Put && !newest[e.Serial], hasIncarnation(now, e.ID),
			len(kept) < maxIncarnations && (e.Put || pending[e.Serial] <= maxPending):
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

// bindingState is the state of a token's bindings to stores, from the view of one store.
type bindingState struct {
	mine       []Binding // objects of this store; several after a crash
	others     []Binding // objects of other stores
	tokenOlder bool      // the token has had a newer incarnation of this store
	objectLost bool      // refuseLostObject refused the store
	samePlace  bool      // the store was at this place when it was last used with the token
}

// readBindings reads the token, and compares its incarnation with the store's history. It returns a stale misfit if
// another copy of the store has used the token since.
func (p *Provider) readBindings(ctx context.Context, id string) (b bindingState, err error) {
	for range readAttempts { // another node may write to the token between the two reads
		if b, err = p.readBindingsOnce(ctx, id); !b.tokenOlder && !b.objectLost {
			break
		}
	}
	return b, err
}

func (p *Provider) readBindingsOnce(ctx context.Context, id string) (b bindingState, err error) {
	// Read the token first: an incarnation is written to the history before it is written to the token.
	all, err := bindings(ctx, p.tok)
	if err != nil {
		return b, err
	}
	b.mine, b.others = splitBindings(all, id)
	list, err := history(ctx, p.store)
	if err != nil {
		return b, err
	}
	if b.tokenOlder, err = p.compareIncarnations(b.mine, list); err != nil {
		return b, err
	}
	b.samePlace = p.usedAtThisPlace(list)
	err = p.refuseLostObject(ctx, b, list)
	b.objectLost = IsStale(err)
	return b, err
}

func (p *Provider) compareIncarnations(mine []Binding, list []incarnation) (older bool, err error) {
	if len(mine) == 0 {
		return false, nil
	}
	at := -1 // objects from before there were incarnations have none
	for _, b := range mine {
		if b.Incarnation == "" {
			continue
		}
		i := slices.IndexFunc(list, func(e incarnation) bool { return e.ID == b.Incarnation })
		if i < 0 {
			return false, p.staleCopy(b)
		}
		at = max(at, i)
	}
	serial := p.tok.Info().Serial
	// If this token has no entry (a clone that was never used), compare with the entries of all tokens.
	served := slices.ContainsFunc(list, func(e incarnation) bool { return e.Put && e.Serial == serial })
	return slices.ContainsFunc(list[at+1:], func(e incarnation) bool {
		return e.Put && (e.Serial == serial || !served)
	}), nil
}

// staleCopy is the error that another copy of the store has used the token.
func (p *Provider) staleCopy(b Binding) error {
	here := b.URI == p.store.URI()
	where, why := "at "+b.URI, "another copy was started"
	if here {
		where = "at this very place"
		why = "the file was put back from an older copy, the database was restored or has failed over to a standby " +
			"that lacks the newest, an older release has used it meanwhile, or another host has a copy at the " +
			"same path"
	}
	err := stalef("metastore %s is a copy of the metastore %s (or an older state of it) that has used token %s "+
		"since %s, and this metastore has no record of that: %s; two copies would destroy each other's keys, so "+
		"no key is made or destroyed with this metastore; if this metastore is an old copy, name the other metastore "+
		"by claviger.metastore.uri; if this is the right metastore, stop the server with the other, and bind the "+
		"token to this metastore: %s; then %s makes records of the keys that the other server has made",
		p.store.URI(), where, tokenName(p.tok.Info()), b.served().UTC().Format(time.RFC3339), why,
		p.acceptCommandLine(), p.adoptCommandLine(""))
	if here {
		return samePlaceError{err}
	}
	return err
}

// acceptCommandLine returns the command line that makes a store take the token over.
func (p *Provider) acceptCommandLine() string {
	return commandLine("metastore accept", p.confDir, "--yes")
}

// refuseElsewhere refuses a command that would change keys with a store if a store at another place was used last, and
// no operator has decided between them: a server may still use the other store. mine are the objects of this store that
// the token has.
func (p *Provider) refuseElsewhere(ctx context.Context, mine []Binding) error {
	b, err := p.lastUsedElsewhere(ctx, mine)
	if err != nil || b == nil {
		return err
	}
	return stalef("token %s was last used with the metastore at %s, since %s, and metastore %s may be a copy of "+
		"that metastore; a command with this metastore would stop a server that uses the other metastore, so nothing "+
		"is made, destroyed or adopted; if this metastore is a copy, name the other metastore by "+
		"claviger.metastore.uri; if this is the right metastore, stop the server with the other metastore, and give "+
		"the token to this metastore: %s (or start a server with this metastore)",
		tokenName(p.tok.Info()), b.URI, b.served().UTC().Format(time.RFC3339), p.store.URI(), p.acceptCommandLine())
}

// lastUsedElsewhere returns the object of this store that was written at another place. It returns nil if an object
// names this place, or if an operator has decided.
func (p *Provider) lastUsedElsewhere(ctx context.Context, mine []Binding) (*Binding, error) {
	accepted, _, err := p.store.Setting(ctx, settingAccepted)
	if err != nil {
		return nil, err
	}
	for _, b := range mine {
		if b.URI == p.store.URI() || b.Incarnation == "" || b.Incarnation == accepted {
			return nil, nil //nolint:nilnil // no such object
		}
	}
	if len(mine) == 0 {
		return nil, nil //nolint:nilnil // no such object
	}
	return &mine[0], nil
}

// olderToken is the misfit that the token was restored from a backup and lacks keys.
func (p *Provider) olderToken(h *Holdings) error {
	return p.misfit("token %s is older than metastore %s: it was restored from a backup, or is a clone that was made "+
		"before these key versions, which it lacks: %s; a key that is made on it now would be lost when a newer "+
		"backup is restored; keys that are there are served; %s",
		tokenName(p.tok.Info()), p.store.URI(), h.Names(), p.CureLost())
}

// hasIncarnation reports whether one of the objects has the incarnation.
func hasIncarnation(objects []Binding, id string) bool {
	return slices.ContainsFunc(objects, func(b Binding) bool { return b.Incarnation == id })
}

// beginIncarnation writes a new incarnation to the store's history. Until the token has taken it, the process uses the
// same incarnation again; it changes no key before that. mine are the objects of this store that the token has now. The
// binding lock is held.
func (p *Provider) beginIncarnation(ctx context.Context, mine []Binding) (id string, err error) {
	list, err := history(ctx, p.store)
	if err != nil {
		return "", err
	}
	inHistory := slices.ContainsFunc(list, func(e incarnation) bool { return e.ID == p.lastIncarnation })
	if !p.putIncarnation.Load() && inHistory {
		return p.lastIncarnation, nil
	}
	for i := range list { // a killed process may have written it to the token only
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
	p.lastIncarnation = e.ID
	return e.ID, nil
}

// awaitStandbys gives the store's standbys a moment to get the new incarnation before the token gets it. Otherwise a
// standby that takes over without it would be stale, although it lacks no key.
func (p *Provider) awaitStandbys(ctx context.Context) {
	r, ok := p.store.(metastore.Replicated)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, standbyTimeout)
	defer cancel()
	if err := r.WaitForStandbys(ctx); err != nil {
		p.log.Warn("a standby lacks the newest write to the metastore; if it takes over without that write, no key "+
			"is made until an operator has decided", "within", standbyTimeout, "decides", p.acceptCommandLine(),
			"err", err)
	}
}

// endIncarnation records that the token has the incarnation. The binding lock is held.
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

// renewIncarnation writes a new incarnation of this process to the token, unless another copy of the store has written
// one before.
func (p *Provider) renewIncarnation(ctx context.Context) error {
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := p.readBindings(ctx, p.id)
	if err != nil || len(b.mine) == 0 {
		return err
	}
	return p.bindTo(ctx, p.id, b.mine, len(b.others) == 0)
}

// claimToken writes an incarnation of a command to the token, just before the command's first change. It does not take
// the token over from a store at another place, unless the command itself is the operator's decision to do so.
func (p *Provider) claimToken(ctx context.Context) error {
	if p.access == Serve || !p.access.Changes() || p.putIncarnation.Load() || p.keepsNoData.Load() {
		return nil
	}
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := p.readBindings(ctx, p.id)
	if claviger.Is(err, claviger.Unsupported) {
		return nil
	}
	if err != nil || len(b.mine) == 0 {
		return err
	}
	if p.access != Rebind {
		if err := p.refuseElsewhere(ctx, b.mine); err != nil {
			return err
		}
	}
	if b.tokenOlder {
		if h, err := p.Holdings(ctx); err != nil || len(h.All()) > 0 {
			return err // without a new incarnation, the next start sees again that the token is older
		}
	}
	return p.bindTo(ctx, p.id, b.mine, len(b.others) == 0)
}

// renewAfterChanges writes a new incarnation to the token if keys were changed since the last one. Then a copy of the
// store from before the changes is recognised as a copy.
func (p *Provider) renewAfterChanges(ctx context.Context) {
	if !p.access.Changes() || p.keepsNoData.Load() || !p.putIncarnation.Load() || !p.changed.Swap(false) {
		return
	}
	if err := p.renewIncarnation(ctx); err != nil && !IsMisfit(err) {
		p.changed.Store(true)
		p.log.Warn("the token did not take a new incarnation of the metastore after changes; a copy of the "+
			"metastore from before them would not be noticed",
			"token", tokenName(p.tok.Info()), "metastore", p.store.URI(), "err", err)
	}
}

// mayDestroy refuses to destroy keys on the token if another store, or another copy of this store, may use them by now.
func (p *Provider) mayDestroy(ctx context.Context) error {
	if _, err := p.compareBindings(ctx); err != nil {
		return err
	}
	return p.claimToken(ctx)
}

// CheckNotStale returns an error if another copy of the store has used the token since this copy used it (see IsStale),
// if a store at another place has used it last, or if the token or the store cannot be read.
func (p *Provider) CheckNotStale(ctx context.Context) error {
	b, err := p.readBindings(ctx, p.id)
	if claviger.Is(err, claviger.Unsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.refuseElsewhere(ctx, b.mine)
}

// mayRecord refuses to change the records of keys if the store is stale. A command that gives the token to this store
// may change them.
func (p *Provider) mayRecord(ctx context.Context) error {
	if p.access == Rebind {
		return nil
	}
	if _, err := p.readBindings(ctx, p.id); err != nil && !claviger.Is(err, claviger.Unsupported) {
		return err
	}
	return p.claimToken(ctx)
}

// AcceptCopy adds the token's incarnations to a store that lacks them, or that knows them from another place: an
// operator has decided to keep this copy. The pending steps of the store end. Objects that the store has
// destroyed no longer count as orphans, because the other copy may have used them. from is the place of the other copy;
// it is "" if there was nothing to decide.
//
// written reports that the token got an incarnation of this copy. From then on the other copy makes and destroys
// nothing. Otherwise the next start writes it: that is so with an access that does not change the token, and if the
// token has no object of this store. If AcceptCopy returns both from and an error, the store was changed and the token
// was not.
func (p *Provider) AcceptCopy(ctx context.Context) (from string, written bool, err error) {
	held, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return "", false, err
	}
	from, err = p.acceptCopy(held)
	unlock()
	if err != nil || from == "" {
		return "", false, err
	}
	err = p.claimToken(ctx)
	return from, p.putIncarnation.Load(), err
}

// acceptCopy is the part of AcceptCopy that changes the store. The binding lock is held.
func (p *Provider) acceptCopy(ctx context.Context) (from string, err error) {
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
	mine, others := splitBindings(all, id)
	accepted := ""
	switch b, err := p.lastUsedElsewhere(ctx, mine); {
	case err != nil:
		return "", err
	case b != nil:
		accepted, from = b.Incarnation, b.URI
	}
	for _, b := range mine {
		if b.Incarnation == "" || slices.ContainsFunc(list,
			func(e incarnation) bool { return e.ID == b.Incarnation }) {
			continue
		}
		accepted, from = b.Incarnation, b.URI
		list = append(list, incarnation{ID: b.Incarnation, Serial: p.tok.Info().Serial, Put: true, URI: p.store.URI()})
	}
	if lost := p.refuseLostObject(ctx, bindingState{mine: mine, others: others}, list); IsStale(lost) {
		accepted, from = p.forgetWritten(list), "a place that is not known"
	} else if lost != nil {
		return "", lost
	}
	if accepted == "" {
		return "", nil
	}
	if err := p.store.SetSetting(ctx, settingAccepted, accepted); err != nil {
		return "", err
	}
	if err := EndSteps(ctx, p.store); err != nil {
		return "", err
	}
	return from, setHistory(ctx, p.store, list) // comes last: until then the same call finds the same state again
}

// KeepHistory adds the incarnations of other to s, a store that takes the place of other.
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
