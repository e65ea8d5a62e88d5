package hsm

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
)

const (
	// watchPause lies between two looks of a server at whether token and store still
	// fit. docs/hsm.md states it.
	watchPause = 30 * time.Second
	// doubted is how long the outcome of a whole comparison holds while they do not:
	// then each creation would have all keys of the token read.
	doubted = 5 * time.Second
	// DecidedWithin bounds the time in which a server that runs notices what an operator has
	// decided (see TakeUp).
	DecidedWithin = watchPause + doubted
	// sampled is how many keys of the store a look before a creation asks the token for.
	sampled = 8
	// watched is the same of a server's own look, which goes through all keys in turn.
	watched = 64
	// settingLost and the token's serial number is the setting with the CKA_IDs of
	// versions that an operator has given up on that token, as a JSON list.
	settingLost = "hsm.lost."
)

// depth is how much a look compares.
type depth int

const (
	fewKeys  depth = iota // any few keys
	nextKeys              // the next keys in turn, and those that have lost a version
	allKeys               // all versions
)

// fit is how token and store fitted when they were last looked at.
type fit struct {
	mu  sync.Mutex
	bad error     // nil: they fitted
	at  time.Time // of bad
	has Holdings  // of the last comparison

	// next is where the next look of the server itself begins, in the sorted names.
	next int
	// names are those of the last look, and named its time.
	names []string
	named time.Time
	// onLost is called with the name of each key that has lost a version.
	onLost func(key string)
}

// OnLost sets what is called with the name of each key of which a comparison newly found
// a version to be lost. What was encrypted under it just now may never be opened.
func (p *Provider) OnLost(f func(key string)) {
	p.fit.mu.Lock()
	defer p.fit.mu.Unlock()
	p.fit.onLost = f
}

// Holdings are what a token holds of a store's versions. What was given up is not
// counted.
type Holdings struct {
	Versions    int      `json:"versions"`    // of live keys
	Lost        []string `json:"lost"`        // those whose object is not on the token
	LostDeleted []string `json:"lostDeleted"` // of deleted keys, the same
	Current     int      `json:"current"`     // current versions
	LostCurrent int      `json:"lostCurrent"`
	GivenUp     []string `json:"givenUp"` // not on the token, and given up there

	ids []string // CKA_IDs of the lost, those that were given up before among them
}

// All are the versions that are lost, those of deleted keys too.
func (h *Holdings) All() []string { return slices.Concat(h.Lost, h.LostDeleted) }

// Names are a few of them in words.
func (h *Holdings) Names() string { return some(h.All()) }

// most tells whether the token lacks more of the live versions than it holds.
func (h *Holdings) most() bool { return 2*len(h.Lost) > h.Versions }

// stored is a version as a store knows it.
type stored struct {
	name, object     string
	current, shelved bool
}

// stored returns all versions of the store.
func (p *Provider) stored(ctx context.Context) (list []stored, err error) {
	err = metastore.Each(ctx, p.store, func(k *metastore.Key) {
		for i, v := range k.List {
			list = append(list, stored{name: claviger.VersionName(k.Name, v.ID), object: v.Object,
				current: i == len(k.List)-1})
		}
	})
	if err != nil {
		return nil, err
	}
	shelved, err := p.store.Shelved(ctx)
	for _, k := range shelved {
		for _, v := range k.List {
			list = append(list, stored{name: claviger.VersionName(k.Name, v.ID), object: v.Object, shelved: true})
		}
	}
	return list, err
}

