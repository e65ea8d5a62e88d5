package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/shellword"
)

const (
	// watchPause is the pause between two checks of a server that token and store still fit together.
	// docs/hsm/binding.md states it.
	watchPause = 30 * time.Second
	// misfitTTL is how long a misfit is kept before token and store are compared again. Otherwise each attempt to
	// create a key would read all keys of the token.
	misfitTTL = 5 * time.Second
	// DecidedWithin bounds the time in which a running server notices an operator's decision (see AcceptCopy).
	DecidedWithin = watchPause + misfitTTL
	// stepSample is how many keys of the store a check looks up on the token before a key is made.
	stepSample = 8
	// watchSample is the same for a server's periodic check, which goes through all keys in turn.
	watchSample = 64
	// settingLost, followed by the token's serial number, is the setting with the CKA_IDs of versions that an operator
	// has given up on that token, as a JSON list.
	settingLost = "hsm.lost."
)

// sampleScope says which part of the store a check compares with the token.
type sampleScope int

const (
	randomKeys sampleScope = iota // a few keys, chosen at random
	nextKeys                      // the next keys in turn, and those that have lost a version
	allKeys                       // all versions
)

// fitState is the result of the last check that token and store fit together.
type fitState struct {
	mu       sync.Mutex
	err      error     // the misfit; nil if they fitted
	errAt    time.Time // time of err
	holdings Holdings  // of the last comparison

	// watchNext is the index in the sorted names at which the server's next periodic check begins.
	watchNext int
	// watchNames are the names of the last check, read at namesRead.
	watchNames []string
	namesRead  time.Time
	// wrong has the versions whose check value was wrong when it was last compared.
	wrong sync.Map
	// onLost is called with the name of each key that has lost a version.
	onLost func(key string)
}

// misfit returns the misfit that the last check found.
func (f *fitState) misfit() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// OnLost sets a function. A comparison calls it with the name of each key that has newly lost a version.
// EDEKs that were made a moment ago under that version may be lost too.
func (p *Provider) OnLost(f func(key string)) {
	p.fit.mu.Lock()
	defer p.fit.mu.Unlock()
	p.fit.onLost = f
}

// Holdings says which of a store's versions a token holds. Versions that were given up count only in GivenUp.
type Holdings struct {
	Versions    int      `json:"versions"`    // of live keys
	Lost        []string `json:"lost"`        // versions of live keys without an object on the token
	LostDeleted []string `json:"lostDeleted"` // versions of deleted keys without an object on the token
	Current     int      `json:"current"`     // current versions
	LostCurrent int      `json:"lostCurrent"`
	GivenUp     []string `json:"givenUp"` // versions without an object, given up on this token

	ids []string // CKA_IDs of all versions without an object, also of those that were given up
}

// All returns the versions that are lost, also those of deleted keys.
func (h *Holdings) All() []string { return slices.Concat(h.Lost, h.LostDeleted) }

// Names names a few of the lost versions, for a message.
func (h *Holdings) Names() string { return summarize(h.All()) }

// mostLost reports whether the token lacks more of the live versions than it holds.
func (h *Holdings) mostLost() bool { return 2*len(h.Lost) > h.Versions }

// storedVersion is a version in the store.
type storedVersion struct {
	name, object     string
	current, deleted bool
}

// storedVersions returns all versions of the store.
func (p *Provider) storedVersions(ctx context.Context) (list []storedVersion, err error) {
	err = metastore.Each(ctx, p.store, func(k *metastore.Key) {
		for i, v := range k.List {
			list = append(list, storedVersion{name: claviger.VersionName(k.Name, v.ID), object: v.Object,
				current: i == len(k.List)-1})
		}
	})
	if err != nil {
		return nil, err
	}
	deleted, err := p.store.DeletedKeys(ctx)
	for _, k := range deleted {
		for _, v := range k.List {
			name := claviger.VersionName(k.Name, v.ID)
			list = append(list, storedVersion{name: name, object: v.Object, deleted: true})
		}
	}
	return list, err
}

