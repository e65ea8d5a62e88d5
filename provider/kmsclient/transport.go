package kmsclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"claviger"
	"claviger/provider"
)

const (
	// maxBody bounds an answer: 100,000 EDEKs, or a million key names, fit.
	maxBody = 64 << 20
	// smallBody bounds an answer about one key, version or EDEK. Clients choose how many of
	// those are asked for at a time, so a source that answers with much must not fill the
	// memory.
	smallBody = 1 << 20
	// entryBody is what an answer may have beside smallBody for each thing that was asked
	// for, beside the key's name.
	entryBody = 2 << 10
	// maxVersions of a key are listed, about.
	maxVersions = 10_000
	// largeAtOnce is how many answers of more than smallBody are read at a time.
	largeAtOnce = 4
	// maxErrorBody bounds an answer that is an error.
	maxErrorBody = 64 << 10
	// restPeriod is how long a host that could not be reached is asked last.
	restPeriod = 5 * time.Second
	authCookie = "hadoop.auth"
)

// host is one of the far KMS's hosts.
type host struct {
	base string // "https://h1:9600/kms"

	restUntil atomic.Int64 // by monotonic; see restPeriod

	login  chan struct{} // holds one token: one handshake at a time
	cookie atomic.Pointer[string]
}

// request is a call of the REST API.
type request struct {
	op     string // of ours, for errors
	key    string // key or version name, for errors
	method string
	path   string // escaped, from "/v1"
	query  url.Values
	body   []byte // JSON, or nil
	as     string // doAs
	status int    // the status that means success
	noBody bool   // success has no JSON
	most   int64  // bytes that an answer may have; 0 is smallBody
	// safe: may be sent again though a host may have acted on it.
	safe bool
}

// failure is an attempt that gave no answer to return.
type failure struct {
	err error
	// untouched: the host has not acted on the request, for certain.
	untouched bool
	// final: no other host would say anything else.
	final bool
	// answered: the host is there, and says that it could not do it. Another host may.
	answered bool
	// busy: the KMS itself, and no balancer before it, says that it cannot serve this now,
	// perhaps for a limit of the user alone.
	busy bool
}

func (f *failure) Error() string { return f.err.Error() }

// do sends the request to one host after the other until one answers, and
// returns the body. Errors are *claviger.Error.
func (p *Provider) do(ctx context.Context, r request) ([]byte, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(r.op, r.key)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()

	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.Multiplier = p.opt.SleepBase, p.opt.SleepMax, 2

	hosts := p.order()
	attempts := max(len(hosts), p.opt.MaxRetries+1)
	var failed, tried []string // what failed; at which hosts
	var answer error           // of a host that answered, but could not do it
	var busy bool              // a host has said so
	var login *provider.LoginError
	unavailable := func(err error) error {
		if busy {
			err = provider.Answered(err)
		}
		return claviger.E(r.op, claviger.Unavailable, r.key, err)
	}
	for i := range attempts {
		if i > 0 && i%len(hosts) == 0 {
			if err := sleep(ctx, pause.NextBackOff()); err != nil {
				break
			}
		}
		h := hosts[i%len(hosts)]
		body, f := p.attempt(ctx, h, r)
		busy = busy || f != nil && f.busy
		switch {
		case f == nil:
			h.restUntil.Store(0)
			if len(failed) > 0 { // where every host fails, the error says so
				what := "KMS host failed, and another answered"
				if slices.Contains(tried, h.base) {
					what = "KMS host failed, and answered when it was asked again"
				}
				p.opt.Log.Warn(what, "failed", strings.Join(failed, "; "), "answered", h.base, "attempt", i+1, "op",
					r.op)
			}
			return body, nil
		case p.ctx.Err() != nil:
			return nil, closedError(r.op, r.key)
		case f.final:
			return nil, f.err
		case ctx.Err() != nil && (f.untouched || r.safe):
			return nil, unavailable(fmt.Errorf("KMS %s: %w", h.base, context.Cause(ctx)))
		case !f.untouched && !r.safe:
			return nil, claviger.Errorf(r.op, claviger.Internal, r.key,
				"KMS %s: %w; the request was sent, and whether it was done is not known: look before it is sent again",
				h.base, f.err)
		}
		if f.untouched {
			h.restUntil.Store(int64(monotonic() + restPeriod))
		}
		if f.answered {
			answer = f.err
		}
		_ = errors.As(f.err, &login) // it stays nil where none failed at that
		tried = append(tried, h.base)
		if i < len(hosts) { // each host once, however often it is tried
			failed = append(failed, fmt.Sprintf("%s: %v", h.base, f.err))
		}
	}
	if p.ctx.Err() != nil {
		return nil, closedError(r.op, r.key)
	}
	if login != nil {
		return nil, unavailable(
			&provider.LoginError{Err: fmt.Errorf("no login at the KMS: %s", strings.Join(failed, "; "))})
	}
	if err := ctx.Err(); err != nil {
		return nil, unavailable(fmt.Errorf("%w; no host of the KMS answered: %s", err, strings.Join(failed, "; ")))
	}
	if answer != nil {
		return nil, answer
	}
	return nil, unavailable(fmt.Errorf("no host of the KMS answered: %s", strings.Join(failed, "; ")))
}

