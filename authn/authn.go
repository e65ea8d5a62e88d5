// Package authn authenticates requests as Hadoop's authentication filter does: by the signed hadoop.auth cookie,
// else by the user name or the Kerberos token in the request. It also decides whether the sender may act for
// another user (doAs).
// It knows requests but not answers: an Authenticator returns a Result, and the REST API turns that into status
// codes. A Handler authenticates a request without a cookie: Simple accepts the user.name of the query string
// without proof, and Kerberos accepts SPNEGO tokens. The handler finds the principal, and the rules of
// auth_to_local map the principal to a user name. Cookies have the same bytes as Hadoop's.
// This package uses Kerberos through the interface Negotiator. Secrets that nodes share (RollingSecrets) change by
// the clock, so no request waits for the store. A delegation token is read from the store at each use.
package authn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"claviger"
)

// CookieName is the cookie that carries the signed token.
const CookieName = "hadoop.auth"

// maxNameLength is the largest length of a user's name, in bytes. It limits the memory of caches. A Kerberos
// principal is far shorter.
const maxNameLength = 512

// Config is the configuration of an Authenticator. The properties have the prefix hadoop.kms.authentication.
type Config struct {
	// Handler authenticates a request with neither a cookie nor a delegation token; nil is Simple.
	Handler Handler
	// Rules map principals to short names; nil takes a name's first component.
	Rules *Rules

	Validity    time.Duration // token.validity, of a new token
	MaxInactive time.Duration // token.max-inactive-interval; <= 0: no limit for unused tokens
	Cookie      CookieAttributes
	Secrets     SecretProvider
	ProxyUsers  *ProxyUsers      // nil: no user may act for another
	Delegations *Delegations     // nil: there are no delegation tokens
	Now         func() time.Time // nil: time.Now
}

// Authenticator authenticates requests. Its methods may be called from many
// goroutines.
type Authenticator struct {
	conf   Config
	signer signer
}

// New makes an Authenticator. The error is of kind Invalid for a configuration that cannot work.
func New(conf Config) (*Authenticator, error) {
	const op = "authn.New"
	if conf.Secrets == nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "no provider of signing secrets")
	}
	if conf.Validity <= 0 {
		return nil, claviger.Errorf(op, claviger.Invalid, "",
			"hadoop.kms.authentication.token.validity is %v; it must be a positive number of seconds", conf.Validity)
	}
	if err := conf.Cookie.Check(); err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	if conf.Handler == nil {
		conf.Handler = Simple{}
	}
	if conf.Rules == nil {
		conf.Rules = firstComponent
	}
	if conf.ProxyUsers == nil {
		conf.ProxyUsers = &ProxyUsers{}
	}
	if conf.Delegations != nil {
		rules := conf.Rules
		conf.Delegations.short = func(name string) string {
			if short, err := rules.Short(name); err == nil {
				return short
			}
			return name
		}
	}
	a := &Authenticator{conf: conf}
	a.signer.secrets, a.signer.who = conf.Secrets, a.principalOf
	return a, nil
}

// Request is the part of an HTTP request that authentication needs.
type Request struct {
	Header   http.Header
	RawQuery string     // undecoded, without '?'
	Path     string     // undecoded
	RemoteIP netip.Addr // of the TCP peer
	HTTPS    bool
}

// RequestOf makes a Request from a request of net/http.
func RequestOf(r *http.Request) Request {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	ip, _ := netip.ParseAddr(host) // the zero Addr is on no list
	return Request{Header: r.Header, RawQuery: r.URL.RawQuery, Path: r.URL.EscapedPath(),
		RemoteIP: ip.Unmap().WithZone(""), HTTPS: r.TLS != nil}
}

