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
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"claviger"
	"claviger/provider"
	"claviger/trace"
)

const (
	// maxBody bounds every answer. 100,000 EDEKs or a million key names fit.
	maxBody = 64 << 20
	// smallBody bounds an answer about one key, version or EDEK. Clients choose how many of these requests run at the
	// same time, so long answers of a source must not fill the memory.
	smallBody = 1 << 20
	// entryBody is the additional length of an answer for each requested entry, without the key's name.
	entryBody = 2 << 10
	// maxVersions is about the largest number of versions of a key that fit into an answer.
	maxVersions = 10_000
	// maxLarge is how many answers longer than smallBody are read at the same time.
	maxLarge = 4
	// maxErrorBody bounds an answer that is an error.
	maxErrorBody = 64 << 10
	// restPeriod is how long a host that could not be reached is the last one to be tried.
	restPeriod = 5 * time.Second
	authCookie = "hadoop.auth"
)

// host is one of the KMS's hosts.
type host struct {
	base string // "https://h1:9600/kms"

	restUntil atomic.Int64 // time of monotonic(); see restPeriod

	login  chan struct{} // capacity 1: one handshake at a time
	cookie atomic.Pointer[string]
}

// request is a call of the REST API.
type request struct {
	op     string // our operation, for errors
	key    string // key or version name, for errors
	method string
	path   string // escaped, begins with "/v1"
	query  url.Values
	body   []byte // JSON, or nil
	as     string // doAs
	status int    // the status that means success
	noBody bool   // a success has no JSON
	limit  int64  // limit of the answer in bytes; 0 means smallBody
	// safe is true if the request may be repeated after a host may have executed it.
	safe bool
}

// failure is the result of a failed attempt.
type failure struct {
	err error
	// untouched is true if the host certainly did not execute the request.
	untouched bool
	// final is true if every other host would give the same answer.
	final bool
	// answered is true if the host answered that it could not execute the request. Another host may be able to.
	answered bool
	// busy is true if the KMS itself, and not a balancer, answered that it cannot serve the request now. The reason may
	// be a limit of the user alone.
	busy bool
}

func (f *failure) Error() string { return f.err.Error() }

// do sends the request to one host after the other until one answers, and returns the body. Errors are *claviger.Error.
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
	c := call{p: p, r: r}
	for i := range attempts {
		if i > 0 && i%len(hosts) == 0 {
			if err := sleep(ctx, pause.NextBackOff()); err != nil {
				break
			}
		}
		h := hosts[i%len(hosts)]
		body, f := p.attempt(ctx, h, r)
		if f == nil {
			h.restUntil.Store(0)
			c.logFailover(h, i+1)
			return body, nil
		}
		c.busy = c.busy || f.busy
		if err := c.end(ctx, h, f); err != nil {
			return nil, err
		}
		if f.untouched {
			h.restUntil.Store(int64(monotonic() + restPeriod))
		}
		c.record(h, f, i < len(hosts))
	}
	return nil, c.err(ctx)
}

// call has the failed attempts of a request.
type call struct {
	p      *Provider
	r      request
	failed []string             // the first failure of each host
	tried  []string             // the host of each failure
	answer error                // of a host that answered that it could not execute the request
	busy   bool                 // a host answered that it is busy
	login  *provider.LoginError // the last failure of a login
}

// logFailover logs the failures of other attempts after h has answered. If no host answers, the error has them.
func (c *call) logFailover(h *host, attempt int) {
	if len(c.failed) == 0 {
		return
	}
	message := "KMS host failed, and another answered"
	if slices.Contains(c.tried, h.base) {
		message = "KMS host failed, and answered a retry"
	}
	c.p.opt.Log.Warn(message, "failed", strings.Join(c.failed, "; "), "answered", h.base, "attempt", attempt, "op",
		c.r.op)
}

// end returns the error of the call if no other attempt may follow f, and nil otherwise.
func (c *call) end(ctx context.Context, h *host, f *failure) error {
	switch {
	case c.p.ctx.Err() != nil:
		return closedError(c.r.op, c.r.key)
	case f.final:
		return f.err
	case ctx.Err() != nil && (f.untouched || c.r.safe):
		return c.unavailable(fmt.Errorf("KMS %s: %w", h.base, context.Cause(ctx)))
	case !f.untouched && !c.r.safe:
		return claviger.Errorf(c.r.op, claviger.Internal, c.r.key,
			"KMS %s: %w; the request was sent, and may have been executed: check that before you send it again",
			h.base, f.err)
	}
	return nil
}

// record records a failed attempt. first is true for the first attempt at the host.
func (c *call) record(h *host, f *failure, first bool) {
	if f.answered {
		c.answer = f.err
	}
	_ = errors.As(f.err, &c.login) // login stays as it is if f is not a failure of a login
	c.tried = append(c.tried, h.base)
	if first {
		c.failed = append(c.failed, fmt.Sprintf("%s: %v", h.base, f.err))
	}
}

// err returns the error of the call after all attempts have failed.
func (c *call) err(ctx context.Context) error {
	failed := strings.Join(c.failed, "; ")
	if c.p.ctx.Err() != nil {
		return closedError(c.r.op, c.r.key)
	}
	if c.login != nil {
		return c.unavailable(&provider.LoginError{Err: fmt.Errorf("no login at the KMS: %s", failed)})
	}
	if err := ctx.Err(); err != nil {
		return c.unavailable(fmt.Errorf("%w; no host of the KMS answered: %s", err, failed))
	}
	if c.answer != nil {
		return c.answer
	}
	return c.unavailable(fmt.Errorf("no host of the KMS answered: %s", failed))
}