// loaded is the moment from which monotonic counts: steps of the clock are none of it.
var loaded = time.Now()

func monotonic() time.Duration { return time.Since(loaded) }

// order returns the hosts in turn, those that lately could not be reached last.
func (p *Provider) order() []*host {
	start := int(p.next.Add(1) % uint32(len(p.hosts)))
	now := int64(monotonic())
	out := make([]*host, 0, len(p.hosts))
	var resting []*host
	for i := range p.hosts {
		h := p.hosts[(start+i)%len(p.hosts)]
		if h.restUntil.Load() > now {
			resting = append(resting, h)
		} else {
			out = append(out, h)
		}
	}
	return append(out, resting...)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt sends the request to one host, logging in first where there is no
// cookie, and again where the cookie is no longer taken.
func (p *Provider) attempt(ctx context.Context, h *host, r request) ([]byte, *failure) {
	ctx, cancel := context.WithTimeout(ctx, p.opt.Timeout)
	defer cancel()
	cookie := h.cookie.Load()
	for again := false; ; again = true {
		if cookie == nil {
			var f *failure
			if cookie, f = p.logIn(ctx, h, r, nil); f != nil {
				return nil, f
			}
		}
		body, f, stale := p.send(ctx, h, r, *cookie)
		if !stale {
			return body, f
		}
		if again {
			return nil, f
		}
		if cookie, f = p.logIn(ctx, h, r, cookie); f != nil {
			return nil, f
		}
	}
}

// send sends the request. stale: the cookie was not taken, and so nothing was
// done.
func (p *Provider) send(ctx context.Context, h *host, r request, cookie string) (body []byte, f *failure, stale bool) {
	target := h.base + r.path
	q := r.query
	if r.as != "" {
		q = url.Values{"doAs": {r.as}}
		for k, v := range r.query {
			q[k] = v
		}
	}
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	var in io.Reader
	if r.body != nil {
		in = bytes.NewReader(r.body)
	}
	connected := false // else the request cannot have reached the host
	ctx = httptrace.WithClientTrace(
		ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }})
	req, err := http.NewRequestWithContext(ctx, r.method, target, in)
	if err != nil {
		return nil, &failure{err: claviger.E(r.op, claviger.Internal, r.key, err), untouched: true, final: true}, false
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json, */*;q=0.2")
	req.Header.Set("Cookie", authCookie+`="`+cookie+`"`)
	resp, err := p.client.Do(req)
	if f := itself(h, r, err); f != nil {
		return nil, f, false
	}
	if err != nil {
		return nil, &failure{err: explain(h, err), untouched: !connected}, false
	}
	defer drain(resp)
	if resp.StatusCode != r.status {
		return nil, p.refused(ctx, h, r, resp), staleCookie(resp)
	}
	if r.noBody {
		return nil, nil, false
	}
	// The request is done; what is wrong with the answer no other host mends.
	bad := func(format string, args ...any) *failure {
		return &failure{err: claviger.Errorf(r.op, claviger.Internal, r.key, "KMS %s: "+format,
			append([]any{h.base}, args...)...), final: true}
	}
	if ct := resp.Header.Get("Content-Type"); resp.ContentLength != 0 &&
		!strings.HasPrefix(strings.ToLower(ct), "application/json") {
		return nil, bad("the answer is %q, not application/json: is the path of the URI that of the KMS?", ct), false
	}
	most := max(r.most, smallBody)
	body, err = p.readAnswer(ctx, resp, most)
	switch {
	case err == nil && len(body) == 0:
		return nil, bad("answered %s with an empty body", resp.Status), false
	case errors.Is(err, errTooLong):
		return nil, bad("the answer is longer than %d bytes, which is more than there can be to say", most), false
	case err != nil:
		return nil, &failure{err: fmt.Errorf("reading the answer: %w", err)}, false
	}
	return body, nil, false
}

// staleCookie tells the answers upon which Hadoop's clients authenticate again:
// 401, and 403 with one of two reason phrases.
func staleCookie(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return true
	case http.StatusForbidden:
		return strings.Contains(resp.Status, "Anonymous requests are disallowed") ||
			strings.Contains(resp.Status, "Invalid signature")
	}
	return false
}

var errTooLong = errors.New("too long")

// readAll is io.ReadAll with a limit, beyond which it gives errTooLong, and what it has
// read.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return b, errTooLong
	}
	return b, err
}

// entries is how long an answer about n things of a key may be. JSON may need six bytes
// for one of a name.
func entries(n int, key string) int64 {
	return min(maxBody, smallBody+int64(n)*int64(entryBody+6*len(key)))
}

// readAnswer reads an answer of at most so many bytes. Of long ones few are read at a
// time.
func (p *Provider) readAnswer(ctx context.Context, resp *http.Response, most int64) ([]byte, error) {
	body, err := readAll(resp.Body, smallBody)
	if !errors.Is(err, errTooLong) || most <= smallBody {
		return body, err
	}
	select {
	case p.large <- struct{}{}:
		defer func() { <-p.large }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	rest, err := readAll(resp.Body, most-int64(len(body)))
	if err != nil {
		return nil, err
	}
	whole := append(body, rest...)
	clear(rest) // they may hold keys, as may the shorter array behind body
	if len(body) > 0 && &whole[0] != &body[0] {
		clear(body)
	}
	return whole, nil
}

// drain reads what is left of an answer, if it is short, so that the connection
// can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	_ = resp.Body.Close()
}

// explain puts into words what a transport's error means for who wrote the URI.
func explain(h *host, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without the URL: it may be long, and names who acts for whom
	}
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("it speaks http, but the URI says https: write kms://http@...: %w", err)
	case strings.Contains(err.Error(), "malformed HTTP response \"\\x15\\x03"): // a TLS alert
		return fmt.Errorf("it speaks https, but the URI says http: write kms://https@...: %w", err)
	}
	if cure := claviger.CertificateCure(err, truststoreName); cure != "" {
		return fmt.Errorf("%w; %s", err, cure)
	}
	return err
}

// truststoreName says where the authorities stand whom this client trusts.
const truststoreName = "the truststore (ssl.client.truststore.location of ssl-client.xml, or claviger.ssl.truststore)"

// refusedScheme tells the 400 with which Go's and others' TLS servers answer a
// plain request.
func refusedScheme(h *host, resp *http.Response, text []byte) error {
	if resp.StatusCode != http.StatusBadRequest || !strings.HasPrefix(h.base, "http://") {
		return nil
	}
	if lower := bytes.ToLower(text); bytes.Contains(lower, []byte("https server")) ||
		bytes.Contains(lower, []byte("https port")) {
		return errors.New("it speaks https, but the URI says http: write kms://https@...")
	}
	return nil
}