// Result is the outcome for one request. Exactly one of Principal, Anonymous
// and Refusal is set.
type Result struct {
	// Principal is the user whose rights count. Principal.Real, if set, is the authenticated user that acts for
	// Principal.
	Principal *claviger.Principal
	// Anonymous means that the request names no user and the Handler allows that. Hadoop's KMS answers OPTIONS to
	// such a request, and fails for all else.
	Anonymous bool
	// Refusal is the reason why the request must not be served.
	Refusal *Refusal
	// SetCookie is the value of a Set-Cookie header to send with any answer; "" means no header. With a refusal it may
	// clear the cookie. If doAs is refused, it may set one, because the proxy user is authenticated.
	SetCookie string
	// ServerToken is the value of a WWW-Authenticate header to send with any answer: the last token of a handshake; ""
	// means no header.
	ServerToken string
}

// RefusalKind is the kind of a refusal. The REST API maps it to a status.
type RefusalKind int

// The kinds of refusal.
const (
	// Unauthenticated: the request names no user, or its cookie is not valid. Hadoop: 401 with the challenges,
	// Reason as the reason phrase.
	Unauthenticated RefusalKind = iota
	// NotAllowed: the sender may not act for the user in doAs. Hadoop: 403, an AuthorizationException whose message
	// is Reason.
	NotAllowed
	// Malformed: a name that no user can have. Hadoop: 500, an
	// IllegalArgumentException whose message is Reason.
	Malformed
	// BadDelegation: the delegation token is not valid, or the caller may not renew it. Hadoop: 403, an
	// AuthenticationException whose message is Reason.
	BadDelegation
	// NoDelegator: an operation on delegation tokens needs a caller, and the request names none. Hadoop: 403 (type
	// simple) or 401, with the challenges and no body.
	NoDelegator
	// BadOperation: an operation on delegation tokens with the wrong method, or without a parameter. Hadoop: 400,
	// Reason as the reason phrase.
	BadOperation
	// UnknownDelegation: the token to cancel does not exist, or the caller may not cancel it. Hadoop: 404, Reason
	// as the reason phrase.
	UnknownDelegation
	// BadTicket: the handshake failed. Hadoop: 403 without a challenge, so that no
	// client tries the same again; Reason as the reason phrase.
	BadTicket
	// NoShortName: auth_to_local maps the principal to no name. Hadoop: 500, Reason
	// (which begins with a Java class) in the page.
	NoShortName
	// StoreUnavailable: the store of delegation tokens does not answer, or an owner requests tokens too fast. 503:
	// another node may succeed, or this node a moment later.
	StoreUnavailable
	// TooManyTokens: a limit of delegation tokens is reached. 403, an IOException whose message is Reason: another
	// node would refuse too.
	TooManyTokens
)

// Refusal is the reason why a request must not be served.
type Refusal struct {
	Kind RefusalKind
	// Reason is Hadoop's own text. It may contain text of the request, so escape it in HTML and in headers.
	Reason string
	// Challenges are the values of WWW-Authenticate headers; set for
	// Unauthenticated and NoDelegator only.
	Challenges []string
	// Explanation is only for the operator's log: the problem and its cure. "" if Reason is enough.
	Explanation string
	// Property is the property that the cure in Explanation changes, if there is one.
	Property string
	// Real is the authenticated user, and User is the user that Real wanted to act for; "" if not known. Both are
	// only for audit records.
	Real, User string
}

