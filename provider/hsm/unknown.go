package hsm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/shellword"
)

const (
	// maxNamed is how many objects a message names. It counts the others.
	maxNamed = 10
	// surveyPause is the time between two surveys of the token. A survey reads the attributes of every key.
	surveyPause = time.Hour
	// surveyRetry is the time between two attempts if the token or the store did not answer.
	surveyRetry = 30 * time.Second
	// urgentSurveyInterval is the least time between two surveys when notices request one.
	urgentSurveyInterval = 5 * time.Second
	// surveyAtStart is how long a start waits for the first survey, if the store has at most surveyedKeys keys. With
	// more keys the survey takes too long. A creation waits for the survey in any case (refuseHidden).
	surveyAtStart = 5 * time.Second
	surveyedKeys  = 1000
)

// isOurs reports whether a key on a token is named like a key of claviger, whichever store it belongs to: NAME@N, or
// NAME@ID of older versions, where ID is CKA_ID in hex.
func isOurs(k pkcs11.KeyInfo) bool {
	key, ok := claviger.KeyOfVersion(k.Label)
	if !ok || len(k.ID) != idSize {
		return false
	}
	id := k.Label[len(key)+1:]
	if _, numbered := claviger.NumberOfID(id); numbered {
		return true
	}
	return id == fmt.Sprintf("%x", k.ID)
}

// summarize names a few of the labels, and counts the others.
func summarize(labels []string) string {
	labels = slices.Sorted(slices.Values(labels))
	for i, l := range labels {
		labels[i] = claviger.Printable(l)
	}
	return claviger.FirstNames(labels, maxNamed)
}

// mayBeMade refuses to create a new store if the token holds keys of claviger: another store has their records.
func mayBeMade(ctx context.Context, tok token, uri, confDir string) error {
	keys, err := tok.List(ctx)
	if err != nil {
		return err
	}
	var labels []string
	for _, k := range keys {
		if isOurs(k) {
			labels = append(labels, k.Label)
		}
	}
	bound, err := bindings(ctx, tok)
	switch {
	case err != nil && !claviger.Is(err, claviger.Unsupported):
		return err
	case len(labels) > 0:
		return misfitError{emptyStore(uri, tok.Info(), labels, bound, confDir)}
	case len(bound) > 0: // a store that does not exist yet has no id, so this is another store
		return misfitError{boundElsewhere(tok.Info(), bound[0], uri, confDir)}
	}
	return nil
}

// emptyStore is the refusal to use a store without keys with a token that holds keys of claviger.
func emptyStore(uri string, info pkcs11.TokenInfo, labels []string, bound []Binding, confDir string) error {
	place := ""
	if len(bound) > 0 {
		place = ", which was at " + bound[0].URI
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "",
		"the metastore %s knows no key, but token %s holds %d keys of claviger: %s; name the metastore that knows "+
			"them%s, by claviger.metastore.uri, or restore it from a backup; if it is lost, %s",
		uri, tokenName(info), len(labels), summarize(labels), place, cureLostStore(confDir, len(bound) > 0))
}

// cureLostStore says what an operator can do if the metastore is lost. The operator must name the keys to use again,
// because the token does not show which of its keys were deleted.
func cureLostStore(confDir string, bound bool) string {
	flags, more := "NAME...", ""
	if bound {
		flags, more = "--rebind NAME...", ", and gives the token to this metastore"
	}
	return adoptCommand(confDir, "") + " lists the keys of the token, those that were deleted among them, and " +
		adoptCommand(confDir, flags) + " makes new records of those that you name" + more
}

// surveyState is the result of the last survey: the objects on the token to which the store does not refer. A survey of
// a whole token takes long. So it is made at the start, in the background, and when the token answers again.
type surveyState struct {
	mu       sync.Mutex
	unknown  map[string]Object // by CKA_ID
	inUse    map[string]bool   // names of keys
	pending  map[string]bool   // versions that interrupted steps have made
	orphans  int
	finished time.Time     // end of the last survey that succeeded
	err      error         // of the last survey, if it failed
	first    chan struct{} // closed when the first survey has succeeded; nil if no surveys are made

	stale atomic.Bool   // the next round makes a survey
	wake  chan struct{} // requests a survey within urgentSurveyInterval
}