// Holdings compares the store with what the token holds, by CKA_ID and label.
func (p *Provider) Holdings(ctx context.Context) (h Holdings, err error) {
	h.Lost, h.LostDeleted, h.GivenUp = []string{}, []string{}, []string{}
	// The store first: a key that is made meanwhile is on the token then.
	list, err := p.stored(ctx)
	if err != nil {
		return h, err
	}
	keys, err := p.tok.List(ctx)
	if err != nil {
		return h, err
	}
	there := make(map[string]bool, len(keys))
	for _, k := range keys {
		there[fmt.Sprintf("%x %s", k.ID, k.Label)] = true
	}
	lacks := func(v stored) bool { return !there[v.object+" "+v.name] }
	if slices.ContainsFunc(list, lacks) { // one that was destroyed meanwhile has left the store
		if list, err = p.still(ctx, list, lacks); err != nil {
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
		case v.shelved && lost:
			h.LostDeleted = append(h.LostDeleted, v.name)
		case v.shelved:
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

// still is a list without the versions that the token lacks and that have left the
// store since.
func (p *Provider) still(ctx context.Context, list []stored, lacks func(stored) bool) ([]stored, error) {
	now, err := p.stored(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(now))
	for _, v := range now {
		known[v.object] = true
	}
	return slices.DeleteFunc(list, func(v stored) bool { return lacks(v) && !known[v.object] }), nil
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

// givenUp is the journal's record of versions that were given up.
type givenUp struct {
	Token    string    `json:"token"`
	Versions []string  `json:"versions"`
	At       time.Time `json:"at"`
}

// giveUp notes what the token lacks as given up.
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
		rec, err := json.Marshal(givenUp{Token: p.tok.Info().Serial, Versions: lost,
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

// fits looks at whether token and store still fit: the token has the object that binds
// them, the store has the id that it had, and a few keys are on the token. Where one of
// these fails, or much is allKeys, all of the store is compared. An object that alone
// is missing is made anew. The error is a misfit, or says that the
// token or the store did not answer.
func (p *Provider) fits(ctx context.Context, much depth) error {
	f := &p.fit
	f.mu.Lock()
	bad, age := f.bad, time.Since(f.at)
	f.mu.Unlock()
	if bad != nil && much != allKeys && age < doubted {
		return bad
	}
	b, err := p.bindingHolds(ctx)
	if err != nil && !IsMisfit(err) {
		return err
	}
	if err == nil && p.access == Serve && len(b.mine) > 0 && !b.older && !p.putIncarnation.Load() &&
		!p.keepsNone.Load() {
		if err = p.renew(ctx); err != nil && !IsMisfit(err) {
			return err
		}
	}
	if err == nil {
		bound := len(b.mine) > 0 || p.keepsNone.Load()
		all := much == allKeys || bad != nil || !bound || b.older
		if !all {
			if all, err = p.sampleDiffers(ctx, much); err != nil {
				return err
			}
		}
		if !all {
			return nil
		}
		var has Holdings
		if has, err = p.Holdings(ctx); err != nil {
			return err
		}
		p.compared(has)
		if err = p.judge(ctx, bound, b.older, &has); err != nil && !IsMisfit(err) {
			return err
		}
	}
	f.mu.Lock()
	was := f.bad
	f.bad, f.at = err, time.Now()
	f.mu.Unlock()
	switch {
	case err != nil && was == nil:
		p.log.Error("the token and the metastore no longer fit together; no key is made or rolled until they do",
			"err",
			err)
	case err == nil && was != nil:
		p.log.Info("the token and the metastore fit together again; keys are made and rolled", "token",
			tokenName(p.tok.Info()), "metastore", p.store.URI())
	}
	return err
}

// bindingHolds compares the ids and the incarnations once more. mine is empty where the
// object is gone, or the token keeps none.
func (p *Provider) bindingHolds(ctx context.Context) (b bond, err error) {
	if p.keepsNone.Load() {
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
	b, err = p.bond(ctx, id)
	if claviger.Is(err, claviger.Unsupported) {
		return bond{}, nil
	}
	if err != nil {
		if IsStale(err) {
			p.alone.Store(false) // nothing is an orphan
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

// compared remembers what a comparison found. Of a key that has lost a version nothing is
// believed any more that was found before.
func (p *Provider) compared(has Holdings) {
	f := &p.fit
	f.mu.Lock()
	was, onLost := f.has.Lost, f.onLost
	f.has = has
	f.mu.Unlock()
	var news []string
	for _, version := range has.Lost {
		if _, known := slices.BinarySearch(was, version); known {
			continue
		}
		news = append(news, version)
		p.versions.Delete(version)
		if key, ok := claviger.KeyOfVersion(version); ok && onLost != nil {
			onLost(key)
		}
	}
	if len(news) > 0 {
		p.log.Error("the token has lost key versions of the metastore; they are refused, others are served", "token",
			tokenName(p.tok.Info()), "metastore", p.store.URI(), "lost", some(news), "cure", p.CureLost())
	}
}

// judge says what a comparison means. A token that lacks nothing but the object, or the
// newest incarnation, gets that anew.
func (p *Provider) judge(ctx context.Context, bound, older bool, h *Holdings) error {
	switch {
	case bound && older && len(h.All()) > 0:
		return p.olderToken(h)
	case bound && older && p.access != Serve: // see take
		return nil
	case bound && older:
		p.log.Warn("the token is older than the metastore (a restored backup, or a clone), and every key is there; "+
			"it is used on",
			"token", tokenName(p.tok.Info()), "metastore", p.store.URI())
		return p.renew(ctx)
	case bound && !h.most():
		return nil
	case bound:
		return p.misfit("token %s lacks %d of %d key versions of metastore %s: %s; keys that are there are served; %s",
			tokenName(p.tok.Info()), len(h.Lost), h.Versions, p.store.URI(), some(h.Lost), p.CureLost())
	case len(h.All()) > 0:
		return p.misfit("%s", p.notBound(h))
	}
	p.log.Warn("the object that binds the token to its metastore was gone, and every key was there; it is made anew",
		"token", tokenName(p.tok.Info()), "metastore", p.store.URI())
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return p.bindTo(ctx, p.id, nil, true)
}

// notBound says that a token has no object of the store and lacks keys of it.
func (p *Provider) notBound(h *Holdings) string {
	return fmt.Sprintf("token %s has no object that binds it to metastore %s, and lacks these key versions of it: "+
		"%s; it was initialised anew, or it is another; keys that were made since are no proof; %s",
		tokenName(p.tok.Info()), p.store.URI(), h.Names(), p.CureLost())
}

// CureLost is what an operator does about lost keys.
func (p *Provider) CureLost() string {
	if hidden := p.tok.Hidden(); hidden != nil {
		return "they may be in these files: " + hidden.Error()
	}
	return "restore the HSM from its backup, or name the right token in the keystore file; if these keys are lost " +
		"for good, " + p.adopt("--rebind") + " gives them up by name"
}

// Hidden is pkcs11.Token.Hidden.
func (p *Provider) Hidden() error { return p.tok.Hidden() }

// adopt is the command that adopts, with its flags.
func (p *Provider) adopt(flags string) string { return adoptCommand(p.confDir, flags) }

func adoptCommand(confDir, flags string) string { return ourCommand("hsm adopt", confDir, flags) }

// ourCommand is a command of claviger, with its flags.
func ourCommand(command, confDir, flags string) string {
	command = "claviger " + command
	if confDir != "" {
		command += " --conf " + confDir
	}
	if flags != "" {
		command += " " + flags
	}
	return command
}

// misfit makes the error for the log, with an answer for callers, who are not to read
// the names of others' keys.
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

// mayMake refuses to make keys while token and store do not fit together: what is made
// then would be lost, or would hide what was.
func (p *Provider) mayMake(ctx context.Context) error {
	if !p.access.makes() {
		return p.mayDestroy(ctx)
	}
	if err := p.fits(ctx, fewKeys); err != nil {
		return err
	}
	return p.take(ctx)
}

// watch looks at token and store until background ends.
func (p *Provider) watch(background context.Context) {
	for {
		select {
		case <-background.Done():
			return
		case <-time.After(watchPause):
		}
		if err := p.fits(background, nextKeys); err != nil && !IsMisfit(err) && background.Err() == nil {
			p.log.Warn("whether the token and the metastore fit together could not be seen; the next attempt follows",
				"err", err, "in", watchPause)
		}
		p.tryRefused(background)
	}
}

// tryRefused verifies versions anew that were refused, for no request may ask for them
// once they are there again.
func (p *Provider) tryRefused(ctx context.Context) {
	tried := 0
	for k := range p.refused.Range {
		name, _ := k.(string)
		if tried++; tried > watched || ctx.Err() != nil {
			return
		}
		if e, err := p.entry(ctx, name); err == nil {
			_ = p.verify(ctx, e) // what is still wrong stays refused
		}
	}
}

// CheckFit says whether keys can be made: token and store fit together.
func (p *Provider) CheckFit(ctx context.Context) error {
	if err := p.ready("hsm.CheckFit", ""); err != nil {
		return err
	}
	if !p.access.makes() {
		_, err := p.bindingHolds(ctx)
		return err
	}
	return p.fits(ctx, fewKeys)
}

// Holds tells what the token held of the store's versions when all of them were last
// compared.
func (p *Provider) Holds() Holdings {
	p.fit.mu.Lock()
	defer p.fit.mu.Unlock()
	h := p.fit.has
	h.Lost, h.LostDeleted = slices.Clone(h.Lost), slices.Clone(h.LostDeleted)
	return h
}

// CheckCurrent fails where the token holds no key's current version: then no EDEK can
// be made.
func (p *Provider) CheckCurrent(context.Context) error {
	h := p.Holds()
	if h.Current == 0 || h.LostCurrent < h.Current {
		return nil
	}
	return claviger.Errorf("hsm.CheckCurrent", claviger.Unavailable, "",
		"token %s holds the current version of no key of metastore %s; %s", tokenName(p.tok.Info()), p.store.URI(),
		p.CureLost())
}

// CheckAny fails where the token holds no version at all: then no EDEK can be opened.
func (p *Provider) CheckAny(context.Context) error {
	h := p.Holds()
	if h.Versions == 0 || len(h.Lost) < h.Versions {
		return nil
	}
	return claviger.Errorf("hsm.CheckAny", claviger.Unavailable, "",
		"token %s holds no key version of metastore %s; %s", tokenName(p.tok.Info()), p.store.URI(), p.CureLost())
}