// Holdings compares the store with the objects on the token, by CKA_ID and label.
func (p *Provider) Holdings(ctx context.Context) (h Holdings, err error) {
	h.Lost, h.LostDeleted, h.GivenUp = []string{}, []string{}, []string{}
	// Read the store first. Then each key in the list was made before the token is read.
	list, err := p.storedVersions(ctx)
	if err != nil {
		return h, err
	}
	onToken := map[string]bool{}
	lacks := func(v storedVersion) bool { return !onToken[v.object+" "+v.name] }
	for range 2 { // a version counts as lost only if two lists lack it
		keys, err := p.tok.List(ctx)
		if err != nil {
			return h, err
		}
		for _, k := range keys {
			onToken[fmt.Sprintf("%x %s", k.ID, k.Label)] = true
		}
		if !slices.ContainsFunc(list, lacks) {
			break
		}
		// A version that was destroyed meanwhile has left the store.
		if list, err = p.withoutDeleted(ctx, list, lacks); err != nil {
			return h, err
		}
	}
	given, err := p.givenUp(ctx)
	if err != nil {
		return h, err
	}
	for _, v := range list {
		lost := lacks(v)
		if lost {
			h.ids = append(h.ids, v.object)
			if given[v.object] {
				h.GivenUp = append(h.GivenUp, v.name)
				continue
			}
		}
		switch {
		case v.deleted && lost:
			h.LostDeleted = append(h.LostDeleted, v.name)
		case v.deleted:
		case lost:
			h.Lost = append(h.Lost, v.name)
			fallthrough
		default:
			h.Versions++
		}
		if v.current {
			h.Current++
			if lost {
				h.LostCurrent++
			}
		}
	}
	slices.Sort(h.Lost)
	slices.Sort(h.LostDeleted)
	slices.Sort(h.GivenUp)
	return h, nil
}

// withoutDeleted returns the list without the versions that the token lacks and that have left the store since.
func (p *Provider) withoutDeleted(ctx context.Context, list []storedVersion,
	lacks func(storedVersion) bool) ([]storedVersion, error) {
	current, err := p.storedVersions(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(current))
	for _, v := range current {
		known[v.object] = true
	}
	return slices.DeleteFunc(list, func(v storedVersion) bool { return lacks(v) && !known[v.object] }), nil
}

// givenUp returns the CKA_IDs of versions that an operator has given up on this token.
func (p *Provider) givenUp(ctx context.Context) (map[string]bool, error) {
	name := settingLost + p.tok.Info().Serial
	text, ok, err := p.store.Setting(ctx, name)
	if err != nil || !ok {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, claviger.Errorf("hsm.Holdings", claviger.Internal, "", "setting %s of metastore %s: %w", name,
			p.store.URI(), err)
	}
	given := make(map[string]bool, len(list))
	for _, id := range list {
		given[id] = true
	}
	return given, nil
}

// givenUpRecord is the journal's record of versions that were given up.
type givenUpRecord struct {
	Token    string    `json:"token"`
	Versions []string  `json:"versions"`
	At       time.Time `json:"at"`
}

// giveUp records the versions that the token lacks as given up.
func (p *Provider) giveUp(ctx context.Context) error {
	h, err := p.Holdings(ctx)
	if err != nil {
		return err
	}
	if hidden := p.tok.Hidden(); hidden != nil && len(h.All()) > 0 {
		return claviger.Errorf("hsm.Adopt", claviger.Invalid, "", "these key versions are not given up: %s; they "+
			"may be in these files: %w", h.Names(), hidden)
	}
	given, err := p.givenUp(ctx)
	if err != nil || len(h.ids) == 0 && len(given) == 0 {
		return err
	}
	data, err := json.Marshal(append([]string{}, h.ids...))
	if err != nil {
		return err
	}
	if lost := h.All(); len(lost) > 0 {
		rec, err := json.Marshal(givenUpRecord{Token: p.tok.Info().Serial, Versions: lost,
			At: time.Now().UTC().Truncate(time.Second)})
		if err != nil {
			return err
		}
		if err := p.store.Put(ctx, journalRun, "given up "+lost[0]+" "+h.ids[0], rec); err != nil {
			return err
		}
	}
	return p.store.SetSetting(ctx, settingLost+p.tok.Info().Serial, string(data))
}

