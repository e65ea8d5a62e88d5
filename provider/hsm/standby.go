package hsm

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// A standby is a second token with copies of the first one's keys, which the vendor's tools have made. It encrypts only
// while the first token does not answer. Each result proves that the copy is the right key, by the version's check
// value. No key is made on it. A key that is destroyed on the first token is destroyed on the standby too.

const (
	// firstTokenLimit is how long a request waits for a first token that makes no progress before it uses the standby.
	// A first token that is slow and works is used. Using the standby instead would report an outage that does not
	// exist.
	firstTokenLimit = 2 * time.Second
	// firstTokenPause is the time between two attempts to use the first token for a version, after a call with that
	// version failed on it.
	firstTokenPause = time.Second
	// standbyDestroyLimit is how long the destruction of a key waits for the standby to be opened.
	standbyDestroyLimit = 10 * time.Second
	// compareInterval is the time between two comparisons of the standby with the store, and comparePage the number of
	// keys that are read at once.
	compareInterval = 10 * time.Minute
	comparePage     = 1000
)

// standby is the standby token of a provider.
type standby struct {
	tok    *lateToken
	module string // of the first token

	mu   sync.Mutex
	used time.Time // the last encryption; zero if there was none
	why  error     // of the first token, at the last encryption
	last comparison
}

// comparison has the differences between the objects of a standby and the store.
type comparison struct {
	missing      []string // versions of which it has no copy
	notDestroyed []string // versions that the store has destroyed, and of which it still has a copy
}

// addStandby gives the provider the standby that the configuration names, if there is one, and opens it in the
// background. A provider that changes no key needs none, except for an inspection, which opens it.
func (o *opener) addStandby(ctx context.Context, p *Provider) {
	if o.cfg.Standby == nil {
		return
	}
	cfg := *o.cfg.Standby
	cfg.Log, cfg.Careful, cfg.Serving = p.log, o.Careful, o.Access == Serve
	s := &standby{tok: &lateToken{cfg: cfg}, module: o.cfg.Module}
	p.namedStandby = s
	if !p.access.Changes() {
		return
	}
	p.standby, p.tok.standby = s, s
	p.background.Go(func() {
		if s.open(ctx, p) && p.access == Serve {
			s.compareLater(ctx, p)
		}
	})
}

// open opens the token, until that succeeds or ctx ends. Each reason why it cannot be used is logged once: the
// check "standby token" of /readyz repeats it.
func (s *standby) open(ctx context.Context, p *Provider) (ok bool) {
	const never = time.Duration(math.MaxInt64)
	return s.tok.keepOpening(ctx, newAttempt(s.tok.cfg, firstLimit), never, func(tok *pkcs11.Token) error {
		if err := s.mayBeUsed(ctx, p, tok); err != nil {
			return errors.Join(err, tok.Close())
		}
		s.tok.attach(tok)
		s.tok.release()
		p.log.Info("the standby token can be used", "token", tokenName(tok.Info()))
		return nil
	}, func(err error, _ time.Duration) {
		p.log.Error("the standby token cannot be used; it is opened again in the background", "err", err)
	})
}

// mayBeUsed returns an error if a token is no copy of the first one: it is the first one itself, or it is bound to
// another metastore.
func (s *standby) mayBeUsed(ctx context.Context, p *Provider, tok *pkcs11.Token) error {
	const op = "hsm.standby"
	first, this := p.tok.Info(), tok.Info()
	if s.module == s.tok.cfg.Module && first.Serial == this.Serial && first.Slot == this.Slot {
		return claviger.Errorf(op, claviger.Invalid, "", "token %s is the first token itself; the line standby of the "+
			"keystore file must name another token, which has copies of its keys: correct it, and restart the server",
			tokenName(this))
	}
	id, bound, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return err
	}
	list, err := bindings(ctx, tok)
	if claviger.Is(err, claviger.Unsupported) { // the token keeps no data objects
		return nil
	}
	if err != nil {
		return err
	}
	for _, b := range list {
		if bound && b.Store != id {
			return claviger.Errorf(op, claviger.Invalid, "", "token %s belongs to another metastore, %v, so it has no "+
				"copies of the first token's keys", tokenName(this), b)
		}
	}
	return nil
}

