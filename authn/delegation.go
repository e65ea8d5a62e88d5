package authn

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // HMAC-SHA1 is the token format's
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/secret"
)

// DelegationConfig has the times of delegation tokens, and their store. The properties have the prefix
// hadoop.kms.authentication.delegation-token.
type DelegationConfig struct {
	KeyUpdate time.Duration // update-interval.sec: a new master key
	MaxLife   time.Duration // max-lifetime.sec: no renewal goes beyond
	Renewal   time.Duration // renew-interval.sec: how long a token is good unless renewed
	Scan      time.Duration // removal-scan-interval.sec: between removals of expired tokens
	// Store keeps the tokens, for several nodes and over restarts; nil: the memory
	// of this process, as Hadoop does by default.
	Store metastore.Delegations
	// Digests means that the store gets only the SHA-256 of a password, and no master key. So a reader of the store
	// or of a copy cannot use a token. Do not set it for a store that a Java KMS shares, because that KMS makes the
	// passwords again from the keys.
	Digests bool
	// Remember is how long a token that was verified is accepted without another reading of the store. If this process
	// cancels or renews the token, that ends at once. If another node does, or the token is removed in the store by
	// other means, it ends after Remember at the latest. 0: each use of a token reads the store.
	Remember time.Duration
	Limits   TokenLimits      // the zero value: DefaultTokenLimits
	Batch    int32            // sequence numbers that are fetched together; 0: 100, as Hadoop does
	Log      *slog.Logger     // nil: none
	Now      func() time.Time // nil: time.Now
}

// Delegations issues delegation tokens and checks them. A use of a token reads the store, unless it was read for the
// same token within DelegationConfig.Remember.
type Delegations struct {
	conf  DelegationConfig
	quota *quota
	clock *storeClock
	known *verifiedTokens // nil: each use of a token reads the store
	// short makes the owner's short name from the name in a token.
	short func(name string) string

	// lock guards key, nextKey and numbers. It is a channel with one element, so a caller can stop waiting when its
	// ctx ends.
	lock    chan struct{}
	key     metastore.MasterKey // makes the passwords of new tokens
	nextKey time.Time
	numbers struct{ next, end int32 } // fetched and not used yet
}

// NewDelegations makes a Delegations. The error is of kind Invalid for a time that is not positive.
func NewDelegations(conf DelegationConfig) (*Delegations, error) {
	for name, d := range map[string]time.Duration{"update-interval": conf.KeyUpdate, "max-lifetime": conf.MaxLife,
		"renew-interval": conf.Renewal, "removal-scan-interval": conf.Scan} {
		if d <= 0 {
			return nil, claviger.Errorf("authn.NewDelegations", claviger.Invalid, "",
				"hadoop.kms.authentication.delegation-token.%s.sec is %v; it must be a positive number of seconds",
				name, d)
		}
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if conf.Store == nil {
		conf.Store = newMemoryTokens(conf.Now)
	}
	if conf.Batch <= 0 {
		conf.Batch = 100
	}
	if conf.Limits == (TokenLimits{}) {
		conf.Limits = DefaultTokenLimits
	}
	if l := conf.Limits; l.Total <= 0 || l.PerOwner <= 0 || l.Rate <= 0 || l.Burst <= 0 || l.Renewer <= 0 {
		return nil, claviger.Errorf("authn.NewDelegations", claviger.Invalid, "",
			"all limits of delegation tokens must be positive")
	}
	d := &Delegations{conf: conf, lock: make(chan struct{}, 1), short: func(name string) string { return name }}
	d.lock <- struct{}{}
	d.clock = newStoreClock(conf.Store, conf.Now)
	d.quota = newQuota(conf.Limits, conf.Now, conf.Log, d.owners)
	if conf.Remember > 0 {
		d.known = &verifiedTokens{hold: conf.Remember}
	}
	return d, nil
}

// owners calls fn with the owner of each token in the store.
func (d *Delegations) owners(ctx context.Context, fn func(owner string)) error {
	before, err := d.clock.removalTime(ctx)
	if err != nil {
		return err
	}
	if _, err := d.conf.Store.RemoveExpired(ctx, before); err != nil {
		return err
	}
	return d.conf.Store.Identifiers(ctx, func(b []byte) {
		if id, err := parseIdentifier(b); err == nil {
			fn(d.short(id.owner))
		}
	})
}

// Stats returns figures of the limits.
func (d *Delegations) Stats() TokenStats { return d.quota.snapshot() }

// Limits returns the limits.
func (d *Delegations) Limits() TokenLimits { return d.conf.Limits }

// Full returns an error if owners were refused lately because the store is full, or if the store is nearly full.
func (d *Delegations) Full() error {
	s := d.Stats()
	const nearly = 0.9
	switch {
	case !s.LastRefusedByFull.IsZero() && d.conf.Now().Sub(s.LastRefusedByFull) < time.Minute:
		return fmt.Errorf("delegation tokens are refused: there are %d, and %d may be kept; the owner with most has %d",
			s.Total, d.conf.Limits.Total, s.BusiestOwner)
	case float64(s.Total) > nearly*float64(d.conf.Limits.Total):
		return fmt.Errorf("there are %d delegation tokens, and %d may be kept; the owner with most has %d", s.Total,
			d.conf.Limits.Total, s.BusiestOwner)
	}
	return nil
}

// Run removes expired tokens at intervals until ctx ends. Each node does this, and several nodes may do it at the
// same time.
func (d *Delegations) Run(ctx context.Context) {
	ticker := time.NewTicker(d.conf.Scan)
	defer ticker.Stop()
	counting := time.NewTicker(recountAge)
	defer counting.Stop()
	// Count now, so that the first request for a token does not wait for the count.
	if err := d.quota.ensureCounted(ctx, false); err != nil && ctx.Err() == nil {
		d.conf.Log.Warn("delegation tokens could not be counted; the next request for a token counts them", "err", err)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-counting.C:
			if err := d.quota.recountIfOld(ctx); err != nil && ctx.Err() == nil {
				d.conf.Log.Warn("delegation tokens could not be counted", "err", err)
			}
			continue
		case <-ticker.C:
		}
		if err := d.scan(ctx); err != nil && ctx.Err() == nil {
			d.conf.Log.Warn("expired delegation tokens could not be removed", "err", err)
		}
	}
}