// Survey is the result of the last survey of the token.
type Survey struct {
	Unknown []Object // objects that the store does not know, by label
	Orphans int
	At      time.Time // end of the last survey that succeeded; zero if none did
	Err     error     // of the last survey, if it failed
}

// Survey returns the last survey.
func (p *Provider) Survey() Survey {
	p.survey.mu.Lock()
	defer p.survey.mu.Unlock()
	s := Survey{Orphans: p.survey.orphans, At: p.survey.finished, Err: p.survey.err}
	for _, o := range p.survey.unknown {
		s.Unknown = append(s.Unknown, o)
	}
	slices.SortFunc(s.Unknown, func(a, b Object) int { return strings.Compare(a.Label, b.Label) })
	return s
}

// holdsUnknown reports whether the last survey found a version that the store does not know, or knows only from an
// interrupted step: such a version may be in use, if the store is an old copy. It is called for each version that is
// not in the store, also for those of a source.
func (s *surveyState) holdsUnknown(version string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[version] {
		return true
	}
	for _, o := range s.unknown {
		if o.Label == version {
			return true
		}
	}
	return false
}

// inUseAtLast reports whether the last survey found a version of the key in use.
func (s *surveyState) inUseAtLast(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse[key]
}

// surveyToken surveys the token once.
func (p *Provider) surveyToken(ctx context.Context) error {
	objects, err := p.Objects(ctx)
	unknown, inUse, pending := map[string]Object{}, map[string]bool{}, map[string]bool{}
	var orphans []Object
	for _, o := range objects {
		switch o.Mark {
		case Unknown:
			unknown[o.ID] = o
		case Orphan:
			orphans = append(orphans, o)
		case InUse, Pending:
			inUse[o.Key()] = true
			if o.madeByStep() {
				pending[o.Label] = true
			}
		}
	}
	if err == nil {
		_, err = p.recordSince(ctx, orphans)
	}
	if err == nil {
		if err = p.checkFit(ctx, allKeys); IsMisfit(err) { // checkFit has logged it
			err = nil
		}
	}
	if err == nil {
		p.renewAfterChanges(ctx)
	}
	s := &p.survey
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = err; err != nil {
		if ctx.Err() == nil {
			p.log.Warn("the token could not be surveyed for keys that the metastore does not know; the next attempt "+
				"follows", "err", err, "in", surveyRetry)
		}
		return err
	}
	var newlyFound []string
	for id, o := range unknown {
		if _, was := s.unknown[id]; !was {
			newlyFound = append(newlyFound, o.Label)
		}
	}
	if len(newlyFound) > 0 {
		p.log.Error("the token holds keys of claviger that the metastore does not know: the metastore is older than "+
			"the token, or the keys belong to another metastore; see claviger hsm list and claviger hsm adopt",
			"token", tokenName(p.tok.Info()), "metastore", p.store.URI(), "count", len(newlyFound), "keys",
			summarize(newlyFound))
	}
	if s.finished.IsZero() {
		close(s.first)
	}
	s.unknown, s.inUse, s.pending, s.orphans, s.finished = unknown, inUse, pending, len(orphans), time.Now()
	return nil
}

// beginSurveys begins to survey the token until background ends. It waits for the first survey, see surveyAtStart.
func (p *Provider) beginSurveys(ctx, background context.Context) {
	done := make(chan struct{})
	p.background.Go(func() {
		epoch := p.epoch.Load()
		err := p.surveyToken(background)
		close(done)
		for {
			due := false
			select {
			case <-background.Done():
				return
			case <-time.After(surveyRetry):
			case <-p.survey.wake:
				due = true
				select { // wait for more notices, because they come in groups
				case <-background.Done():
					return
				case <-time.After(urgentSurveyInterval):
				}
			}
			now := p.epoch.Load()
			due = p.survey.stale.Swap(false) || due
			if err == nil && now == epoch && !due && time.Since(p.Survey().At) < surveyPause {
				continue
			}
			if err = p.surveyToken(background); err == nil {
				epoch = now
			}
		}
	})
	if _, more, err := p.store.Page(metastore.AllowIncomplete(ctx), "", surveyedKeys); err != nil || more != "" {
		return
	}
	select {
	case <-done:
	case <-time.After(surveyAtStart):
	case <-ctx.Done():
	}
}