// compareLater compares the standby with the store at once, and then in each compareInterval.
func (s *standby) compareLater(ctx context.Context, p *Provider) {
	for {
		found, err := compareStandby(ctx, s.tok, p.store)
		if err == nil {
			s.mu.Lock()
			s.last = found
			s.mu.Unlock()
			for _, text := range found.texts() {
				p.log.Warn(text, "token", tokenName(s.tok.Info()))
			}
		}
		if !sleep(ctx, compareInterval) {
			return
		}
	}
}

// texts says what an operator must do.
func (c comparison) texts() (list []string) {
	if len(c.missing) > 0 {
		list = append(list, "the standby lacks copies of keys; copy them with the vendor's tools: "+
			summarize(c.missing))
	}
	if len(c.notDestroyed) > 0 {
		list = append(list, "the standby still has copies of keys that were destroyed; destroy them with the vendor's "+
			"tools: "+summarize(c.notDestroyed))
	}
	return list
}

// copied is an object of a standby.
type copied struct{ id, label string }

// compareStandby compares the objects of the standby with the store. Whether a copy is the right key is proved when it
// is used.
func compareStandby(ctx context.Context, tok token, store metastore.Store) (c comparison, err error) {
	list, err := tok.List(ctx)
	if err != nil {
		return c, err
	}
	held := make(map[copied]bool, len(list))
	for _, k := range list {
		held[copied{hex.EncodeToString(k.ID), k.Label}] = true
	}
	if c.missing, err = takeUsed(ctx, store, held); err != nil {
		return c, err
	}
	for o := range held {
		destroyed, err := isDestroyed(ctx, store, o.id, o.label)
		if err != nil {
			return c, err
		}
		if destroyed {
			c.notDestroyed = append(c.notDestroyed, o.label)
		}
	}
	return c, nil
}

// takeUsed removes the objects of keys and of running steps from held, and returns the versions that are not there.
func takeUsed(ctx context.Context, store metastore.Store, held map[copied]bool) (missing []string, err error) {
	pending, err := store.Pending(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range pending { // a destruction that goes on destroys the copy as well
		for _, ref := range i.Refs {
			delete(held, copied{ref.Object, claviger.VersionName(i.Key, ref.ID)})
		}
	}
	for from := ""; ; {
		names, next, err := store.Page(ctx, from, comparePage)
		if err != nil {
			return nil, err
		}
		keys, err := store.Get(ctx, names...)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k == nil { // deleted meanwhile
				continue
			}
			for _, v := range k.List {
				o := copied{v.Object, claviger.VersionName(k.Name, v.ID)}
				if !held[o] {
					missing = append(missing, o.label)
				}
				delete(held, o)
			}
		}
		if from = next; next == "" {
			return missing, nil
		}
	}
}

// firstDown remembers whether the last call with a version failed on the first token.
type firstDown struct {
	mu    sync.Mutex
	until time.Time // before this time, requests go to the standby at once
	why   error     // of the failed call; nil if the last call did not fail
}

// tryFirst reports whether a request is to use the first token. After a failed call, one request in each
// firstTokenPause does.
func (d *firstDown) tryFirst() (yes bool, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == nil {
		return true, nil
	}
	now := time.Now()
	if now.Before(d.until) {
		return false, d.why
	}
	d.until = now.Add(firstTokenLimit + firstTokenPause) // for the others, until this request has its answer
	return true, nil
}

func (d *firstDown) set(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.why, d.until = why, time.Now().Add(firstTokenPause)
}

// isAway reports whether an error of the first token is of a kind that the standby may cure: the token or its key does
// not answer. A key that is missing on the token or differs there is no reason to use the standby.
func isAway(err error) bool { return claviger.Is(err, claviger.Unavailable) && !isUnusable(err) }

// encrypt encrypts with the first token, or with the standby while the first token does not answer.
func (p *Provider) encrypt(ctx context.Context, op string, e *entry, blocks []byte) error {
	return p.orStandby(ctx, e, func(ctx context.Context) error {
		return p.encryptFirst(ctx, op, e, blocks)
	}, func(ctx context.Context, tok *lateToken) error {
		return tok.EncryptBlocks(ctx, e.id, e.name, e.check, blocks)
	})
}

