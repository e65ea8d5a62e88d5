// Package authn finds out who sends a request, as Hadoop's authentication
// filter does: by the signed hadoop.auth cookie, else by what the request says
// of itself; and whether he may act for somebody else (doAs).
//
// It knows requests but not answers: an Authenticator returns a Result, and the
// REST face turns that into status codes. So far it knows the authentication
// type "simple", which believes the user.name of the query string.
package authn

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"claviger"
)

// CookieName is the cookie that carries the signed token.
const CookieName = "hadoop.auth"

// PseudoAuth is the challenge (WWW-Authenticate) of type simple.
const PseudoAuth = "PseudoAuth"

// simpleTokenType is the token type of type simple; the suffix says that the
// handler will take delegation tokens too. Clients look at it.
const simpleTokenType = "simple-dt"

// maxNameLength of a user's name, in bytes. Names are kept in caches; a
// Kerberos principal is far shorter.
const maxNameLength = 512

// Config is what an Authenticator is made of. The properties have the prefix
// hadoop.kms.authentication.
type Config struct {
	Anonymous   bool          // simple.anonymous.allowed
	Validity    time.Duration // token.validity, of a new token
	MaxInactive time.Duration // token.max-inactive-interval; <= 0: tokens do not tire
	Cookie      CookieAttributes
	Secrets     SecretProvider
	ProxyUsers  *ProxyUsers      // nil: nobody may act for anybody
	Delegations *Delegations     // nil: there are no delegation tokens
	Now         func() time.Time // nil: time.Now
}

// Authenticator authenticates requests. Its methods may be called from many
// goroutines.
type Authenticator struct {
	conf   Config
	signer signer
}

// New makes an Authenticator for type simple.
func New(conf Config) (*Authenticator, error) {
	const op = "authn.New"
	if conf.Secrets == nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "no provider of signing secrets")
	}
	if conf.Validity <= 0 {
		return nil, claviger.Errorf(op, claviger.Invalid, "",
			"hadoop.kms.authentication.token.validity is %v; it must be a positive number of seconds", conf.Validity)
	}
	if err := conf.Cookie.check(); err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	if conf.ProxyUsers == nil {
		conf.ProxyUsers = &ProxyUsers{}
	}
	return &Authenticator{conf: conf, signer: signer{conf.Secrets}}, nil
}

// Request is what authentication needs to know of an HTTP request.
type Request struct {
	Header   http.Header
	RawQuery string     // undecoded, without '?'
	RemoteIP netip.Addr // of the TCP peer
	HTTPS    bool
}

// RequestOf takes a Request out of what net/http hands to a handler.
func RequestOf(r *http.Request) Request {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	ip, _ := netip.ParseAddr(host) // the zero Addr is on no list
	return Request{Header: r.Header, RawQuery: r.URL.RawQuery, RemoteIP: ip.Unmap().WithZone(""), HTTPS: r.TLS != nil}
}

// Result is the outcome for one request. Exactly one of Principal, Anonymous
// and Refusal is set.
type Result struct {
	// Principal is who the request acts as; Principal.Real, where set, is who
	// authenticated himself and acts for him.
	Principal *claviger.Principal
	// Anonymous: nobody is named and Config.Anonymous lets that pass. Hadoop's
	// KMS answers OPTIONS to such a request and then fails at everything else.
	Anonymous bool
	// Refusal says why the request must not be served.
	Refusal *Refusal
	// SetCookie is the value of a Set-Cookie header to send, whatever the
	// answer will be; "" is none. With a refusal it may clear the cookie, or
	// (doAs refused) set one, as the proxy himself is authenticated.
	SetCookie string
}

// RefusalKind says what is wrong, in terms that the face maps to a status.
type RefusalKind int

// The kinds of refusal.
const (
	// Unauthenticated: nobody is named, or the cookie does not hold. Hadoop: 401
	// with the challenge, Reason as the reason phrase.
	Unauthenticated RefusalKind = iota
	// NotAllowed: he may not act for whom he names. Hadoop: 403, an
	// AuthorizationException whose message is Reason.
	NotAllowed
	// Malformed: a name that no user can have. Hadoop: 500, an
	// IllegalArgumentException whose message is Reason.
	Malformed
	// BadDelegation: the delegation token does not hold, or may not be renewed.
	// Hadoop: 403, an AuthenticationException whose message is Reason.
	BadDelegation
	// NoDelegator: an operation on delegation tokens needs a caller, and none is
	// named. Hadoop: 403 with the challenge and no body.
	NoDelegator
	// BadOperation: an operation on delegation tokens with the wrong method, or
	// without what it needs. Hadoop: 400, Reason as the reason phrase.
	BadOperation
	// UnknownDelegation: the token to cancel is not there, or not the caller's to
	// cancel. Hadoop: 404, Reason as the reason phrase.
	UnknownDelegation
)

// Refusal says why a request must not be served.
type Refusal struct {
	Kind RefusalKind
	// Reason is Hadoop's own text. It may hold text of the request's: whoever
	// writes it into HTML or a header must escape it.
	Reason string
	// Challenge is the value of the WWW-Authenticate header; set for
	// Unauthenticated and NoDelegator only.
	Challenge string
}

