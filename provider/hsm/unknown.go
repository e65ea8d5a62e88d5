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
)

const (
	// namedAtMost is how many objects a message names; the others it counts.
	namedAtMost = 10
	// surveyPause lies between two surveys of the token, which read the attributes of
	// every key.
	surveyPause = time.Hour
	// surveyRetry lies between two attempts where the token or the store did not
	// answer.
	surveyRetry = 30 * time.Second
	// surveySoon lies between two surveys at least, where one is due soon.
	surveySoon = 5 * time.Second
	// surveyAtStart is how long a start waits for the first survey.
	surveyAtStart = 5 * time.Second
)

// ours tells whether a key on a token is named as we name ours, and of which key of
// which store it is no matter: NAME@N, or NAME@ID of older versions, where ID is
// CKA_ID in hex.
func ours(k pkcs11.KeyInfo) (key, id string, ok bool) {
	key, ok = claviger.KeyOfVersion(k.Label)
	if !ok || len(k.ID) != idSize {
		return "", "", false
	}
	id = k.Label[len(key)+1:]
	if _, numbered := claviger.NumberOfID(id); numbered {
		return key, id, true
	}
	return key, id, id == fmt.Sprintf("%x", k.ID)
}

// some names a few of the labels, and counts the others.
func some(labels []string) string {
	labels = slices.Sorted(slices.Values(labels))
	more := ""
	if n := len(labels) - namedAtMost; n > 0 {
		labels, more = labels[:namedAtMost], fmt.Sprintf(" and %d more", n)
	}
	for i, l := range labels {
		labels[i] = claviger.Printable(l)
	}
	return strings.Join(labels, ", ") + more
}

// mayBeMade refuses to have a new store made beside a token that holds keys of ours:
// the store that knows them is elsewhere.
func mayBeMade(ctx context.Context, tok token, uri, confDir string) error {
	keys, err := tok.List(ctx)
	if err != nil {
		return err
	}
	var labels []string
	for _, k := range keys {
		if _, _, ok := ours(k); ok {
			labels = append(labels, k.Label)
		}
	}
	bound, err := bindings(ctx, tok)
	switch {
	case err != nil && !claviger.Is(err, claviger.Unsupported):
		return err
	case len(labels) > 0:
		return misfitError{emptyStore(uri, tok.Info(), labels, bound, confDir)}
	case len(bound) > 0: // a store that is not there yet has no id
		return misfitError{boundElsewhere(tok.Info(), bound[0], uri, confDir)}
	}
	return nil
}

// emptyStore is the refusal to serve a token's keys without their records.
func emptyStore(uri string, info pkcs11.TokenInfo, labels []string, bound []Binding, confDir string) error {
	place := ""
	if len(bound) > 0 {
		place = ", which was at " + bound[0].URI
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "",
		"the metastore %s knows no key, but token %s holds %d keys of claviger: %s; name the metastore that knows "+
			"them%s, by claviger.metastore.uri, or restore it from a backup; if it is lost, %s",
		uri, tokenName(info), len(labels), some(labels), place, cureLostStore(confDir, len(bound) > 0))
}

// cureLostStore is what an operator does whose metastore is lost. Not all of the token's
// keys are to be used again: those that were deleted look like the others.
func cureLostStore(confDir string, bound bool) string {
	flags, more := "NAME...", ""
	if bound {
		flags, more = "--rebind NAME...", ", and gives the token to this metastore"
	}
	return adoptCommand(confDir, "") + " lists the keys of the token, those that were deleted among them, and " +
		adoptCommand(confDir, flags) + " makes new records of those that you name" + more
}

// survey is what a provider knows of the objects on its token that its store does
// not refer to. Looking at a whole token takes long, so it is done at the start, in
// the background, and after the token was away.
type survey struct {
	mu      sync.Mutex
	unknown map[string]Object // by CKA_ID
	inUse   map[string]bool   // names of keys
	pending map[string]bool   // versions that steps have made which were broken off
	orphans int
	at      time.Time     // of the last that was finished
	err     error         // of the last, if it failed
	first   chan struct{} // closed by the first that is finished; nil: none is made

	stale atomic.Bool   // another is due at the next round
	wake  chan struct{} // another is due soon
}

// Survey is how the token stands to the store.
type Survey struct {
	Unknown []Object // named like ours and not known to the store, by label
	Orphans int
	At      time.Time // of the last that was finished; zero: none was
	Err     error     // of the last, if it failed
}

