package authn

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // HMAC-SHA1 is the token format's
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/secret"
)

// DelegationConfig holds the times of delegation tokens. The properties have the
// prefix hadoop.kms.authentication.delegation-token.
type DelegationConfig struct {
	KeyUpdate time.Duration    // update-interval.sec: a new master key
	MaxLife   time.Duration    // max-lifetime.sec: no renewal goes beyond
	Renewal   time.Duration    // renew-interval.sec: how long a token is good unless renewed
	Scan      time.Duration    // removal-scan-interval.sec: between removals of expired tokens
	Now       func() time.Time // nil: time.Now
}

// maxDelegations is how many tokens are kept. Each takes some hundred bytes; a
// busy cluster has some ten thousand at a time.
const maxDelegations = 1 << 20

// Delegations issues delegation tokens and knows those that are good, in this
// process's memory: a token ends with it, as it does with Hadoop's default store.
// Its work is done when it is asked for, by no goroutine of its own.
type Delegations struct {
	conf DelegationConfig

	mu       sync.Mutex
	known    map[string]*known // by the bytes of the identifier
	key      secret.Bytes      // of the passwords of new tokens
	keyID    int32
	sequence int32
	nextKey  time.Time
	nextScan time.Time
}

// known is a token that is good until expires, and may be renewed until it is
// removed.
type known struct {
	password secret.Bytes
	expires  time.Time
}