// CheckUnknown names the keys of claviger on the token that the store does not know.
func (p *Provider) CheckUnknown(context.Context) error {
	if err := p.ready("hsm.CheckUnknown", ""); err != nil {
		return err
	}
	s := p.Survey()
	switch {
	case len(s.Unknown) > 0:
	case s.At.IsZero() && s.Err != nil:
		return claviger.Errorf("hsm.CheckUnknown", claviger.Unavailable, "", "the token was not surveyed yet: %w",
			s.Err)
	case s.At.IsZero() && p.survey.first != nil:
		return claviger.Errorf("hsm.CheckUnknown", claviger.Unavailable, "", "the first survey of the token since the "+
			"start has not ended: keys that the metastore has lost are not known yet, and a new key waits for it")
	default:
		return nil
	}
	labels := make([]string, len(s.Unknown))
	for i, o := range s.Unknown {
		labels[i] = o.Label
	}
	return claviger.Errorf("hsm.CheckUnknown", claviger.Unavailable, "",
		"token %s holds %d keys of claviger that metastore %s does not know: %s; the metastore is older than the "+
			"token, or the keys belong to another metastore; requests for them are answered with 503; restore the "+
			"newest metastore, or see claviger hsm adopt",
		tokenName(p.tok.Info()), len(labels), p.store.URI(), summarize(labels))
}

// hiddenBefore is how many of the last given numbers refuseHidden looks up on the token.
const hiddenBefore = 4

// refuseHidden refuses to make versions of a key if the token holds versions of that name that the store does not know:
// the new versions would hide these permanently. n versions are to be made, beside the known ones. The key's lock is
// held.
func (p *Provider) refuseHidden(ctx context.Context, op, key string, known []metastore.Version, n int) error {
	if p.survey.first != nil {
		select {
		case <-p.survey.first:
		case <-ctx.Done():
			return claviger.Errorf(op, claviger.Unavailable, key, "the token is still being surveyed for keys that "+
				"the metastore does not know: %w", context.Cause(ctx))
		}
	}
	next, err := p.store.NextNumber(ctx, key)
	if err != nil {
		return err
	}
	// The survey may be old. Another node may have made versions since, and a lost database may have forgotten them. So
	// look up on the token the names that would be given now.
	labels := map[string]bool{}
	for i := range n {
		labels[claviger.VersionName(key, fmt.Sprint(next+i))] = true
	}
	// A store that lost the end of a step knows the step's numbers, but not its versions.
	for i := max(0, next-hiddenBefore); i < next; i++ {
		id := fmt.Sprint(i)
		if !slices.ContainsFunc(known, func(v metastore.Version) bool { return v.ID == id }) {
			labels[claviger.VersionName(key, id)] = true
		}
	}
	for _, o := range p.Survey().Unknown {
		if o.Key() == key {
			labels[o.Label] = true
		}
	}
	var hidden []string
	for label := range labels {
		found, err := p.tok.FindLabel(ctx, label)
		if err != nil {
			return err
		}
		marked, err := p.markFound(ctx, found)
		if err != nil {
			return err
		}
		for _, o := range marked {
			if o.Mark == Unknown {
				p.recordUnknown(o)
				hidden = append(hidden, o.Label)
			}
		}
	}
	if len(hidden) == 0 {
		return nil
	}
	return claviger.Errorf(op, claviger.Invalid, key,
		"the token holds versions of key %q that this server's metastore does not know: %s; a new version would "+
			"hide them, and what is encrypted with them; an operator must bring them back (claviger hsm adopt %s) or "+
			"set them aside (claviger hsm adopt --aside %[3]s) first", key, summarize(hidden), shellword.Quote(key))
}