// Survey returns the last survey.
func (p *Provider) Survey() Survey {
	p.survey.mu.Lock()
	defer p.survey.mu.Unlock()
	s := Survey{Orphans: p.survey.orphans, At: p.survey.at, Err: p.survey.err}
	for _, o := range p.survey.unknown {
		s.Unknown = append(s.Unknown, o)
	}
	slices.SortFunc(s.Unknown, func(a, b Object) int { return strings.Compare(a.Label, b.Label) })
	return s
}

// found tells whether the last survey found a version that the store does not know, or
// knows of a step alone: it may be in use, where the store is an old copy. It is asked at
// each version that is not ours, a source's among them.
func (s *survey) found(version string) bool {
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

// used tells whether the last survey found a version of the key in use.
func (s *survey) used(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse[key]
}

// look surveys the token once.
func (p *Provider) look(ctx context.Context) error {
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
			if o.made() {
				pending[o.Label] = true
			}
		}
	}
	if err == nil {
		_, err = p.since(ctx, orphans)
	}
	if err == nil {
		if err = p.fits(ctx, allKeys); IsMisfit(err) { // that was logged
			err = nil
		}
	}
	if err == nil {
		p.renewChanged(ctx)
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
	var news []string
	for id, o := range unknown {
		if _, was := s.unknown[id]; !was {
			news = append(news, o.Label)
		}
	}
	if len(news) > 0 {
		p.log.Error("the token holds keys of claviger that the metastore does not know: it is older than the token, "+
			"or another's; see claviger hsm list and claviger hsm adopt",
			"token", tokenName(p.tok.Info()), "metastore", p.store.URI(), "count", len(news), "keys", some(news))
	}
	if s.at.IsZero() {
		close(s.first)
	}
	s.unknown, s.inUse, s.pending, s.orphans, s.at = unknown, inUse, pending, len(orphans), time.Now()
	return nil
}

// beginSurveys surveys the token now, for which a start waits a little, and goes on
// surveying until background ends.
func (p *Provider) beginSurveys(ctx, background context.Context) {
	p.survey.first, p.survey.wake = make(chan struct{}), make(chan struct{}, 1)
	done := make(chan struct{})
	p.sweep.Go(func() {
		epoch := p.epoch.Load()
		err := p.look(background)
		close(done)
		for {
			due := false
			select {
			case <-background.Done():
				return
			case <-time.After(surveyRetry):
			case <-p.survey.wake:
				due = true
				select { // notices come in numbers
				case <-background.Done():
					return
				case <-time.After(surveySoon):
				}
			}
			now := p.epoch.Load()
			due = p.survey.stale.Swap(false) || due
			if err == nil && now == epoch && !due && time.Since(p.Survey().At) < surveyPause {
				continue
			}
			if err = p.look(background); err == nil {
				epoch = now
			}
		}
	})
	select {
	case <-done:
	case <-time.After(surveyAtStart):
	case <-ctx.Done():
	}
}

// CheckUnknown names the keys on the token that are named like ours and that the
// store does not know.
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
	default:
		return nil
	}
	labels := make([]string, len(s.Unknown))
	for i, o := range s.Unknown {
		labels[i] = o.Label
	}
	return claviger.Errorf("hsm.CheckUnknown", claviger.Unavailable, "",
		"token %s holds %d keys of claviger that metastore %s does not know: %s; the metastore is older than the "+
			"token, or the keys are another's; requests for them are answered with 503; restore the newest metastore, "+
			"or look at claviger hsm adopt",
		tokenName(p.tok.Info()), len(labels), p.store.URI(), some(labels))
}

// hiddenBefore is of how many numbers that were given last unhide asks the token.
const hiddenBefore = 4

