package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/secret"
)

// A server whose HSM does not answer at the start begins without its token. The provider then reads keys from the
// store, which was bound to a token before, and fails everything that needs the token. In the background it opens the
// token again and again. When the token is open, the provider makes the comparisons of each start, and only then uses
// the token for requests.

// Pauses between two attempts to open the token. Each is twice the one before.
const (
	firstPause = 100 * time.Millisecond
	// maxPause is for an HSM that does not answer: a server is to serve within a second of the HSM's return.
	maxPause = 400 * time.Millisecond
	// maxRefusedPause is for problems that a person must solve. An operator may solve them while the server runs.
	maxRefusedPause = 10 * time.Second
)

// firstLimit is how long the first attempt may take, and openTimeout bounds later ones; each limit is twice the one
// before. An attempt in a worker that takes longer is ended, because its library may hang for ever. Tests shorten it.
var firstLimit = 15 * time.Second

const (
	// joinLimit is how long the comparison of token and store may take.
	joinLimit = time.Minute
	// surveyLate is how long a provider waits for the first survey when the token comes late: requests wait for the
	// token.
	surveyLate = 300 * time.Millisecond
	// abandonLimit is a little longer than pkcs11 waits for a login before it closes a token.
	abandonLimit = 6 * time.Second
	// reminderInterval is the time between two log lines about one reason why the token is not open.
	reminderInterval = time.Minute
)

// missingToken marks an error of Open with MaxWait: the HSM does not answer, and the store is not bound to a token.
type missingToken struct{ error }

func (e missingToken) Unwrap() error { return e.error }

// RetryPause returns the pause before the next call of Open, after an error of Open with MaxWait. last is the pause
// before. ok is false if the HSM is not the reason for the error.
func RetryPause(last time.Duration, err error) (pause time.Duration, ok bool) {
	if missing := (missingToken{}); !errors.As(err, &missing) {
		return 0, false
	}
	return nextPause(last, err), true
}

// attempt is an attempt to open a token. It runs in the background.
type attempt struct {
	done   chan struct{} // closed when the attempt has ended
	tok    *pkcs11.Token // read it and err after done is closed
	err    error
	cancel context.CancelFunc
}

func newAttempt(cfg pkcs11.Config, limit time.Duration) *attempt {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	a := &attempt{done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(a.done)
		defer cancel()
		a.tok, a.err = pkcs11.Open(ctx, cfg)
	}()
	return a
}

// failedAttempt is an attempt that has ended with an error.
func failedAttempt(err error) *attempt {
	a := &attempt{done: make(chan struct{}), err: err, cancel: func() {}}
	close(a.done)
	return a
}

// wait returns the attempt's result. If ctx ends first, the HSM is unreachable.
func (a *attempt) wait(ctx context.Context) (*pkcs11.Token, error) {
	select {
	case <-a.done:
		return a.tok, a.err
	case <-ctx.Done():
		return nil, claviger.Unreachable(fmt.Errorf("the HSM did not answer in time: %w", ctx.Err()))
	}
}

// ended reports whether the attempt has ended.
func (a *attempt) ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// abandon ends the attempt, and closes a token that it has opened. It waits for that, up to abandonLimit: the process
// may end next, and must not end in the middle of a login, which can damage a token that keeps its state in files.
func (a *attempt) abandon() {
	a.cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-a.done
		if a.tok != nil {
			_ = a.tok.Close() // there is no caller for an error
		}
	}()
	timer := time.NewTimer(abandonLimit)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
	}
}

// openForServer is Open for a server: if the HSM does not answer, and the store is bound to a token, the provider
// begins without its token. A problem that a person must solve is an error.
func (o *opener) openForServer(ctx context.Context) (_ *Provider, err error) {
	a := newAttempt(o.cfg, openTimeout)
	used := false
	defer func() {
		if !used {
			a.abandon()
		}
	}()
	wait, cancel := context.WithTimeout(ctx, o.MaxWait)
	defer cancel()
	if _, err := a.wait(wait); err != nil && !claviger.IsUnreachable(err) {
		return nil, err
	}
	store, err := o.Store(ctx, func(ctx context.Context, uri string) error {
		tok, err := a.wait(ctx)
		if err != nil {
			return missingToken{fmt.Errorf("the metastore %s is made when the HSM answers: %w", secret.Value(uri), err)}
		}
		return mayBeMade(ctx, tok, uri, o.confDir)
	})
	if err != nil {
		return nil, err
	}
	_, bound, err := store.Setting(ctx, SettingID)
	if err != nil {
		return nil, err
	}
	if !bound { // nothing can be served from this store
		if _, err := a.wait(ctx); err != nil {
			return nil, missingToken{err}
		}
	}
	if !a.ended() {
		used = true
		time.AfterFunc(firstLimit, a.cancel)
		return o.openLate(a, store), nil
	}
	if err = a.err; err == nil {
		used = true
		var p *Provider
		if p, err = o.open(ctx, a.tok, store); err == nil {
			return p, nil
		}
	}
	if !bound || !isMissing(err) {
		return nil, err
	}
	return o.openLate(failedAttempt(err), store), nil
}

