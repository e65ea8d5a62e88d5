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

// Negotiation is one proof of who we are, to one KMS: a GSS-API context of
// Kerberos in SPNEGO's wrapping. It is used by one goroutine.
type Negotiation interface {
	// Step takes the KMS's token, none at first, and returns ours. done says that
	// the KMS has proved itself too. It may wait for a KDC, without a way to end it.
	Step(in []byte) (out []byte, done bool, err error)
	Close() error
}

// Negotiate begins a Negotiation with the KMS at a host, named as in the URI, in
// lower case. It may be called from many goroutines.
type Negotiate func(host string) (Negotiation, error)

const (
	scheme = "Negotiate"
	// maxLegs bounds the tokens of one login. Kerberos needs one; a KMS that wants
	// another mechanism first may ask for one more.
	// How long a token of the KMS may be the Transport bounds, with all headers.
	maxLegs = 3
)

// logIn does the handshake, by user.name or by Kerberos as the KMS wants it,
// unless another call has replaced the stale cookie meanwhile.
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

// orNil is the failure's error, and none where there is no failure.
func (f *failure) orNil() error {
	if f == nil {
		return nil
	}
	return f.err
}

var errWantsKerberos = errors.New("it wants Kerberos")

// handshake sends OPTIONS, which does nothing but to authenticate.
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
	if f := itself(h, r, err); f != nil {
		return nil, f
	}
	if err != nil {
		return nil, &failure{err: explain(h, err), untouched: true}
	}
	return resp, nil
}

// cookieOf is what a handshake that succeeded gave; "" is nothing.
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

// simple logs in by name.
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
		p.asked.Store(true)
	}
	var err error
	switch {
	case negotiates && p.opt.Negotiate != nil:
		return "", &failure{err: errWantsKerberos, untouched: true}
	case negotiates:
		err = fmt.Errorf("KMS %s wants Kerberos, and no login by it is set up here "+
			"(claviger.client.kerberos.principal and .keytab)",
			h.base)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		err = fmt.Errorf("KMS %s does not let user %q log in by simple authentication: %s", h.base,
			p.opt.User, resp.Status)
	case resp.StatusCode < 300:
		err = fmt.Errorf("%s gave no %s cookie for user %q: it is not a KMS with simple authentication", h.base,
			authCookie, p.opt.User)
	default:
		return "", notAKMS(h, resp)
	}
	return "", deniedLogin(r, err)
}

// deniedLogin is a login that this KMS refuses for good.
func deniedLogin(r request, err error) *failure {
	return &failure{err: claviger.E(r.op, claviger.Denied, r.key, &provider.LoginError{Err: err}),
		untouched: true, final: true}
}

// notAKMS is for statuses that no KMS that serves gives to a login: it is none,
// it is starting, or a balancer has none behind it.
func notAKMS(h *host, resp *http.Response) *failure {
	text, _ := readAll(resp.Body, maxErrorBody)
	err := refusedScheme(h, resp, text)
	if err == nil {
		err = fmt.Errorf("the login was answered with %s; is the path of the URI that of the KMS?", resp.Status)
	}
	return &failure{err: err, untouched: true}
}

// challenge finds the token of WWW-Authenticate: Negotiate, and tells whether
// there is that scheme at all. A KMS of several schemes sends several headers.
func challenge(resp *http.Response) (token string, ok bool) {
	for _, v := range resp.Header.Values("WWW-Authenticate") {
		if rest, found := strings.CutPrefix(v, scheme); found && (rest == "" || rest[0] == ' ') {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// kerberos logs in by Kerberos. It does not wait longer than ctx allows for a
// library that waits for a KDC.
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

// negotiate does all legs of a login. The cookie counts only once the KMS has
// proved that it is the service that the URI names.
func (p *Provider) negotiate(ctx context.Context, h *host, r request) (string, *failure) {
	failed := func(err error) (string, *failure) {
		// Another host may be known to the KDC, and the KDC be there again later.
		return "", &failure{err: &provider.LoginError{Err: fmt.Errorf("logging in by Kerberos: %w", err)},
			untouched: true}
	}
	denied := func(format string, args ...any) (string, *failure) {
		err := fmt.Errorf("KMS %s, login by Kerberos: "+format, append([]any{h.base}, args...)...)
		return "", deniedLogin(r, err)
	}
	base, err := url.Parse(h.base)
	if err != nil {
		return failed(err)
	}
	n, err := p.opt.Negotiate(strings.ToLower(base.Hostname()))
	if err != nil {
		return failed(err)
	}
	defer func() { _ = n.Close() }() // it only frees
	var in []byte
	for range maxLegs {
		out, proved, err := n.Step(in)
		switch {
		case err != nil && in != nil:
			return denied("it did not prove that it is the service that the URI names: %w", err)
		case err != nil:
			return failed(err)
		case proved || len(out) == 0:
			return denied("it asks for more after the login is complete")
		}
		resp, f := p.handshake(ctx, h, r, "", scheme+" "+base64.StdEncoding.EncodeToString(out))
		if f != nil {
			return "", f
		}
		text, more := challenge(resp)
		cookie, status, reason := cookieOf(resp), resp.StatusCode, resp.Status
		if status >= 300 && status != http.StatusUnauthorized && status != http.StatusForbidden {
			f = notAKMS(h, resp)
		}
		drain(resp)
		if f != nil {
			return "", f
		}
		if in, err = base64.StdEncoding.DecodeString(text); err != nil {
			return denied("its token is no base64: %w", err)
		}
		switch {
		case status < 300 && len(in) == 0:
			return denied("it sent no token that proves that it is the service that the URI names")
		case status < 300:
			switch _, proved, err = n.Step(in); {
			case err != nil:
				return denied("it did not prove that it is the service that the URI names: %w", err)
			case !proved:
				return denied("it let us in before it proved that it is the service that the URI names")
			}
			if cookie == "" {
				return denied("it gave no %s cookie", authCookie)
			}
			return cookie, nil
		case status == http.StatusUnauthorized && more && len(in) > 0:
			continue
		default:
			return denied("it refuses the ticket: %s; its log says why: often no rule of auth_to_local there makes "+
				"a user of our principal, its keytab has an old key, or a clock is wrong", reason)
		}
	}
	return denied("no end of the negotiation after %d tokens", maxLegs)
}
