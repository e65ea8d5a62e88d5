package authn

import (
	"context"
	"time"

	"claviger"
)

// verifiedToken is a delegation token that was found in the store, with the right password.
type verifiedToken struct {
	who      *claviger.Principal // shared by the requests with the token; read-only
	sequence int32
	renew    time.Time // the token expires then, unless it is renewed
	until    time.Time // from then on, the token is read from the store again
}

// verifiedTokens are the tokens that were verified lately. A nil *verifiedTokens remembers none.
//
// Another request may cancel a token after this request has read it from the store and before it calls put. So begin
// is called before the read, and put stores nothing if forget was called since.
type verifiedTokens struct {
	hold time.Duration // how long a token is used without reading it again
	remembered[verifiedToken]
	generation uint64 // how many times forget was called; guarded by mu
}

// reading says when a read of the store began.
type reading struct {
	generation uint64
	at         time.Time
}

// get returns the user of a token. It returns nil if the token must be read from the store, for instance because it
// has expired. now is the time by which tokens expire.
func (t *verifiedTokens) get(text string, now time.Time) *claviger.Principal {
	if t == nil || len(text) > maxDelegation {
		return nil
	}
	v, ok := t.remembered.get(digestOf(text))
	if !ok || v.renew.Before(now) || !time.Now().Before(v.until) {
		return nil
	}
	return v.who
}

// begin is called before a token is read from the store.
func (t *verifiedTokens) begin() reading {
	if t == nil {
		return reading{}
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return reading{t.generation, time.Now()}
}

// put remembers a token that was read from the store after begin.
func (t *verifiedTokens) put(text string, since reading, v verifiedToken) {
	if t == nil {
		return
	}
	v.until = since.at.Add(t.hold)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.generation == since.generation {
		t.store(digestOf(text), v)
	}
}

// forget makes the next request with the token read the store. It is called after the token was changed there. It
// searches all entries, because a token may have several texts: a client chooses the service in it.
func (t *verifiedTokens) forget(sequence int32) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.generation++
	t.remove(func(v verifiedToken) bool { return v.sequence == sequence })
}

// Forget makes the next request with a token read the store: another node has removed the token.
func (d *Delegations) Forget(sequence int32) { d.known.forget(sequence) }

// delegationOf returns the delegation token in a request.
func delegationOf(r Request) (string, bool) {
	if text := r.Header.Get("X-Hadoop-Delegation-Token"); text != "" {
		return text, true
	}
	return queryValue(r.RawQuery, func(n string) bool { return n == "delegation" })
}

// byDelegation authenticates a request by its delegation token. The token names its owner and its real user, so
// doAs is ignored, and no cookie is set.
func (a *Authenticator) byDelegation(ctx context.Context, text string) Result {
	d := a.conf.Delegations
	if who := d.known.get(text, d.conf.Now()); who != nil {
		return Result{Principal: who}
	}
	began := d.known.begin()
	id, renew, err := d.verify(ctx, text)
	if err != nil {
		return Result{Refusal: refusalOf(err, badToken(id, err))}
	}
	who, err := a.principalOf(id.owner)
	if err == nil && id.realUser != "" {
		var real claviger.Principal
		real, err = a.principalOf(id.realUser)
		who.Real = &real
	}
	who.Token = id.sequence
	if err != nil { // the rules allowed the name when the token was issued; they have changed since
		return Result{Refusal: &Refusal{Kind: BadDelegation, Reason: err.Error()}}
	}
	d.known.put(text, began, verifiedToken{who: &who, sequence: id.sequence, renew: renew})
	return Result{Principal: &who}
}