// checkFit checks that token and store still fit together: the token has the object that binds them, the store has the
// same id as before, and a few keys are on the token, with the right check values. If one of these fails, or scope is
// allKeys, it compares the whole store, and the check values of a sample. If only the object is missing, it writes the
// object again. The error is a misfit, or says that the token or the store did not answer.
func (p *Provider) checkFit(ctx context.Context, scope sampleScope) error {
	f := &p.fit
	f.mu.Lock()
	bad, age := f.err, time.Since(f.errAt)
	f.mu.Unlock()
	if bad != nil && scope != allKeys && age < misfitTTL {
		return bad
	}
	compared, err := p.compareFit(ctx, scope, bad != nil)
	if err != nil && !IsMisfit(err) || err == nil && !compared {
		return err
	}
	f.mu.Lock()
	before := f.err
	f.err, f.errAt = err, time.Now()
	f.mu.Unlock()
	switch {
	case err != nil && before == nil:
		p.log.Error("the token and the metastore no longer fit together; no key is made or rolled until they do",
			"err", err)
	case err == nil && before != nil:
		p.log.Info("the token and the metastore fit together again; keys are made and rolled", "token",
			tokenName(p.tok.Info()), "metastore", p.store.URI())
	}
	return err
}

// compareFit makes the comparisons of checkFit. hadMisfit says that the last check found a misfit. compared is false if
// a sample of keys was as before, so that there was no need to compare the whole store.
func (p *Provider) compareFit(ctx context.Context, scope sampleScope, hadMisfit bool) (compared bool, err error) {
	b, err := p.compareBindings(ctx)
	if err != nil {
		return false, err
	}
	if p.access == Serve && len(b.mine) > 0 && !b.tokenOlder && !p.putIncarnation.Load() && !p.keepsNoData.Load() {
		if err := p.renewIncarnation(ctx); err != nil {
			return false, err
		}
	}
	bound := len(b.mine) > 0 || p.keepsNoData.Load()
	if scope != allKeys && !hadMisfit && bound && !b.tokenOlder {
		if differs, err := p.sampleDiffers(ctx, scope); err != nil || !differs {
			return false, err
		}
	}
	holdings, err := p.Holdings(ctx)
	if err != nil {
		return false, err
	}
	p.recordComparison(holdings)
	found, err := p.compareValues(ctx, &holdings)
	if err == nil && hadMisfit && !found.mostWrong(&holdings) {
		err = found.checkCompared()
	}
	if err != nil {
		return false, err
	}
	return true, p.assess(ctx, bound, b.tokenOlder, &holdings, &found)
}

// compareBindings compares the ids and the incarnations again. mine is empty if the object is gone, or if the token
// keeps no objects.
func (p *Provider) compareBindings(ctx context.Context) (b bindingState, err error) {
	if p.keepsNoData.Load() {
		return b, nil
	}
	id, _, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return b, err
	}
	if id != p.id {
		return b, p.misfit("the metastore %s was replaced while this server used it (id %q, before %q); stop the "+
			"server, put the right one in its place, and start again", p.store.URI(), id, p.id)
	}
	b, err = p.readBindings(ctx, id)
	if claviger.Is(err, claviger.Unsupported) {
		return bindingState{}, nil
	}
	if err != nil {
		if IsStale(err) {
			p.alone.Store(false) // so that no object counts as an orphan
		}
		return b, err
	}
	p.alone.Store(len(b.mine) > 0 && len(b.others) == 0)
	if len(b.mine) == 0 && len(b.others) > 0 {
		return b, p.misfit("token %s was bound to the metastore %s while this server used it with %s; one of the "+
			"two must go to another token", tokenName(p.tok.Info()), b.others[0], p.store.URI())
	}
	return b, nil
}