func (p *Provider) recordUnknown(o Object) {
	p.survey.mu.Lock()
	defer p.survey.mu.Unlock()
	if p.survey.unknown == nil {
		p.survey.unknown = map[string]Object{}
	}
	p.survey.unknown[o.ID] = o
}

// Limits of missingVersions, see missingInStore.
const (
	missingTTL = time.Minute
	maxMissing = 4096
)

// missingVersions remembers which versions are neither in the store nor on the token.
type missingVersions struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (a *missingVersions) contains(version string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.until[version])
}

func (a *missingVersions) put(version string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil || len(a.until) >= maxMissing {
		a.until = map[string]time.Time{}
	}
	a.until[version] = time.Now().Add(missingTTL)
}

// missingInStore returns the error for a version that the store does not know. That is err, unless the token holds the
// version: then the store has lost it and may get it back, so the kind is Unavailable. The token is searched once a
// minute for each version, and only for numbers that the store has not given yet and for version ids from before there
// were numbers. If the store gave the number and does not have the version, the version was deleted.
func (p *Provider) missingInStore(ctx context.Context, op, version string, err error) error {
	if !claviger.Is(err, claviger.VersionNotFound) || p.searches.slots == nil {
		return err
	}
	if p.survey.holdsUnknown(version) {
		return p.lostVersionError(ctx, op, version, err)
	}
	key, ok := claviger.KeyOfVersion(version)
	if !ok || p.missingVersions.contains(version) {
		return err
	}
	known := false
	if n, numbered := claviger.VersionNumber(version); numbered {
		next, nerr := p.store.NextNumber(ctx, key)
		switch {
		case nerr != nil:
			return nerr // without the number, err does not say whether the store has lost the version
		case n < next && !p.survey.stale.Load():
			p.missingVersions.put(version) // numbers only rise; clients often request versions of a source
			return err
		}
		known = next > 0
	} else if !oldID(version[len(key)+1:]) {
		return err
	}
	switch found, ferr := p.searchToken(ctx, key, version); {
	case ferr == nil && !found:
		p.missingVersions.put(version)
		return err
	case ferr == nil:
		return p.lostVersionError(ctx, op, version, err)
	case known:
		return claviger.Errorf(op, claviger.Unavailable, version, "the metastore does not know the version, and the "+
			"token, which may hold it, could not be searched: %w", ferr)
	}
	return err // most likely a version of a source; the sources are tried next
}

// searchToken searches the token for a version's label. Only a few searches run at a time.
func (p *Provider) searchToken(ctx context.Context, key, version string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, searchWait)
	defer cancel()
	slot, err := p.acquireSearchSlot(ctx, key)
	if err != nil {
		return false, err
	}
	defer slot.release()
	if p.missingVersions.contains(version) {
		return false, nil
	}
	if err := slot.count(); err != nil {
		return false, err
	}
	found, err := p.tok.FindLabel(ctx, version)
	for _, k := range found {
		if isOurs(k) {
			return true, err
		}
	}
	return false, err
}

// lostVersionError returns the error for a version that the token holds and the store does not know. If the token no
// longer holds it, or an operator has set it aside, it returns err.
func (p *Provider) lostVersionError(ctx context.Context, op, version string, err error) error {
	found, ferr := p.tok.FindLabel(ctx, version)
	if ferr == nil {
		var marked []Object
		if marked, ferr = p.markFound(ctx, found); ferr == nil {
			unknown := false
			for _, o := range marked {
				if o.Mark == Unknown {
					p.recordUnknown(o)
					unknown = true
				}
				unknown = unknown || o.madeByStep()
			}
			if !unknown {
				p.missingVersions.put(version)
				return err
			}
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, version,
		"the token holds this version, and metastore %s does not know it: the metastore is older than the token; "+
			"restore the newest metastore, or make the version's record again with claviger hsm adopt", p.store.URI())
}

// oldID reports whether a version id is from before there were numbers.
func oldID(id string) bool {
	return len(id) == 2*idSize && strings.Trim(id, "0123456789abcdef") == ""
}