// scan removes expired tokens, and master keys whose tokens have all expired.
func (d *Delegations) scan(ctx context.Context) error {
	before, err := d.clock.removalTime(ctx)
	if err != nil {
		return err
	}
	n, err := d.conf.Store.RemoveExpired(ctx, before)
	if err != nil {
		return err
	}
	if n > 0 {
		d.conf.Log.Info("removed expired delegation tokens", "tokens", n)
	}
	keys, err := d.conf.Store.MasterKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Expires.Before(before) {
			if err := d.conf.Store.RemoveMasterKey(ctx, k.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// Count returns the number of tokens in the store, those of all nodes that share it.
func (d *Delegations) Count(ctx context.Context) (int, error) {
	return d.conf.Store.CountDelegations(ctx)
}

// issue makes a token and returns its text. The error is *overQuota if a limit is reached.
func (d *Delegations) issue(ctx context.Context, owner, renewer, realUser, service string) (_ string, err error) {
	counted := d.short(owner)
	if err := d.quota.acquire(ctx, counted); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			d.quota.release(counted)
		}
	}()
	now, err := d.clock.laterClock(ctx)
	if err != nil {
		return "", err
	}
	key, sequence, err := d.nextKeyAndNumber(ctx, now)
	if err != nil {
		return "", err
	}
	id := identifier{owner, renewer, realUser, now.UnixMilli(), now.Add(d.conf.MaxLife).UnixMilli(), sequence, key.ID}
	t := delegation{identifier: id.bytes(), kind: delegationKind, service: service}
	mac := hmac.New(sha1.New, key.Key)
	mac.Write(t.identifier)
	t.password = mac.Sum(nil)
	if err := d.conf.Store.PutDelegation(ctx, metastore.Delegation{Sequence: sequence, Identifier: t.identifier,
		Password: d.storedPassword(t.password), Renew: d.renewalEnd(now, id)}); err != nil {
		return "", err
	}
	return t.text(), nil
}

// nextKeyAndNumber returns the key and the number for a new token. It makes a new key when KeyUpdate has passed. This
// package needs no old keys, because the store has the tokens' passwords. But a Java KMS on the same store makes the
// password again when it renews a token, so each key stays in the store for as long as its tokens may live.
func (d *Delegations) nextKeyAndNumber(ctx context.Context, now time.Time) (metastore.MasterKey, int32, error) {
	select {
	case <-d.lock:
		defer func() { d.lock <- struct{}{} }()
	case <-ctx.Done():
		return metastore.MasterKey{}, 0, claviger.E("authn.Delegations", claviger.Unavailable, "", context.Cause(ctx))
	}
	if d.key.Key == nil || !now.Before(d.nextKey) {
		id, err := d.conf.Store.NextKeyID(ctx)
		if err != nil {
			return metastore.MasterKey{}, 0, err
		}
		const size = 32 // bytes; Hadoop's are 8
		k := metastore.MasterKey{ID: id, Expires: wholeMillis(now.Add(d.conf.KeyUpdate + d.conf.MaxLife)),
			Key: make(secret.Bytes, size)}
		_, _ = rand.Read(k.Key) // never returns an error: on failure it ends the process
		if !d.conf.Digests {
			if err := d.conf.Store.PutMasterKey(ctx, k); err != nil {
				return metastore.MasterKey{}, 0, err
			}
		}
		d.key, d.nextKey = k, now.Add(d.conf.KeyUpdate)
	}
	if d.numbers.next == d.numbers.end {
		first, err := d.conf.Store.NextSequences(ctx, d.conf.Batch)
		if err != nil {
			return metastore.MasterKey{}, 0, err
		}
		d.numbers.next, d.numbers.end = first, first+d.conf.Batch
	}
	sequence := d.numbers.next
	d.numbers.next++
	return d.key, sequence, nil
}

// storedPassword returns the form of a password that the store keeps: the password, or its SHA-256. A plain hash is
// enough, because a password is 160 bits of an HMAC, which cannot be guessed.
func (d *Delegations) storedPassword(password secret.Bytes) secret.Bytes {
	if !d.conf.Digests {
		return password
	}
	sum := sha256.Sum256(password)
	return sum[:]
}

// wholeMillis cuts a time to milliseconds, as stores and tokens keep it.
func wholeMillis(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()) }