// isMissing reports whether an attempt failed because the HSM, or the store, does not answer. Some HSMs answer a few
// functions, and fail at others, while they start.
func isMissing(err error) bool {
	return claviger.IsUnreachable(err) ||
		claviger.Is(err, claviger.Unavailable) && !IsMisfit(err) && !pkcs11.IsPINRefused(err)
}

// openLate makes a provider without its token, which a opens.
func (o *opener) openLate(a *attempt, store metastore.Store) *Provider {
	late := &lateToken{cfg: o.cfg}
	p, background := o.newProvider(late, store)
	p.late = late
	p.allowSearches()
	p.background.Go(func() { p.openInBackground(background, a) })
	return p
}

// openInBackground opens the token, until that succeeds or ctx ends. a is the first attempt.
func (p *Provider) openInBackground(ctx context.Context, a *attempt) {
	began := time.Now()
	p.late.keepOpening(ctx, a, reminderInterval, func(tok *pkcs11.Token) error {
		if err := p.arrive(ctx, tok); err != nil {
			return err
		}
		p.log.Info("the HSM answers; this server uses it from now on", "token", tokenName(tok.Info()), "after",
			time.Since(began).Round(time.Millisecond))
		return nil
	}, func(err error, pause time.Duration) {
		p.log.Error("the server runs without its HSM, which is opened in the background; it serves what needs no HSM",
			"err", err, "again", pause)
	})
}

// keepOpening opens the token, until use takes it, or ctx ends. a is the first attempt. use closes a token that it does
// not take. report gets the error of an attempt if it is another one than before, or was reported longer than remind
// ago. taken is false if ctx has ended.
func (l *lateToken) keepOpening(ctx context.Context, a *attempt, remind time.Duration, use func(*pkcs11.Token) error,
	report func(err error, pause time.Duration)) (taken bool) {
	limit, pause := firstLimit, time.Duration(0)
	var reported time.Time
	var last string
	for {
		tok, err := a.wait(ctx)
		if ctx.Err() != nil {
			a.abandon()
			return false
		}
		if err == nil {
			if err = use(tok); err == nil {
				return true
			}
		}
		if errors.Is(err, context.Canceled) { // by firstLimit
			err = claviger.Unreachable(err)
		}
		l.fail(err)
		pause = nextPause(pause, err)
		if text := err.Error(); text != last || time.Since(reported) > remind {
			last, reported = text, time.Now()
			report(err, pause)
		}
		if !sleep(ctx, pause) {
			return false
		}
		limit = min(2*limit, openTimeout)
		cfg := l.cfg
		cfg.Serving = true
		a = newAttempt(cfg, limit)
	}
}

// nextPause returns the pause after an attempt that failed with err. last is the pause before. An attempt may have sent
// a wrong PIN to an HSM that has a code of its own for that, so attempts whose login failed with such a code are rare.
func nextPause(last time.Duration, err error) time.Duration {
	limit := maxPause
	if !isMissing(err) || pkcs11.MayBeWrongPIN(err) {
		limit = maxRefusedPause
	}
	return min(max(2*last, firstPause), limit)
}

// arrive makes the comparisons of a start with a token that has come late, and hands it to requests. If it fails, it
// closes the token.
func (p *Provider) arrive(ctx context.Context, tok *pkcs11.Token) error {
	// An earlier attempt may have found another token, or another state of the store.
	p.epoch.Add(1)
	p.versions.Clear()
	tok.OnReset(func() { p.epoch.Add(1) })
	p.late.attach(tok)
	joining, cancel := context.WithTimeout(context.WithValue(ctx, joiningKey{}, true), joinLimit)
	defer cancel()
	if err := p.fitTogether(joining, tok); err != nil {
		p.late.detach()
		return errors.Join(err, tok.Close())
	}
	p.late.release()
	surveying, cancel := context.WithTimeout(ctx, surveyLate)
	defer cancel()
	p.begin(surveying, ctx)
	return nil
}

// Missing returns why the provider has no token yet; nil if it has one. A provider that Open made without its token
// gets the token later, and keeps it.
func (p *Provider) Missing() error {
	if p.late == nil {
		return nil
	}
	_, err := p.late.get(context.Background(), "hsm.Missing")
	return err
}

// Arrived returns a channel that is closed when the provider has its token, and nil if it had the token from the start.
func (p *Provider) Arrived() <-chan struct{} {
	if p.late == nil {
		return nil
	}
	return p.late.arrived()
}

// Arrival says when the token came, if the provider began without its token. ok is false if the token has not come yet,
// or was there from the start.
func (p *Provider) Arrival() (o Outcome, ok bool) {
	if p.late == nil {
		return Outcome{}, false
	}
	at := p.late.at.Load()
	if at == nil {
		return Outcome{}, false
	}
	return Outcome{At: *at}, true
}

// needsToken fails for requests while the provider has no token.
func (p *Provider) needsToken(ctx context.Context, op string) error {
	if p.late == nil {
		return nil
	}
	_, err := p.late.get(ctx, op)
	return err
}
