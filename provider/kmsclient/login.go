package kmsclient

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"claviger"
	"claviger/provider"
)

// Negotiation is one login by Kerberos at one KMS: a GSS-API context with SPNEGO. One goroutine uses it.
type Negotiation interface {
	// Step accepts the KMS's token, nil at first, and returns our next token. done is true once the KMS has proved its
	// identity. Step may wait for a KDC, and cannot be cancelled.
	Step(in []byte) (out []byte, done bool, err error)
	Close() error
}

// Negotiate begins a Negotiation with the KMS at a host. host is the name in the URI, in lower case. Many goroutines
// may call it at the same time.
type Negotiate func(host string) (Negotiation, error)

const (
	scheme = "Negotiate"
	// maxTokens bounds the tokens of one login. Kerberos needs one. A KMS that prefers another mechanism may request
	// one more. The length of the KMS's tokens is bounded by the Transport's limit for headers.
	maxTokens = 3
)

// logIn logs in by user.name, or by Kerberos if the KMS requires it, and returns the cookie. If another call has
// replaced the stale cookie in the meantime, logIn returns the cookie of that call.
func (p *Provider) logIn(ctx context.Context, h *host, r request, stale *string) (*string, *failure) {
	select {
	case h.login <- struct{}{}:
		defer func() { <-h.login }()
	case <-ctx.Done():
		return nil, &failure{err: ctx.Err(), untouched: true}
	}
	if c := h.cookie.Load(); c != nil && c != stale {
		return c, nil
	}
	cookie, f := p.simple(ctx, h, r)
	if errors.Is(f.orNil(), errWantsKerberos) {
		cookie, f = p.kerberos(ctx, h, r)
	}
	if f != nil {
		return nil, f
	}
	h.cookie.Store(&cookie)
	return &cookie, nil
}

// Cookie logs in at one host of the KMS and returns the cookie as a client sends it: hadoop.auth="...". It is a secret.
func (p *Provider) Cookie(ctx context.Context) (string, error) {
	if err := p.Check(ctx); err != nil {
		return "", err
	}
	for _, h := range p.hosts {
		if c := h.cookie.Load(); c != nil {
			return authCookie + `="` + *c + `"`, nil
		}
	}
	return "", claviger.E("login", claviger.Internal, "", errors.New("the KMS gave no cookie"))
}

// orNil returns the failure's error, and nil for a nil failure.
func (f *failure) orNil() error {
	if f == nil {
		return nil
	}
	return f.err
}

var errWantsKerberos = errors.New("the KMS requires Kerberos")

// handshake sends an OPTIONS request, which only authenticates.
func (p *Provider) handshake(ctx context.Context, h *host, r request, query, authorization string) (
	*http.Response, *failure) {
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, h.base+"/v1/keys/names"+query, nil)
	if err != nil {
		return nil, &failure{err: err, untouched: true}
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := p.client.Do(req)
	if f := selfFailure(h, r, err); f != nil {
		return nil, f
	}
	if err != nil {
		return nil, &failure{err: explain(h, err), untouched: true}
	}
	return resp, nil
}

// cookieOf returns the cookie of a successful handshake, and "" if there is none.
func cookieOf(resp *http.Response) string {
	if resp.StatusCode < 300 {
		for _, c := range resp.Cookies() {
			if c.Name == authCookie {
				return c.Value
			}
		}
	}
	return ""
}

// simple logs in by Hadoop's simple authentication, with a user name alone.
func (p *Provider) simple(ctx context.Context, h *host, r request) (string, *failure) {
	resp, f := p.handshake(ctx, h, r, "?"+url.Values{"user.name": {p.opt.User}}.Encode(), "")
	if f != nil {
		return "", f
	}
	defer drain(resp)
	if cookie := cookieOf(resp); cookie != "" {
		return cookie, nil
	}
	_, negotiates := challenge(resp)
	if negotiates {
		p.wantsKerberos.Store(true)
	}
	var err error
	switch {
	case negotiates && p.opt.Negotiate != nil:
		return "", &failure{err: errWantsKerberos, untouched: true}
	case negotiates:
		err = fmt.Errorf("KMS %s requires Kerberos, and no Kerberos login is configured here (set "+
			"claviger.client.kerberos.principal and .keytab)", h.base)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		err = fmt.Errorf("KMS %s refuses the login of user %q by simple authentication: %s", h.base,
			p.opt.User, resp.Status)
	case resp.StatusCode < 300:
		err = fmt.Errorf("%s gave no %s cookie for user %q: it is not a KMS with simple authentication", h.base,
			authCookie, p.opt.User)
	default:
		return "", notAKMS(h, resp)
	}
	return "", deniedLogin(r, err)
}

// deniedLogin returns the final failure of a login that the KMS refuses.
func deniedLogin(r request, err error) *failure {
	return &failure{err: claviger.E(r.op, claviger.Denied, r.key, &provider.LoginError{Err: err}),
		untouched: true, final: true}
}

// notAKMS returns the failure of a login whose status no working KMS sends: the host is not a KMS, the KMS is starting,
// or a balancer has no KMS behind it.
func notAKMS(h *host, resp *http.Response) *failure {
	text, _ := readAll(resp.Body, maxErrorBody)
	err := refusedScheme(h, resp, text)
	if err == nil {
		err = fmt.Errorf("the login was answered with %s; does the URI have the path of the KMS?", resp.Status)
	}
	return &failure{err: err, untouched: true}
}