// renewalEnd returns the time at which a token expires if it is issued or renewed now.
func (d *Delegations) renewalEnd(now time.Time, id identifier) time.Time {
	if end := time.UnixMilli(id.maxDate); end.Before(now.Add(d.conf.Renewal)) {
		return end
	}
	return wholeMillis(now.Add(d.conf.Renewal))
}

const (
	invalidToken        = "org.apache.hadoop.security.token.SecretManager$InvalidToken: "
	accessControlFailed = "org.apache.hadoop.security.AccessControlException: "
)

// find returns a token from the store. Errors are *claviger.Error if the store failed; other errors have Hadoop's
// texts.
func (d *Delegations) find(ctx context.Context, t delegation, id identifier,
	missing string) (metastore.Delegation, error) {
	k, ok, err := d.conf.Store.Delegation(ctx, id.sequence)
	switch {
	case err != nil:
		return k, err
	case !ok || !bytes.Equal(k.Identifier, t.identifier):
		return k, errors.New(invalidToken + missing)
	case !hmac.Equal(k.Password, d.storedPassword(t.password)):
		return k, fmt.Errorf("%stoken (%v) is invalid, password doesn't match", invalidToken, id)
	}
	return k, nil
}

// verify reads the token of a request from the store and checks it. It returns the token's identifier, which names the
// owner, and the time after which the token has expired.
func (d *Delegations) verify(ctx context.Context, text string) (identifier, time.Time, error) {
	t, id, err := parseDelegation(text)
	if err != nil {
		return id, time.Time{}, err
	}
	k, err := d.find(ctx, t, id, "Token for real user: "+id.realUser+", can't be found in cache")
	if err != nil {
		return id, time.Time{}, err
	}
	if now := d.conf.Now(); k.Renew.Before(now) {
		if err := d.clock.checkAgreement(ctx); err != nil {
			return id, time.Time{}, err
		}
		const layout = "2006-01-02 15:04:05,000-0700"
		return id, time.Time{}, &expiredToken{fmt.Sprintf(
			"%sToken %s has expired, current time: %s expected renewal time: %s",
			invalidToken, id.realUser, now.Format(layout), k.Renew.Format(layout))}
	}
	return id, k.Renew, nil
}

// renew makes a token valid for another interval. caller is a short name.
func (d *Delegations) renew(ctx context.Context, text, caller string) (time.Time, error) {
	t, id, err := parseDelegation(text)
	if err != nil {
		return time.Time{}, err
	}
	switch {
	case id.maxDate < d.conf.Now().UnixMilli():
		if err := d.clock.checkAgreement(ctx); err != nil {
			return time.Time{}, err
		}
		return time.Time{}, fmt.Errorf("%s%s tried to renew an expired token (%v)", invalidToken, caller, id)
	case id.renewer == "":
		return time.Time{}, fmt.Errorf("%s%s tried to renew a token (%v) without a renewer",
			accessControlFailed, caller, id)
	case id.renewer != caller:
		return time.Time{}, fmt.Errorf("%s%s tries to renew a token (%v) with non-matching renewer %s",
			accessControlFailed,
			caller, id, id.renewer)
	}
	unknown := fmt.Sprintf("Renewal request for unknown token (%v)", id)
	if _, err := d.find(ctx, t, id, unknown); err != nil {
		return time.Time{}, err
	}
	now, err := d.clock.laterClock(ctx)
	if err != nil {
		return time.Time{}, err
	}
	until := d.renewalEnd(now, id)
	ok, err := d.conf.Store.RenewDelegation(ctx, id.sequence, until)
	d.known.forget(id.sequence)
	if err == nil && !ok { // another request cancelled it meanwhile
		err = errors.New(invalidToken + unknown)
	}
	return until, err
}