// Authenticate finds out who sends the request and whom he acts for.
//
// Of several hadoop.auth cookies the first counts, and it beats a delegation
// token, which beats user.name. A cookie
// that does not hold is as none, but its fault is the Reason where nothing else
// in the request authenticates it.
func (a *Authenticator) Authenticate(ctx context.Context, r Request) Result {
	now := a.conf.Now()
	tok, reason := a.cookieToken(r, now)
	fresh := tok == nil
	var refusal *Refusal
	if fresh {
		if text, ok := delegationOf(r); ok && a.conf.Delegations != nil {
			return a.byDelegation(text)
		}
		if tok, refusal = a.namedToken(r, now); tok == nil && refusal == nil && !a.conf.Anonymous {
			refusal = &Refusal{Kind: Unauthenticated, Reason: reason, Challenge: PseudoAuth}
		}
	}
	if refusal != nil {
		res := Result{Refusal: refusal}
		if refusal.Kind == Unauthenticated {
			res.SetCookie = a.conf.Cookie.text("", time.UnixMilli(0), r.HTTPS)
		}
		return res
	}
	if tok == nil {
		return Result{Anonymous: true}
	}

	var res Result
	if a.conf.MaxInactive > 0 && (fresh || !a.conf.Cookie.Persistent) {
		tok.idleUntil = now.Add(a.conf.MaxInactive)
		fresh = true
	}
	if fresh {
		res.SetCookie = a.conf.Cookie.text(a.signer.sign(tok.text()), tok.expires, r.HTTPS)
	}
	res.Principal, res.Refusal = a.actingFor(ctx, r, tok.principal)
	return res
}

// cookieToken returns the token of the request's cookie, or why there is none.
func (a *Authenticator) cookieToken(r Request, now time.Time) (_ *token, why string) {
	text, ok := authCookie(r.Header["Cookie"])
	if !ok {
		return nil, "Authentication required"
	}
	return a.openCookie(text, now)
}

// namedToken makes a token of what else the request says. No token and no
// refusal is a request that says nothing.
func (a *Authenticator) namedToken(r Request, now time.Time) (*token, *Refusal) {
	name, ok := queryValue(r.RawQuery, func(n string) bool { return n == "user.name" })
	switch {
	case !ok:
		return nil, nil
	case !validName(name):
		return nil, &Refusal{Kind: Malformed, Reason: "userName is NULL, empty or contains a '&'"}
	}
	return &token{user: name, principal: name, kind: simpleTokenType, expires: now.Add(a.conf.Validity)}, nil
}

// openCookie returns the token of a cookie's value, or Hadoop's reason why it
// does not hold.
func (a *Authenticator) openCookie(text string, now time.Time) (_ *token, why string) {
	if text == "" {
		return nil, "Unauthorized access"
	}
	plain, err := a.signer.open(text)
	if err != nil {
		return nil, "org.apache.hadoop.security.authentication.util.SignerException: " + err.Error()
	}
	tok, err := parseToken(plain)
	switch {
	case err != nil:
		return nil, err.Error()
	case tok.kind != simpleTokenType:
		return nil, "Invalid AuthenticationToken type"
	case tok.expired(now):
		return nil, "AuthenticationToken expired"
	}
	return tok, ""
}

// actingFor is the principal of a name, or of whom the request's doAs names.
// Of several doAs the first counts, in whatever case the parameter is written.
func (a *Authenticator) actingFor(ctx context.Context, r Request, name string) (*claviger.Principal, *Refusal) {
	real, err := principalOf(name)
	if err != nil {
		return nil, &Refusal{Kind: Malformed, Reason: err.Error()}
	}
	doAs, ok := queryValue(r.RawQuery, func(n string) bool { return strings.EqualFold(n, "doAs") })
	if !ok {
		return &real, nil
	}
	if !validName(doAs) {
		return nil, &Refusal{Kind: Malformed, Reason: "Null user"}
	}
	who, err := principalOf(doAs)
	if err != nil {
		return nil, &Refusal{Kind: Malformed, Reason: err.Error()}
	}
	who.Real = &real
	if reason := a.conf.ProxyUsers.refuse(ctx, who, r.RemoteIP); reason != "" {
		return nil, &Refusal{Kind: NotAllowed, Reason: reason}
	}
	return &who, nil
}

// validName keeps out what Hadoop keeps out (an empty name, one with '&', which
// would break the token's text), and what would break a header, a quoted
// cookie or a line of a log.
func validName(name string) bool {
	if name == "" || len(name) > maxNameLength || !utf8.ValidString(name) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '&' || r == '"' || r == '\\' ||
			r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029'
	})
}

// kerberosName is what Hadoop takes for a principal: service[/host][@realm].
var kerberosName = regexp.MustCompile(`^([^/@]+)(?:/[^/@]+)?(?:@[^/@]+)?$`)

// principalOf splits a name as Hadoop does without Kerberos, where the rules
// are RULE:[1:$1] RULE:[2:$1]: the first component is the short name.
func principalOf(name string) (claviger.Principal, error) {
	p := claviger.Principal{Name: name, Short: name}
	if !strings.ContainsAny(name, "/@") {
		return p, nil
	}
	if m := kerberosName.FindStringSubmatch(name); m != nil {
		p.Short = m[1]
	} else if strings.Contains(name, "@") {
		return p, fmt.Errorf("Malformed Kerberos name: %s", name) //nolint:staticcheck // Hadoop's text
	}
	return p, nil
}