// challenge returns the token of the header WWW-Authenticate: Negotiate. ok is false if there is no such header. A KMS
// with several schemes sends several headers.
func challenge(resp *http.Response) (token string, ok bool) {
	for _, v := range resp.Header.Values("WWW-Authenticate") {
		if rest, found := strings.CutPrefix(v, scheme); found && (rest == "" || rest[0] == ' ') {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// kerberos logs in by Kerberos. It returns when ctx is done, even if the Kerberos library still waits for a KDC.
func (p *Provider) kerberos(ctx context.Context, h *host, r request) (string, *failure) {
	type result struct {
		cookie string
		f      *failure
	}
	done := make(chan result, 1)
	go func() {
		cookie, f := p.negotiate(ctx, h, r)
		done <- result{cookie, f}
	}()
	select {
	case got := <-done:
		return got.cookie, got.f
	case <-ctx.Done():
		return "", &failure{err: &provider.LoginError{
			Err: fmt.Errorf("logging in by Kerberos: %w (does the KDC answer?)", ctx.Err())}, untouched: true}
	}
}

// loginError returns the failure of a login by Kerberos that may succeed later, or at another host.
func loginError(err error) *failure {
	return &failure{err: &provider.LoginError{Err: fmt.Errorf("logging in by Kerberos: %w", err)}, untouched: true}
}

// deniedKerberos is deniedLogin with a formatted message.
func deniedKerberos(h *host, r request, format string, args ...any) *failure {
	return deniedLogin(r, fmt.Errorf("KMS %s, login by Kerberos: "+format, append([]any{h.base}, args...)...))
}

const noProof = "the KMS did not prove that it is the service that the URI names"

// negotiate exchanges all tokens of a login. It returns the cookie only after the KMS has proved that it is the service
// that the URI names.
func (p *Provider) negotiate(ctx context.Context, h *host, r request) (string, *failure) {
	base, err := url.Parse(h.base)
	if err != nil {
		return "", loginError(err)
	}
	n, err := p.opt.Negotiate(strings.ToLower(base.Hostname()))
	if err != nil {
		return "", loginError(err)
	}
	defer func() { _ = n.Close() }() // Close only frees memory
	var in []byte
	for range maxTokens {
		out, proved, err := n.Step(in)
		switch {
		case err != nil && in != nil:
			return "", deniedKerberos(h, r, noProof+": %w", err)
		case err != nil:
			return "", loginError(err)
		case proved || len(out) == 0:
			return "", deniedKerberos(h, r, "the KMS requests another token after the login is complete")
		}
		answer, f := p.sendToken(ctx, h, r, out)
		if f != nil {
			return "", f
		}
		switch in = answer.token; {
		case answer.status < 300:
			return answer.accept(n, h, r)
		case answer.status == http.StatusUnauthorized && answer.negotiates && len(in) > 0:
			continue
		default:
			return "", deniedKerberos(h, r, "the KMS refuses the ticket: %s; see its log. Often its auth_to_local has "+
				"no rule for our principal, its keytab has an old key, or a clock is wrong", answer.reason)
		}
	}
	return "", deniedKerberos(h, r, "the negotiation did not end after %d tokens", maxTokens)
}

// tokenAnswer is the KMS's answer to one token.
type tokenAnswer struct {
	status     int
	reason     string // status with its text
	cookie     string
	negotiates bool // there is a WWW-Authenticate: Negotiate
	token      []byte
}

// sendToken sends one token. Its failure is final, except for a host that does not answer as a KMS.
func (p *Provider) sendToken(ctx context.Context, h *host, r request, token []byte) (tokenAnswer, *failure) {
	resp, f := p.handshake(ctx, h, r, "", scheme+" "+base64.StdEncoding.EncodeToString(token))
	if f != nil {
		return tokenAnswer{}, f
	}
	defer drain(resp)
	text, negotiates := challenge(resp)
	a := tokenAnswer{status: resp.StatusCode, reason: resp.Status, cookie: cookieOf(resp), negotiates: negotiates}
	if a.status >= 300 && a.status != http.StatusUnauthorized && a.status != http.StatusForbidden {
		return a, notAKMS(h, resp)
	}
	var err error
	if a.token, err = base64.StdEncoding.DecodeString(text); err != nil {
		return a, deniedKerberos(h, r, "the token of the KMS is not base64: %w", err)
	}
	return a, nil
}

// accept verifies the KMS's proof in an answer that ends the login, and returns the cookie.
func (a tokenAnswer) accept(n Negotiation, h *host, r request) (string, *failure) {
	if len(a.token) == 0 {
		return "", deniedKerberos(h, r, "the KMS sent no token that proves that it is the service that the URI names")
	}
	switch _, proved, err := n.Step(a.token); {
	case err != nil:
		return "", deniedKerberos(h, r, noProof+": %w", err)
	case !proved:
		return "", deniedKerberos(h, r, "the KMS accepted the login before it proved that it is the service that the "+
			"URI names")
	case a.cookie == "":
		return "", deniedKerberos(h, r, "the KMS sent no %s cookie", authCookie)
	}
	return a.cookie, nil
}