// recordComparison stores the result of a comparison. If a key has newly lost a version, the cached entry of the
// version is dropped and onLost is called.
func (p *Provider) recordComparison(has Holdings) {
	f := &p.fit
	f.mu.Lock()
	before, onLost := f.holdings.Lost, f.onLost
	f.holdings = has
	f.mu.Unlock()
	var newlyLost []string
	for _, version := range has.Lost {
		if _, known := slices.BinarySearch(before, version); known {
			continue
		}
		newlyLost = append(newlyLost, version)
		p.versions.Delete(version)
		if key, ok := claviger.KeyOfVersion(version); ok && onLost != nil {
			onLost(key)
		}
	}
	if len(newlyLost) > 0 {
		p.log.Error("the token has lost key versions of the metastore; they are refused, others are served", "token",
			tokenName(p.tok.Info()), "metastore", p.store.URI(), "lost", summarize(newlyLost), "cure", p.CureLost())
	}
}

// assess says what a comparison means. If the token lacks only the object, or the newest incarnation, assess writes it
// again.
func (p *Provider) assess(ctx context.Context, bound, older bool, h *Holdings, v *values) error {
	switch {
	case bound && older && len(h.All()) > 0:
		return p.olderToken(h)
	case (older || !bound) && len(v.wrong) > 0 && len(h.All()) == 0, v.mostWrong(h) && !h.mostLost():
		return p.wrongValues(v)
	case bound && older && p.access != Serve: // see claimToken
		return nil
	case bound && older:
		p.log.Warn("the token is older than the metastore (a restored backup, or a clone), and every key is there; "+
			"the server goes on using it",
			"token", tokenName(p.tok.Info()), "metastore", p.store.URI())
		return p.renewIncarnation(ctx)
	case bound && !h.mostLost():
		return nil
	case bound:
		return p.misfit("token %s lacks %d of %d key versions of metastore %s: %s; keys that are there are served; %s",
			tokenName(p.tok.Info()), len(h.Lost), h.Versions, p.store.URI(), summarize(h.Lost), p.CureLost())
	case len(h.All()) > 0:
		return p.misfit("%s", p.notBound(h))
	}
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if b, err := p.readBindings(ctx, p.id); err != nil || len(b.mine) > 0 {
		return err // another node has made it, or the token did not show it for a moment
	}
	p.log.Warn("the object that binds the token to its metastore was gone, and every key was there; the object is "+
		"made again", "token", tokenName(p.tok.Info()), "metastore", p.store.URI())
	return p.bindTo(ctx, p.id, nil, true)
}

// notBound is the message for a token that has no object of the store and lacks keys of the store.
func (p *Provider) notBound(h *Holdings) string {
	return fmt.Sprintf("token %s has no object that binds it to metastore %s, and lacks these key versions of "+
		"the metastore: %s; the token was initialised again, or it is another token; keys that were made since do not "+
		"prove that the two belong together; %s",
		tokenName(p.tok.Info()), p.store.URI(), h.Names(), p.CureLost())
}

// CureLost says what an operator can do about lost keys.
func (p *Provider) CureLost() string {
	if hidden := p.tok.Hidden(); hidden != nil {
		return "they may be in these files: " + hidden.Error()
	}
	return "if the HSM was away, bring it back and restart the server; otherwise restore the HSM from its backup, or " +
		"name the right token in the keystore file and restart the server; if these keys are lost " +
		"for good, " + p.adoptCommandLine("--rebind") + " gives them up by name"
}

// Hidden returns the result of pkcs11.Token.Hidden.
func (p *Provider) Hidden() error { return p.tok.Hidden() }

// adoptCommandLine returns the command line of claviger hsm adopt, with these flags.
func (p *Provider) adoptCommandLine(flags string) string { return adoptCommand(p.confDir, flags) }

func adoptCommand(confDir, flags string) string { return commandLine("hsm adopt", confDir, flags) }