// cancel ends a token. If caller is nil, the request names no user, and the token itself is enough.
func (d *Delegations) cancel(ctx context.Context, text string, caller *claviger.Principal) error {
	t, id, err := parseDelegation(text)
	if err != nil {
		return err
	}
	missing := fmt.Sprintf("Token not found (%v)", id)
	if _, err := d.find(ctx, t, id, missing); err != nil {
		return err
	}
	if caller != nil && caller.Name != id.owner && caller.Short != id.owner &&
		(id.renewer == "" || caller.Short != id.renewer) {
		return fmt.Errorf("%s%s is not authorized to cancel the token (%v)", accessControlFailed, caller.Name, id)
	}
	ok, err := d.conf.Store.RemoveDelegation(ctx, id.sequence)
	d.known.forget(id.sequence) // also after an error: the token may be removed nevertheless
	if ok {
		d.quota.release(d.short(id.owner))
	}
	if err == nil && !ok {
		err = errors.New(invalidToken + missing)
	}
	return err
}

// refusalOf returns the refusal for an error of Delegations. The caller gets Hadoop's text about the token; only the
// operator's log gets an error of the store. The refusal for any other error is fallback.
func refusalOf(err error, fallback Refusal) *Refusal {
	var over *overQuota
	if errors.As(err, &over) {
		if over.temporary {
			return &Refusal{Kind: StoreUnavailable, Reason: over.reason}
		}
		return &Refusal{Kind: TooManyTokens, Reason: over.reason}
	}
	var clocks *metastore.ClocksDifferError
	if errors.As(err, &clocks) {
		return &Refusal{Kind: StoreUnavailable, Explanation: err.Error(),
			Reason: "this server's clock, or that of the store of delegation tokens, " +
				"is wrong, so it is not known whether the token has expired"}
	}
	var failed *claviger.Error
	if errors.As(err, &failed) {
		return &Refusal{Kind: StoreUnavailable, Reason: "the store of delegation tokens does not answer",
			Explanation: err.Error()}
	}
	return &fallback
}

// badToken returns the refusal for a delegation token that is not valid. If the token has only expired, its
// password was right, so the refusal names its users.
func badToken(id identifier, err error) Refusal {
	r := Refusal{Kind: BadDelegation, Reason: err.Error(),
		Explanation: "the delegation token is not known here, or was cancelled: get another." +
			" If another node issued it, the nodes do not share their tokens: " +
			"set " + "hadoop.kms.authentication.zk-dt-secret-manager.enable, or use a metastore in PostgreSQL"}
	var expired *expiredToken
	switch {
	case errors.As(err, &expired):
		r.Real, r.User = id.realUser, id.owner
		r.Explanation = fmt.Sprintf("the delegation token of %s, number %d, has expired: its renewer %q did not "+
			"renew it in time, or its life is over", id.owner, id.sequence, id.renewer)
	case errors.Is(err, errEOF):
		r.Explanation = "the text of the delegation token cannot be decoded: it was cut, or is of another kind"
	}
	return r
}

// expiredToken is the error for a token that was valid and has expired.
type expiredToken struct{ text string }

func (e *expiredToken) Error() string { return e.text }

// The operations on delegation tokens, by the query parameter op, and the
// method that each demands.
const (
	getDelegation    = "GETDELEGATIONTOKEN"
	renewDelegation  = "RENEWDELEGATIONTOKEN"
	cancelDelegation = "CANCELDELEGATIONTOKEN"
)

var delegationMethods = map[string]string{getDelegation: http.MethodGet, renewDelegation: http.MethodPut,
	cancelDelegation: http.MethodPut}

// DelegationResult is the outcome of an operation on a delegation token.
type DelegationResult struct {
	Caller      claviger.Principal // the sender of the request, if known
	Op          string             // "GETDELEGATIONTOKEN", ...
	Sequence    int32              // number of the token, if Refusal is nil
	Description string             // the token without its password, in Hadoop's form, if Refusal is nil
	Token       string             // if it was issued
	Expires     time.Time          // if it was renewed
	SetCookie   string             // as in Result
	ServerToken string             // as in Result
	Refusal     *Refusal
}