// NewDelegations makes an empty store. Kind Invalid for a time that is not
// positive.
func NewDelegations(conf DelegationConfig) (*Delegations, error) {
	for name, d := range map[string]time.Duration{"update-interval": conf.KeyUpdate, "max-lifetime": conf.MaxLife, "renew-interval": conf.Renewal, "removal-scan-interval": conf.Scan} {
		if d <= 0 {
			return nil, claviger.Errorf("authn.NewDelegations", claviger.Invalid, "", "hadoop.kms.authentication.delegation-token.%s.sec is %v; it must be a positive number of seconds", name, d)
		}
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	return &Delegations{conf: conf, known: make(map[string]*known), nextScan: conf.Now().Add(conf.Scan)}, nil
}

// issue makes a token and returns its text.
func (d *Delegations) issue(owner, renewer, realUser, service string) (string, error) {
	now := d.conf.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tidy(now)
	if len(d.known) >= maxDelegations {
		return "", fmt.Errorf("there are %d delegation tokens already, and no room for one more until some expire", maxDelegations)
	}
	d.sequence++
	id := identifier{owner, renewer, realUser, now.UnixMilli(), now.Add(d.conf.MaxLife).UnixMilli(), d.sequence, d.keyID}
	t := delegation{identifier: id.bytes(), kind: delegationKind, service: service}
	mac := hmac.New(sha1.New, d.key)
	mac.Write(t.identifier)
	t.password = mac.Sum(nil)
	d.known[string(t.identifier)] = &known{t.password, d.until(now, id)}
	return t.text(), nil
}

// until is when a token that is issued or renewed now expires.
func (d *Delegations) until(now time.Time, id identifier) time.Time {
	if end := time.UnixMilli(id.maxDate); end.Before(now.Add(d.conf.Renewal)) {
		return end
	}
	return now.Add(d.conf.Renewal)
}

// tidy makes a new master key and removes what expired, when that is due.
// Tokens keep their own passwords, so no old key has to be kept for them.
func (d *Delegations) tidy(now time.Time) {
	if d.key == nil || !now.Before(d.nextKey) {
		const size = 32 // bytes; Hadoop's are 8
		d.key = make(secret.Bytes, size)
		_, _ = rand.Read(d.key) // never fails: it ends the process first
		d.keyID++
		d.nextKey = now.Add(d.conf.KeyUpdate)
	}
	if now.Before(d.nextScan) && len(d.known) < maxDelegations {
		return
	}
	d.nextScan = now.Add(d.conf.Scan)
	for id, t := range d.known {
		if t.expires.Before(now) {
			delete(d.known, id)
		}
	}
}

const (
	invalidToken        = "org.apache.hadoop.security.token.SecretManager$InvalidToken: "
	accessControlFailed = "org.apache.hadoop.security.AccessControlException: "
)

// find returns a token that we issued; d.mu is held. The errors are what
// Hadoop's would be as texts.
func (d *Delegations) find(t delegation, id identifier, missing string) (*known, error) {
	k := d.known[string(t.identifier)]
	switch {
	case k == nil:
		return nil, errors.New(invalidToken + missing)
	case !hmac.Equal(k.password, t.password):
		return nil, fmt.Errorf("%stoken (%v) is invalid, password doesn't match", invalidToken, id)
	}
	return k, nil
}

// verify tells whom a token that a request brings is for.
func (d *Delegations) verify(text string) (identifier, error) {
	t, id, err := parseDelegation(text)
	if err != nil {
		return id, err
	}
	now := d.conf.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	k, err := d.find(t, id, "Token for real user: "+id.realUser+", can't be found in cache")
	if err != nil {
		return id, err
	}
	if k.expires.Before(now) {
		const layout = "2006-01-02 15:04:05,000-0700"
		return id, fmt.Errorf("%sToken %s has expired, current time: %s expected renewal time: %s", invalidToken, id.realUser, now.Format(layout), k.expires.Format(layout))
	}
	return id, nil
}

// renew makes a token good for another interval. caller is a short name.
func (d *Delegations) renew(text, caller string) (time.Time, error) {
	t, id, err := parseDelegation(text)
	if err != nil {
		return time.Time{}, err
	}
	now := d.conf.Now()
	switch {
	case id.maxDate < now.UnixMilli():
		return time.Time{}, fmt.Errorf("%s%s tried to renew an expired token (%v)", invalidToken, caller, id)
	case id.renewer == "":
		return time.Time{}, fmt.Errorf("%s%s tried to renew a token (%v) without a renewer", accessControlFailed, caller, id)
	case id.renewer != caller:
		return time.Time{}, fmt.Errorf("%s%s tries to renew a token (%v) with non-matching renewer %s", accessControlFailed, caller, id, id.renewer)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	k, err := d.find(t, id, fmt.Sprintf("Renewal request for unknown token (%v)", id))
	if err != nil {
		return time.Time{}, err
	}
	k.expires = d.until(now, id)
	return k.expires, nil
}

// cancel ends a token. caller is nil where nobody is named: then having the
// token is enough.
func (d *Delegations) cancel(text string, caller *claviger.Principal) error {
	t, id, err := parseDelegation(text)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.find(t, id, fmt.Sprintf("Token not found (%v)", id)); err != nil {
		return err
	}
	if caller != nil && caller.Name != id.owner && caller.Short != id.owner && (id.renewer == "" || caller.Short != id.renewer) {
		return fmt.Errorf("%s%s is not authorized to cancel the token (%v)", accessControlFailed, caller.Name, id)
	}
	delete(d.known, string(t.identifier))
	return nil
}

// The operations on delegation tokens, by the query parameter op, and the
// method that each demands.
const (
	getDelegation    = "GETDELEGATIONTOKEN"
	renewDelegation  = "RENEWDELEGATIONTOKEN"
	cancelDelegation = "CANCELDELEGATIONTOKEN"
)

var delegationMethods = map[string]string{getDelegation: http.MethodGet, renewDelegation: http.MethodPut, cancelDelegation: http.MethodPut}

// DelegationResult is the outcome of an operation on a delegation token. Token is
// set for one that was issued, Expires for one that was renewed; neither for one
// that was cancelled.
type DelegationResult struct {
	Caller      claviger.Principal // whoever asked, as far as that is known
	Token       string
	Expires     time.Time
	SetCookie   string // as in Result
	ServerToken string // as in Result
	Refusal     *Refusal
}

// Delegation does what the query's op asks for. ok is false where it asks for
// nothing about delegation tokens: then the request is one as any other.
func (a *Authenticator) Delegation(ctx context.Context, method string, r Request) (_ DelegationResult, ok bool) {
	named := func(want string) (string, bool) {
		return queryValue(r.RawQuery, func(n string) bool { return n == want })
	}
	op, _ := named("op")
	op = strings.ToUpper(op)
	want, ok := delegationMethods[op]
	if !ok || method == http.MethodOptions || a.conf.Delegations == nil {
		return DelegationResult{}, false
	}
	if method != want {
		return refused(BadOperation, fmt.Sprintf("Wrong HTTP method [%s] for operation [%s], it should be [%s]", method, op, want)), true
	}
	who, reply, refusal := a.delegator(ctx, r, op == cancelDelegation)
	if refusal != nil {
		return DelegationResult{Refusal: refusal, ServerToken: reply}, true
	}
	if op == getDelegation {
		res := a.issueDelegation(r, who)
		res.ServerToken = reply
		return res, true
	}
	text, ok := named("token")
	if !ok {
		return refused(BadOperation, fmt.Sprintf("Operation [%s] requires the parameter [token]", op)), true
	}
	res := DelegationResult{ServerToken: reply}
	if who != nil {
		res.Caller = *who
	}
	if op == cancelDelegation {
		if a.conf.Delegations.cancel(text, who) != nil {
			res.Refusal = &Refusal{Kind: UnknownDelegation, Reason: "Invalid delegation token, cannot cancel"}
		}
		return res, true
	}
	expires, err := a.conf.Delegations.renew(text, who.Short)
	if err != nil {
		res.Refusal = &Refusal{Kind: BadDelegation, Reason: err.Error()}
		res.SetCookie = a.conf.Cookie.text("", time.UnixMilli(0), r.HTTPS)
	}
	res.Expires = expires
	return res, true
}

func refused(kind RefusalKind, reason string) DelegationResult {
	return DelegationResult{Refusal: &Refusal{Kind: kind, Reason: reason}}
}

func (a *Authenticator) issueDelegation(r Request, who *claviger.Principal) DelegationResult {
	named := func(want, otherwise string) string {
		if v, ok := queryValue(r.RawQuery, func(n string) bool { return n == want }); ok {
			return v
		}
		return otherwise
	}
	renewer, service := named("renewer", who.Short), named("service", "")
	for name, v := range map[string]string{"renewer": renewer, "service": service} {
		if v != "" && !validName(v) {
			return refused(BadOperation, "parameter "+name+": it is longer than 512 bytes, or holds characters that no name has")
		}
	}
	short, err := a.conf.Rules.Short(renewer)
	if err != nil {
		return refused(NoShortName, "java.lang.RuntimeException: "+javaText(err))
	}
	renewer = short
	realUser := ""
	if who.Real != nil {
		realUser = who.Real.Name
	}
	text, err := a.conf.Delegations.issue(who.Name, renewer, realUser, service)
	if err != nil {
		return refused(BadDelegation, err.Error())
	}
	return DelegationResult{Caller: *who, Token: text}
}

// delegationOf returns the delegation token that a request brings.
func delegationOf(r Request) (string, bool) {
	if text := r.Header.Get("X-Hadoop-Delegation-Token"); text != "" {
		return text, true
	}
	return queryValue(r.RawQuery, func(n string) bool { return n == "delegation" })
}

// byDelegation authenticates a request by its delegation token, which says by
// itself who acts for whom: doAs is not looked at, and no cookie is set.
func (a *Authenticator) byDelegation(text string) Result {
	id, err := a.conf.Delegations.verify(text)
	if err != nil {
		return Result{Refusal: &Refusal{Kind: BadDelegation, Reason: err.Error()}}
	}
	who, err := a.principalOf(id.owner)
	if err == nil && id.realUser != "" {
		var real claviger.Principal
		real, err = a.principalOf(id.realUser)
		who.Real = &real
	}
	if err != nil { // we issued it to a name that we had taken
		return Result{Refusal: &Refusal{Kind: BadDelegation, Reason: err.Error()}}
	}
	return Result{Principal: &who}
}