// orStandby makes a call with a version's key on the first token, or on the standby while the first token does not
// answer. If both fail, the error has the errors of both.
func (p *Provider) orStandby(ctx context.Context, e *entry, onFirst func(context.Context) error,
	onStandby func(context.Context, *lateToken) error) error {
	s := p.standby
	if s == nil || len(e.check) == 0 || s.missingToken() != nil {
		return onFirst(ctx)
	}
	yes, why := e.first.tryFirst()
	if yes {
		err := onFirst(pkcs11.WithStallLimit(ctx, firstTokenLimit))
		if ctx.Err() != nil {
			return err
		}
		if !isAway(err) {
			e.first.set(nil)
			return err
		}
		e.first.set(err)
		why = err
	}
	err := s.call(ctx, p, e, onStandby)
	if err != nil && !yes {
		if err := onFirst(ctx); !isAway(err) {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("%w; the standby failed too: %w", why, err)
	}
	s.record(p, why)
	return nil
}

// call makes a call with the standby's copy of a key. The store must still have the version with this key: the standby
// may hold copies of keys that were destroyed on the first token. If the standby holds several copies, call chooses the
// right one.
func (s *standby) call(ctx context.Context, p *Provider, e *entry,
	f func(context.Context, *lateToken) error) error {
	m, v, err := p.store.ByVersion(ctx, e.name)
	if err == nil {
		err = e.checkRecord(m, v)
	}
	if err != nil {
		return err
	}
	return p.withChoiceOn(ctx, s.tok, e, func() error { return f(ctx, s.tok) })
}

// prove returns nil if the standby has the version's key.
func (s *standby) prove(ctx context.Context, p *Provider, e *entry) error {
	return s.call(ctx, p, e, e.proveOn)
}

// proveOn returns nil if a token has the version's key.
func (e *entry) proveOn(ctx context.Context, tok *lateToken) error {
	return tok.Prove(ctx, e.id, e.name, e.check)
}

// missingToken returns why the standby cannot be used; nil if it can.
func (s *standby) missingToken() error {
	_, err := s.tok.get(context.Background(), "hsm.standby")
	return err
}

// record remembers an encryption with the standby.
func (s *standby) record(p *Provider, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.used) > time.Minute {
		p.log.Error("the first token does not answer; the standby is used", "token", tokenName(s.tok.Info()), "err",
			why)
	}
	s.used, s.why = now, why
}

// destroy destroys a key on the standby too, so that no copy of it is left.
func (s *standby) destroy(ctx context.Context, id []byte, label string) error {
	ctx, cancel := context.WithTimeout(ctx, standbyDestroyLimit)
	defer cancel()
	select {
	case <-s.tok.arrived():
	case <-ctx.Done():
		return claviger.Errorf("hsm.Destroy", claviger.Unavailable, "", "%s stays until the standby can be used, "+
			"because that may hold a copy: %w", label, s.missingToken())
	}
	return s.tok.Destroy(ctx, id, label)
}

// closeStandby closes the standby. The work in the background must have ended.
func (p *Provider) closeStandby() error {
	if p.standby == nil {
		return nil
	}
	return p.standby.tok.Close()
}

// HasStandby reports whether the provider uses a standby token. A provider that changes no key uses none.
func (p *Provider) HasStandby() bool { return p.standby != nil }

// CheckStandby fails if the standby cannot be used, lacks keys, has copies of destroyed keys, or was used in the last
// minute.
func (p *Provider) CheckStandby(ctx context.Context) error {
	const op = "hsm.CheckStandby"
	s := p.standby
	if err := s.missingToken(); err != nil {
		return claviger.Errorf(op, claviger.Unavailable, "", "the standby token cannot be used: %w", err)
	}
	if err := s.tok.Ping(ctx); err != nil {
		return claviger.Errorf(op, claviger.Unavailable, "", "the standby token does not answer: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	texts := s.last.texts()
	if time.Since(s.used) < time.Minute {
		texts = append([]string{fmt.Sprintf("the standby is in use, since the first token does not answer; no key is "+
			"made meanwhile (the last use was at %s): %v", s.used.UTC().Format(time.TimeOnly), s.why)}, texts...)
	}
	if len(texts) == 0 {
		return nil
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "%s", strings.Join(texts, "; "))
}