// commandLine returns the command line of a command of claviger, with these flags.
func commandLine(command, confDir, flags string) string {
	command = "claviger " + command
	if confDir != "" {
		command += " --conf " + shellword.Quote(confDir)
	}
	if flags != "" {
		command += " " + flags
	}
	return command
}

// misfit makes a misfit error for the log. Callers get a general answer, because they must not read the names of other
// users' keys.
func (p *Provider) misfit(format string, args ...any) error {
	return misfitOf("the HSM token and this server's metastore no longer fit together, so no key is made or rolled: "+
		"one of them was replaced, or the token has lost keys; an operator must restore the token or the metastore, "+
		"or give up what is lost (claviger hsm adopt --rebind); the server's log and /readyz say what is missing",
		format,
		args...)
}

func misfitOf(answer, format string, args ...any) error {
	return claviger.Answer(misfitError{claviger.Errorf("hsm.fits", claviger.Unavailable, "", format, args...)}, answer)
}

// mayMake refuses to make keys while token and store do not fit together: such a key would be lost later, or would hide
// a lost version.
func (p *Provider) mayMake(ctx context.Context) error {
	if !p.access.makesKeys() {
		return p.mayDestroy(ctx)
	}
	if err := p.checkFit(ctx, randomKeys); err != nil {
		return err
	}
	return p.claimToken(ctx)
}

// watch checks token and store every watchPause until background ends.
func (p *Provider) watch(background context.Context) {
	for {
		select {
		case <-background.Done():
			return
		case <-time.After(watchPause):
		}
		if err := p.checkFit(background, nextKeys); err != nil && !IsMisfit(err) && background.Err() == nil {
			p.log.Warn("claviger could not check whether the token and the metastore fit together; it tries again",
				"err", err, "in", watchPause)
		}
		p.retryRefused(background)
		if p.access == Serve {
			p.sweep(background)
		}
	}
}

// retryRefused verifies refused versions again: they may be back on the token, also if no request uses them.
func (p *Provider) retryRefused(ctx context.Context) {
	n := 0
	for k := range p.refused.Range {
		name, _ := k.(string)
		if n++; n > watchSample || ctx.Err() != nil {
			return
		}
		if e, err := p.entry(ctx, name); err == nil {
			_ = p.verify(ctx, e) // a version that is still wrong stays refused
		}
	}
}

// CheckFit fails if no keys can be made because token and store do not fit together.
func (p *Provider) CheckFit(ctx context.Context) error {
	const op = "hsm.CheckFit"
	if err := errors.Join(p.ready(op, ""), p.needsToken(ctx, op)); err != nil {
		return err
	}
	if !p.access.makesKeys() {
		_, err := p.compareBindings(ctx)
		return err
	}
	return p.checkFit(ctx, randomKeys)
}

// LastHoldings returns the result of the last comparison of all versions.
func (p *Provider) LastHoldings() Holdings {
	p.fit.mu.Lock()
	defer p.fit.mu.Unlock()
	h := p.fit.holdings
	h.Lost, h.LostDeleted = slices.Clone(h.Lost), slices.Clone(h.LostDeleted)
	return h
}

// CheckCurrent fails if the token holds the current version of no key: then no EDEK can be made.
func (p *Provider) CheckCurrent(context.Context) error {
	h := p.LastHoldings()
	if h.Current == 0 || h.LostCurrent < h.Current {
		return nil
	}
	return claviger.Errorf("hsm.CheckCurrent", claviger.Unavailable, "",
		"token %s holds the current version of no key of metastore %s; %s", tokenName(p.tok.Info()), p.store.URI(),
		p.CureLost())
}

// CheckAny fails if the token holds no version of the store: then no EDEK can be opened.
func (p *Provider) CheckAny(context.Context) error {
	h := p.LastHoldings()
	if h.Versions == 0 || len(h.Lost) < h.Versions {
		return nil
	}
	return claviger.Errorf("hsm.CheckAny", claviger.Unavailable, "",
		"token %s holds no key version of metastore %s; %s", tokenName(p.tok.Info()), p.store.URI(), p.CureLost())
}