// Authenticate finds the sender of the request, and the user that the sender acts for.
// Of several hadoop.auth cookies the first counts. A valid cookie counts before a delegation token, and a
// delegation token before the Handler. An invalid cookie is ignored, but its fault is the Reason if nothing else in
// the request authenticates the sender.
func (a *Authenticator) Authenticate(ctx context.Context, r Request) Result {
	now := a.conf.Now()
	tok, reason := a.cookieToken(r, now)
	fresh := tok == nil
	var res Result
	if fresh {
		if text, ok := delegationOf(r); ok && a.conf.Delegations != nil {
			return a.byDelegation(ctx, text)
		}
		att := a.attempt(r, now, false)
		tok, res.ServerToken, res.Refusal = att.token, att.reply, att.refusal
		if att.anonymous {
			return Result{Anonymous: true}
		}
	}
	if res.Refusal != nil {
		if res.Refusal.Kind == Unauthenticated {
			res.Refusal.Reason = reason
		}
		if k := res.Refusal.Kind; k == Unauthenticated || k == BadTicket {
			res.SetCookie = a.conf.Cookie.text("", time.UnixMilli(0), r.HTTPS)
		}
		return res
	}

	if a.conf.MaxInactive > 0 && (fresh || !a.conf.Cookie.Persistent) {
		renewed := *tok
		renewed.idleUntil = now.Add(a.conf.MaxInactive)
		tok, fresh = &renewed, true
	}
	if fresh {
		res.SetCookie = a.conf.Cookie.text(a.signer.sign(tok.text()), tok.expires, r.HTTPS)
	}
	res.Principal, res.Refusal = a.actingFor(ctx, r, tok.principal, tok.who)
	return res
}

// cookieToken returns the token of the request's cookie, or the reason why there is none.
func (a *Authenticator) cookieToken(r Request, now time.Time) (_ *token, why string) {
	text, ok := authCookie(r.Header["Cookie"])
	if !ok {
		return nil, "Authentication required"
	}
	return a.openCookie(text, now)
}

// attempt lets the Handler authenticate a request, and makes a complete token for the principal.
func (a *Authenticator) attempt(r Request, now time.Time, management bool) attempt {
	att := a.conf.Handler.authenticate(r, management)
	if att.token == nil {
		return att
	}
	att.token.expires = now.Add(a.conf.Validity)
	if att.token.user != "" {
		return att
	}
	short, err := a.conf.Rules.Short(att.token.principal)
	var none noRule
	switch {
	case errors.As(err, &none):
		att.refusal = &Refusal{Kind: NoShortName, Reason: javaText(err), User: att.token.principal,
			Property: AuthToLocal,
			Explanation: fmt.Sprintf(
				"the ticket of %s is good, but auth_to_local maps it to no user name; to let it in, add a rule to %s",
				att.token.principal, AuthToLocal)}
	case err != nil:
		att.refusal = &Refusal{Kind: BadTicket, Reason: javaText(err), User: att.token.principal, Property: AuthToLocal,
			Explanation: fmt.Sprintf(
				"the ticket of %s is good, but auth_to_local cannot read that name: %v", att.token.principal, err)}
	case !validName(short):
		att.refusal = &Refusal{Kind: BadTicket,
			Reason:   "java.lang.IllegalArgumentException: userName is NULL, empty or contains a '&'",
			User:     att.token.principal,
			Property: AuthToLocal, Explanation: fmt.Sprintf(
				"the ticket of %s is good, but auth_to_local makes %q of it, which is not a user name; change the rule",
				att.token.principal, short)}
	}
	att.token.user = short
	if att.refusal != nil {
		att.token = nil
	}
	return att
}

// delegator returns the caller of an operation on delegation tokens, by a cookie or by the Handler. A delegation
// token is not accepted here; otherwise its user could get new tokens for ever. If allowAnonymous is true, an
// anonymous caller is accepted and who is nil. As in Hadoop, the name of the caller is the short name, which becomes
// the owner of the token.
func (a *Authenticator) delegator(ctx context.Context, r Request,
	allowAnonymous bool) (who *claviger.Principal, reply string, _ *Refusal) {
	now := a.conf.Now()
	tok, _ := a.cookieToken(r, now)
	if tok == nil && allowAnonymous {
		return nil, "", nil
	}
	if tok == nil {
		att := a.attempt(r, now, true)
		switch {
		case att.refusal != nil && att.refusal.Kind == Unauthenticated:
			_, simple := a.conf.Handler.(Simple)
			reason := "Unauthorized"
			if simple {
				reason = "Forbidden"
			}
			return nil, "", &Refusal{Kind: NoDelegator, Reason: reason, Challenges: att.refusal.Challenges}
		case att.refusal != nil:
			return nil, att.reply, att.refusal
		case att.anonymous:
			return nil, "", &Refusal{Kind: NoDelegator, Reason: "Forbidden", Challenges: []string{PseudoAuth}}
		}
		tok, reply = att.token, att.reply
	}
	who, refusal := a.actingFor(ctx, r, tok.user, nil)
	return who, reply, refusal
}