// unavailable returns an error of kind Unavailable. It is marked with ErrAnswered if a host answered that it is busy.
func (c *call) unavailable(err error) error {
	if c.busy {
		err = provider.Answered(err)
	}
	return claviger.E(c.r.op, claviger.Unavailable, c.r.key, err)
}

var processStart = time.Now()

// monotonic returns the time since processStart. Steps of the system clock do not change it.
func monotonic() time.Duration { return time.Since(processStart) }

// order returns the hosts in the order to try, each time from the next host on. Hosts that could not be reached in the
// last restPeriod come last.
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

// attempt sends the request to one host. It logs in first if there is no cookie, and once again if the host rejects the
// cookie.
func (p *Provider) attempt(ctx context.Context, h *host, r request) (_ []byte, f *failure) {
	ctx, span := trace.StartClient(ctx, r.op)
	defer func() { h.endSpan(span, f) }()
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

// endSpan ends the step of an attempt.
func (h *host) endSpan(span *trace.Span, f *failure) {
	if span == nil {
		return
	}
	if u, err := url.Parse(h.base); err == nil {
		span.Word(trace.ServerAddress, u.Hostname())
		if port, err := strconv.Atoi(u.Port()); err == nil {
			span.Number(trace.ServerPort, port)
		}
	}
	err := f.orNil()
	span.EndWith(&err)
}

// send sends the request. stale is true if the host rejected the cookie, and so did not execute the request.
func (p *Provider) send(ctx context.Context, h *host, r request, cookie string) (body []byte, f *failure, stale bool) {
	connected := false // if false, the request cannot have reached the host
	ctx = httptrace.WithClientTrace(
		ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }})
	req, err := r.http(ctx, h, cookie)
	if err != nil {
		return nil, &failure{err: claviger.E(r.op, claviger.Internal, r.key, err), untouched: true, final: true}, false
	}
	trace.Inject(ctx, req.Header)
	resp, err := p.client.Do(req)
	if f := selfFailure(h, r, err); f != nil {
		return nil, f, false
	}
	if err != nil {
		return nil, &failure{err: explain(h, err), untouched: !connected}, false
	}
	defer drain(resp)
	trace.Of(ctx).Number(trace.Status, resp.StatusCode)
	if resp.StatusCode != r.status {
		return nil, p.refused(ctx, h, r, resp), staleCookie(resp)
	}
	if r.noBody {
		return nil, nil, false
	}
	body, f = p.readBody(ctx, h, r, resp)
	return body, f, false
}

// http makes the HTTP request for a host.
func (r *request) http(ctx context.Context, h *host, cookie string) (*http.Request, error) {
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
	req, err := http.NewRequestWithContext(ctx, r.method, target, in)
	if err != nil {
		return nil, err
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json, */*;q=0.2")
	req.Header.Set("Cookie", authCookie+`="`+cookie+`"`)
	return req, nil
}

// readBody reads the body of a successful answer. The request has been executed, so another host cannot mend an invalid
// answer.
func (p *Provider) readBody(ctx context.Context, h *host, r request, resp *http.Response) ([]byte, *failure) {
	invalid := func(format string, args ...any) *failure {
		return &failure{err: claviger.Errorf(r.op, claviger.Internal, r.key, "KMS %s: "+format,
			append([]any{h.base}, args...)...), final: true}
	}
	if ct := resp.Header.Get("Content-Type"); resp.ContentLength != 0 &&
		!strings.HasPrefix(strings.ToLower(ct), "application/json") {
		return nil, invalid("the answer is %q, not application/json: does the URI have the path of the KMS?", ct)
	}
	limit := max(r.limit, smallBody)
	body, err := p.readAnswer(ctx, resp, limit)
	switch {
	case err == nil && len(body) == 0:
		return nil, invalid("answered %s with an empty body", resp.Status)
	case errors.Is(err, errTooLong):
		return nil, invalid("the answer is longer than %d bytes, the limit for this request", limit)
	case err != nil:
		return nil, &failure{err: fmt.Errorf("reading the answer: %w", err)}
	}
	return body, nil
}

// staleCookie reports whether the answer means that the client must log in again. As for Hadoop's clients, that is 401,
// and 403 with one of two reason phrases.
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

// readAll is io.ReadAll with a limit. Beyond the limit it returns errTooLong, and limit+1 bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return b, errTooLong
	}
	return b, err
}

// entries returns the limit for an answer with n entries of a key. JSON may need six bytes for one byte of a name.
func entries(n int, key string) int64 {
	return min(maxBody, smallBody+int64(n)*int64(entryBody+6*len(key)))
}

// readAnswer reads an answer of at most limit bytes. It reads at most maxLarge long answers at the same time.
func (p *Provider) readAnswer(ctx context.Context, resp *http.Response, limit int64) ([]byte, error) {
	body, err := readAll(resp.Body, smallBody)
	if !errors.Is(err, errTooLong) || limit <= smallBody {
		return body, err
	}
	select {
	case p.large <- struct{}{}:
		defer func() { <-p.large }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	rest, err := readAll(resp.Body, limit-int64(len(body)))
	if err != nil {
		return nil, err
	}
	whole := append(body, rest...)
	clear(rest) // rest may contain keys, and so may the old array of body
	if len(body) > 0 && &whole[0] != &body[0] {
		clear(body)
	}
	return whole, nil
}

// drain reads the rest of a short answer, so that the connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	_ = resp.Body.Close()
}

// explain adds to a transport's error how to correct the URI or the truststore.
func explain(h *host, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // leave out the URL: it may be long, and names users
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

// truststoreName names the file with the authorities that this client trusts.
const truststoreName = "the truststore (ssl.client.truststore.location of ssl-client.xml, or claviger.ssl.truststore)"

// refusedScheme returns an error if the answer is the 400 with which a TLS server answers a request without TLS. resp
// and text are the answer and its body.
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