// Delegation performs the operation on delegation tokens that the query's op names. If op names no such operation,
// ok is false and the caller serves the request as any other.
func (a *Authenticator) Delegation(ctx context.Context, method string, r Request) (_ DelegationResult, ok bool) {
	param := func(want string) (string, bool) {
		return queryValue(r.RawQuery, func(n string) bool { return n == want })
	}
	op, _ := param("op")
	op = strings.ToUpper(op)
	want, ok := delegationMethods[op]
	if !ok || method == http.MethodOptions || a.conf.Delegations == nil {
		return DelegationResult{}, false
	}
	if method != want {
		return refusedDelegation(BadOperation,
			fmt.Sprintf("Wrong HTTP method [%s] for operation [%s], it should be [%s]", method, op, want)), true
	}
	who, reply, refusal := a.delegator(ctx, r, op == cancelDelegation)
	if refusal != nil {
		return DelegationResult{Refusal: refusal, ServerToken: reply}, true
	}
	var res DelegationResult
	text, ok := param("token")
	switch {
	case op == getDelegation:
		res = a.issueDelegation(ctx, r, who)
		text = res.Token
	case !ok:
		return refusedDelegation(BadOperation, fmt.Sprintf("Operation [%s] requires the parameter [token]", op)), true
	case op == cancelDelegation:
		res = a.cancelDelegation(ctx, text, who)
	default:
		res = a.renewDelegation(ctx, r, text, who)
	}
	res.ServerToken, res.Op = reply, op
	if res.Refusal == nil {
		if _, id, err := parseDelegation(text); err == nil { // it was parsed before
			res.Sequence, res.Description = id.sequence, id.String()
		}
	}
	return res, true
}

func (a *Authenticator) cancelDelegation(ctx context.Context, text string,
	who *claviger.Principal) (res DelegationResult) {
	if who != nil {
		res.Caller = *who
	}
	if err := a.conf.Delegations.cancel(ctx, text, who); err != nil {
		res.Refusal = refusalOf(err, Refusal{Kind: UnknownDelegation, Reason: "Invalid delegation token, " +
			"cannot cancel"})
	}
	return res
}

func (a *Authenticator) renewDelegation(ctx context.Context, r Request, text string,
	who *claviger.Principal) DelegationResult {
	expires, err := a.conf.Delegations.renew(ctx, text, who.Short)
	if err == nil {
		return DelegationResult{Caller: *who, Expires: expires}
	}
	res := DelegationResult{Caller: *who, Refusal: refusalOf(err, Refusal{Kind: BadDelegation, Reason: err.Error()})}
	if res.Refusal.Kind == BadDelegation {
		res.SetCookie = a.conf.Cookie.text("", time.UnixMilli(0), r.HTTPS)
	}
	return res
}

func refusedDelegation(kind RefusalKind, reason string) DelegationResult {
	return DelegationResult{Refusal: &Refusal{Kind: kind, Reason: reason}}
}

func (a *Authenticator) issueDelegation(ctx context.Context, r Request, who *claviger.Principal) DelegationResult {
	param := func(want, fallback string) string {
		if v, ok := queryValue(r.RawQuery, func(n string) bool { return n == want }); ok {
			return v
		}
		return fallback
	}
	renewer, service := param("renewer", who.Short), param("service", "")
	for name, v := range map[string]string{"renewer": renewer, "service": service} {
		if v != "" && !validName(v) {
			return refusedDelegation(BadOperation, "parameter "+name+": it is longer than 512 bytes, or holds "+
				"characters that no name has")
		}
	}
	short, err := a.conf.Rules.Short(renewer)
	if err != nil {
		return refusedDelegation(NoShortName, "java.lang.RuntimeException: "+javaText(err))
	}
	renewer = short
	if limit := a.conf.Delegations.conf.Limits.Renewer; len(renewer) > limit {
		return refusedDelegation(BadOperation,
			fmt.Sprintf("parameter renewer: it has %d bytes, and may have at most %d; name the user who is to renew "+
				"the token", len(renewer), limit))
	}
	realUser := ""
	if who.Real != nil {
		realUser = who.Real.Name
	}
	text, err := a.conf.Delegations.issue(ctx, who.Name, renewer, realUser, service)
	if err != nil {
		return DelegationResult{Caller: *who,
			Refusal: refusalOf(err, Refusal{Kind: BadDelegation, Reason: err.Error()})}
	}
	return DelegationResult{Caller: *who, Token: text}
}