// openCookie returns the token of a cookie's value, or Hadoop's reason why it is not valid.
func (a *Authenticator) openCookie(text string, now time.Time) (_ *token, why string) {
	if text == "" {
		return nil, "Unauthorized access"
	}
	tok, err := a.signer.open(text)
	switch {
	case err != nil:
		return nil, err.Error()
	case !slices.Contains(a.conf.Handler.tokenTypes(), tok.kind):
		return nil, "Invalid AuthenticationToken type"
	case tok.expired(now):
		return nil, "AuthenticationToken expired"
	}
	return tok, ""
}

// actingFor returns the principal of a name, or of the user in the request's doAs. Of several doAs the first
// counts. The parameter may be in upper or lower case. real is the principal of the name; nil if it is not known yet.
func (a *Authenticator) actingFor(ctx context.Context, r Request, name string,
	real *claviger.Principal) (*claviger.Principal, *Refusal) {
	if real == nil {
		found, err := a.principalOf(name)
		if err != nil {
			return nil, a.noUser(err, Refusal{User: name})
		}
		real = &found
	}
	doAs, ok := queryValue(r.RawQuery, func(n string) bool { return strings.EqualFold(n, "doAs") })
	if !ok {
		return real, nil
	}
	if !validName(doAs) {
		return nil, &Refusal{Kind: Malformed, Reason: "Null user", Real: name, User: doAs,
			Explanation: "the parameter doAs is empty, longer than 512 bytes, or holds characters that no " +
				"user's name has"}
	}
	who, err := a.principalOf(doAs)
	if err != nil {
		return nil, a.noUser(err, Refusal{Real: name, User: doAs})
	}
	who.Real = real
	if refusal := a.conf.ProxyUsers.refuse(ctx, who, r.RemoteIP); refusal != nil {
		return nil, refusal
	}
	return &who, nil
}

// AuthToLocal names the properties with the rules that map principals to user names.
const AuthToLocal = "hadoop.kms.authentication.kerberos.name.rules (type kerberos) or hadoop.security.auth_to_local " +
	"(type simple)"

// noUser returns the refusal for a name that the rules map to no user name.
func (a *Authenticator) noUser(err error, r Refusal) *Refusal {
	r.Kind, r.Reason, r.Property = Malformed, err.Error(), AuthToLocal
	r.Explanation = fmt.Sprintf("the rules make no user name of %q; to let it in, add a rule to %s",
		r.User, AuthToLocal)
	return &r
}

// validName reports whether a name is allowed. As Hadoop, it refuses an empty name and a name with '&', which would
// break the token's text. It also refuses characters that would break a header, a quoted cookie or a line of a log.
func validName(name string) bool {
	if name == "" || len(name) > maxNameLength || !utf8.ValidString(name) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '&' || r == '"' || r == '\\' ||
			r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029'
	})
}

// principalOf returns the principal of a name, with the short name by the rules. The error has the text of Hadoop's
// exception.
func (a *Authenticator) principalOf(name string) (claviger.Principal, error) {
	name = strings.Clone(name) // it is remembered in several places, and may be a part of a long request
	short, err := a.conf.Rules.Short(name)
	var none noRule
	switch {
	case errors.As(err, &none):
		err = fmt.Errorf("Illegal principal name %s: %s", name, javaText(err)) //nolint:staticcheck // Hadoop's text
	case err == nil && !validName(short):
		err = errors.New("Null user") //nolint:staticcheck // Hadoop's text
	}
	return claviger.Principal{Name: name, Short: short}, err
}