// unhide refuses to make versions of a key whose name the token knows from versions
// that the store does not: they would be hidden behind the new ones for good. n
// versions are to be made beside those in have. The key's lock is held.
func (p *Provider) unhide(ctx context.Context, op, key string, have []metastore.Version, n int) error {
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
	// The survey may be old, and another node may have made versions since that a lost
	// database has forgotten: the token is asked for the names that would be given.
	ask := map[string]bool{}
	for i := range n {
		ask[claviger.VersionName(key, fmt.Sprint(next+i))] = true
	}
	// A store that lost the end of a step knows its numbers, and not what was made of them.
	for i := max(0, next-hiddenBefore); i < next; i++ {
		id := fmt.Sprint(i)
		if !slices.ContainsFunc(have, func(v metastore.Version) bool { return v.ID == id }) {
			ask[claviger.VersionName(key, id)] = true
		}
	}
	for _, o := range p.Survey().Unknown {
		if o.Key() == key {
			ask[o.Label] = true
		}
	}
	var hidden []string
	for label := range ask {
		found, err := p.tok.FindLabel(ctx, label)
		if err != nil {
			return err
		}
		marked, err := p.mark(ctx, found)
		if err != nil {
			return err
		}
		for _, o := range marked {
			if o.Mark == Unknown {
				p.noteUnknown(o)
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
			"set them aside (claviger hsm adopt --aside %[3]s) first", key, some(hidden), key)
}

func (p *Provider) noteUnknown(o Object) {
	p.survey.mu.Lock()
	defer p.survey.mu.Unlock()
	if p.survey.unknown == nil {
		p.survey.unknown = map[string]Object{}
	}
	p.survey.unknown[o.ID] = o
}

// Absent versions: see Provider.missing.
const (
	absentFor  = time.Minute
	absentMost = 4096
)

// absent remembers which versions were looked for on the token and are not there.
type absent struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (a *absent) knows(version string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.until[version])
}

func (a *absent) note(version string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil || len(a.until) >= absentMost {
		a.until = map[string]time.Time{}
	}
	a.until[version] = time.Now().Add(absentFor)
}

// missing is what a version that the store does not know is answered with: err, which
// says so, unless the token holds it. Then the store has lost it, and may have it
// again: kind Unavailable. The token is searched only for numbers that the store has
// not given yet, and for names of the time before numbers, once a minute each: what
// the store has numbered and does not have was deleted.
func (p *Provider) missing(ctx context.Context, op, version string, err error) error {
	if !claviger.Is(err, claviger.VersionNotFound) || p.searches.turns == nil {
		return err
	}
	if p.survey.found(version) {
		return p.lost(ctx, op, version, err)
	}
	key, ok := claviger.KeyOfVersion(version)
	if !ok || p.absent.knows(version) {
		return err
	}
	known := false
	if n, numbered := claviger.VersionNumber(version); numbered {
		next, nerr := p.store.NextNumber(ctx, key)
		switch {
		case nerr != nil:
			return err // no worse than nerr: the store answered a moment ago
		case n < next && !p.survey.stale.Load():
			p.absent.note(version) // numbers only rise; a source's version is asked for often
			return err
		}
		known = next > 0
	} else if !oldID(version[len(key)+1:]) {
		return err
	}
	switch found, ferr := p.search(ctx, key, version); {
	case ferr == nil && !found:
		p.absent.note(version)
		return err
	case ferr == nil:
		return p.lost(ctx, op, version, err)
	case known:
		return claviger.Errorf(op, claviger.Unavailable, version, "the metastore does not know the version, and the "+
			"token, which may hold it, cannot be asked: %w", ferr)
	}
	return err // of a source, most likely; the sources are asked next
}

// search looks for a version's label on the token. Few look at a time, however many ask.
func (p *Provider) search(ctx context.Context, key, version string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, searchWait)
	defer cancel()
	turn, err := p.turn(ctx, key)
	if err != nil {
		return false, err
	}
	defer turn.end()
	if p.absent.knows(version) {
		return false, nil
	}
	if err := turn.begin(); err != nil {
		return false, err
	}
	found, err := p.tok.FindLabel(ctx, version)
	for _, k := range found {
		if _, _, named := ours(k); named {
			return true, err
		}
	}
	return false, err
}

// lost says that the token holds a version that the store does not know, if that is
// still so and nobody has set it aside.
func (p *Provider) lost(ctx context.Context, op, version string, err error) error {
	found, ferr := p.tok.FindLabel(ctx, version)
	if ferr == nil {
		var marked []Object
		if marked, ferr = p.mark(ctx, found); ferr == nil {
			unknown := false
			for _, o := range marked {
				if o.Mark == Unknown {
					p.noteUnknown(o)
					unknown = true
				}
				unknown = unknown || o.made()
			}
			if !unknown {
				p.absent.note(version)
				return err
			}
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, version,
		"the token holds this version, and metastore %s does not know it: it is older than the token; restore the "+
			"newest one, or have the version's record made anew by claviger hsm adopt", p.store.URI())
}

// oldID tells whether a version id is one of the time before numbers.
func oldID(id string) bool {
	return len(id) == 2*idSize && strings.Trim(id, "0123456789abcdef") == ""
}
