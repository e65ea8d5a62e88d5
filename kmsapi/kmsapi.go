// Package kmsapi is the REST face of Hadoop's KMS: its fifteen operations, as
// stock clients call them. It finds out what is asked, has package authn find
// out who asks, hands both to the keyring, and writes what Hadoop's KMS would
// have written. Where it does not, docs/hadoop-divergences.md says so and why.
//
// The contract is that of org.apache.hadoop.crypto.key.kms.server.KMS in Hadoop
// 3.4, on Jetty 9.4 and Jersey 1.
package kmsapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/keyring"
	"claviger/kmswire"
	"claviger/provider"
)

// Limits bound what one request may ask for.
type Limits struct {
	MaxKeys  int   // EDEKs of one generate
	MaxBatch int   // EDEKs of one batch re-encryption
	MaxBody  int64 // bytes of a batch's body; other bodies end at 1 MiB
	// MaxMemory is what all large requests may take together; 0: four times MaxBody.
	MaxMemory int64
	MaxNames  int // keys of one request for metadata; 0: defaultNames
	// MaxMaterial of one EDEK, in bytes; 0: defaultMaterial.
	MaxMaterial int
	// MaxNewVersions of one user in an hour, by creation and roll; 0: no limit.
	MaxNewVersions int
	// MaxParameters of one request's query; 0: defaultParameters.
	MaxParameters int
	Slow          Slow // the zero value: DefaultSlow
}

// Config is what the face is made of.
type Config struct {
	Ring  *keyring.Ring
	Auth  *authn.Authenticator
	Audit audit.Logger
	Log   *slog.Logger
	// KeyAuthorization is hadoop.kms.key.authorization.enable. Without it, Hadoop
	// reports a missing version in another way.
	KeyAuthorization bool
	Limits           Limits
	Admission        Admission // the zero value: DefaultAdmission
	Operations       Operations
	// NotReady returns why no request can be served yet, or "". Until then
	// every request is answered in the way that makes a client try another node.
	NotReady func() string
	// StoreName names this server's metastore; a request that comes from a server with the
	// same one, to which this is a source, is refused. "" refuses none.
	StoreName string
	// Observe, if not nil, is told of each request: its operation ("decrypt_eek";
	// "unknown" for none), the status, how many EDEKs it was about, and its time.
	Observe func(op string, status, edeks int, took time.Duration)
	// Waited, if not nil, is told of each request that had to wait for its turn among
	// its class ("decrypt", "generate", "re-encryption", "key management"), and whether
	// that came.
	Waited func(class string, took time.Duration, came bool)
	// Lanes, if not nil, is filled in.
	Lanes *Lanes
	// Refused, if not nil, is told of each request that was refused before its
	// operation, and for what.
	Refused func(reason string)
}

// smallBody caps every body but a batch's. A creation with all its attributes
// is a few kilobytes.
const smallBody = 1 << 20

type api struct {
	Config
	instance    string // begins every request id
	gauges      *gauges
	warned      *warnings
	lines       lines // of requests that could not be served
	newVersions quota
	large       *lane // of memory, in bytes
	lists       lists
	dump        stackDump
	lanes       [classes]*lane
	requests    atomic.Uint64
}

// New returns the handler of all paths below /kms, and of those that Hadoop's
// server answers with its own pages.
func New(cfg Config) (http.Handler, error) {
	if cfg.Ring == nil || cfg.Auth == nil || cfg.Audit == nil {
		return nil, errors.New("kmsapi.New: Ring, Auth and Audit must be given")
	}
	if cfg.Limits.MaxKeys <= 0 || cfg.Limits.MaxBatch <= 0 || cfg.Limits.MaxBody <= 0 {
		return nil, errors.New("kmsapi.New: all Limits must be positive")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.defaults()
	if cfg.Admission == (Admission{}) {
		cfg.Admission = DefaultAdmission
	}
	if cfg.Admission.Reads == 0 {
		cfg.Admission.Reads = DefaultAdmission.Reads
	}
	if a := cfg.Admission; a.Decrypts <= 0 || a.Generates <= 0 || a.Batches <= 0 || a.Management <= 0 || a.Reads <= 0 || a.Wait <= 0 {
		return nil, errors.New("kmsapi.New: all of Admission must be positive")
	}
	if cfg.NotReady == nil {
		cfg.NotReady = func() string { return "" }
	}
	if cfg.Waited == nil {
		cfg.Waited = func(string, time.Duration, bool) {}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(string) {}
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, int, int, time.Duration) {}
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	a := &api{Config: cfg, instance: hex.EncodeToString(id), gauges: newGauges(cfg.Operations, time.Now()), warned: &warnings{now: time.Now, since: make(map[string]*warned)},
		newVersions: quota{most: cfg.Limits.MaxNewVersions},
		lists:       newLists(),
		large:       newLargeRequests(cfg.Limits, cfg.Admission, cfg.Log), lanes: newLanes(cfg.Admission, cfg.Waited, cfg.Log)}
	if cfg.Lanes != nil {
		cfg.Lanes.all = append(a.lanes[noClass+1:len(a.lanes):len(a.lanes)], a.large)
	}
	return a, nil
}

// call is one request on its way through the face.
type call struct {
	*api
	w      http.ResponseWriter
	r      *http.Request
	began  time.Time
	caller claviger.Caller
	route  *route
	name   string // decoded key or version name of the path
	// version is name parsed, if the path names a key version.
	version claviger.VersionRef
	query   url.Values // parsed when first asked for
	body    []byte
	// taken is the memory that it takes, reserved what it holds of the allowance for
	// large requests.
	taken, reserved int64
	guess           int64 // of taken: what a list was expected to take
	turn            *lane // in which it has a turn of the weight turns
	turns           int64
	away            *lane // in which it had a turn that it gave up for a while
	edeks           int
	opName          string // if not the route's own
	denied          bool   // by the operation-level rules
	status          int
}

// op is the name of the operation in metrics.
func (c *call) op() string {
	switch {
	case c.opName != "":
		return c.opName
	case c.route == nil:
		return "unknown"
	}
	return c.route.op
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{api: a, w: w, r: r, began: time.Now()}
	c.caller.RequestID = a.instance + "-" + strconv.FormatUint(a.requests.Add(1), 10)
	a.gauges.web.begin()
	defer func() { a.gauges.web.end(c.status, time.Since(c.began)) }() // done may panic
	defer c.done()
	c.serve()
}

// done counts and logs what was served, and answers for a fault of ours.
func (c *call) done() {
	a, r := c.api, c.r
	if p := recover(); p != nil {
		a.Log.Error("a request met a fault in this program", "id", c.caller.RequestID, "op", c.op(), "panic", p, "stack", string(debug.Stack()))
		if c.status != 0 {
			panic(http.ErrAbortHandler) // cut off, or the client takes half an answer for a whole one
		}
		c.fail(claviger.Errorf("kmsapi", claviger.Internal, "", "panic"))
	}
	recycle(c.body) // it may hold key material
	c.release()
	c.leave()
	now := time.Now()
	took := now.Sub(c.began)
	a.gauges.count(c.op(), c.status, c.denied, now)
	a.gauges.ranger.count(c, took)
	a.Observe(c.op(), c.status, c.edeks, took)
	if a.Log.Enabled(r.Context(), slog.LevelDebug) {
		a.Log.Debug("request", "id", c.caller.RequestID, "user", c.caller.Name, "remote", c.caller.RemoteAddr, "method", r.Method, "path", r.URL.EscapedPath(), "status", c.status, "took", took)
	}
}

// fromItself refuses a request of a server that has the same metastore, also before requests
// are served: that server has named this one, or itself, as the source of its keys, and would
// find each of them at "another" KMS, too.
func (c *call) fromItself() bool {
	if c.StoreName == "" || c.r.Header.Get(kmswire.StoreHeader) != c.StoreName {
		return false
	}
	c.w.Header().Set(kmswire.SameStoreHeader, "true")
	c.throw(http.StatusBadRequest, kmswire.Throw(kmswire.IOException, "this server is no source of keys for a node of its own metastore"))
	return true
}

// serve runs the stages in Hadoop's order: who, where, may the method, the body,
// the operation.
func (c *call) serve() {
	req := authn.RequestOf(c.r)
	c.caller.RemoteAddr = req.RemoteIP.String()
	path := rawPath(c.r)
	if strings.Contains(path, "%00") || c.tooManyParameters() { // as Jetty, before any filter
		c.badMessage()
		return
	}
	if c.fromItself() {
		return
	}
	if why := c.NotReady(); why != "" {
		c.throw(http.StatusServiceUnavailable, kmswire.Throw(kmswire.StandbyException, why))
		return
	}
	if res, ok := c.Auth.Delegation(c.r.Context(), c.r.Method, req); ok {
		c.opName = "delegation_token"
		c.gauges.tokens.count(res, time.Since(c.began))
		c.delegation(res)
		return
	}
	who := c.Auth.Authenticate(c.r.Context(), req)
	c.authHeaders(who.SetCookie, who.ServerToken)
	if who.Refusal != nil {
		c.refuse(who.Refusal)
		return
	}
	if who.Principal != nil {
		c.caller.Principal = *who.Principal
	}

	outside := path != base && !strings.HasPrefix(path, base+"/")
	op, servlet := c.servletOf(path)
	if outside && servlet == nil && c.r.Method == http.MethodOptions {
		// "*", and any path that the KMS itself does not serve: Jetty's default
		// servlet does not look whether anything is there. Clients of an odd provider
		// list shake hands at such paths.
		c.w.Header().Set("Allow", "GET,HEAD,POST,OPTIONS")
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
		return
	}
	if servlet != nil {
		c.opName = op
		if err := c.admit(c.r.Context(), servlets, 1); err != nil {
			c.fail(err)
			return
		}
		servlet(c)
		return
	}
	if outside {
		c.page(http.StatusNotFound, "Not Found")
		return
	}
	pattern, rawName, ok := match(withoutMatrix(path))
	if !ok {
		if path == base {
			path += "/"
		}
		c.fail(kmswire.Throw(kmswire.NotFoundException, "null for uri: "+c.baseURL()+path))
		return
	}
	if c.r.Method == http.MethodOptions {
		c.w.Header().Set("Allow", allowed(pattern))
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
		return
	}
	if who.Anonymous {
		c.fail(&kmswire.Exception{Class: kmswire.NullPointer, Message: `Cannot invoke "org.apache.hadoop.security.UserGroupInformation.doAs(java.security.PrivilegedExceptionAction)" because "user" is null`})
		return
	}
	if c.route = find(pattern, c.r.Method); c.route == nil {
		c.w.Header().Set("Allow", allowed(pattern))
		c.throw(http.StatusMethodNotAllowed, &kmswire.Exception{Class: kmswire.WebApplicationException, NoMessage: true})
		return
	}
	if !c.acceptable() {
		c.fail(&kmswire.Exception{Class: kmswire.WebApplicationException, NoMessage: true})
		return
	}
	if c.name, ok = decodeName(rawName); !ok {
		c.badMessage()
		return
	}
	if c.name == "" && strings.Contains(pattern, "{name}") {
		param := "name"
		if strings.HasPrefix(pattern, "keyversion/") {
			param = "versionName"
		}
		c.fail(kmswire.Throw(kmswire.IllegalArgument, "Parameter '"+param+"' cannot be empty"))
		return
	}
	most := claviger.MaxName
	if strings.HasPrefix(pattern, "keyversion/") {
		most = claviger.MaxVersionName
		c.version = claviger.ParseVersion(c.name)
	}
	if len(c.name) > most {
		c.fail(kmswire.Throw(kmswire.IllegalArgument, "the name in the path is longer than "+strconv.Itoa(most)+" bytes"))
		return
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), c.route.deadline)
	defer cancel()
	ctx = provider.WithCaller(keyring.WithSlot(ctx, c), c.caller.Short)
	if c.route.body == batchBody {
		// Before a long body is waited for, and kept.
		if err := c.Ring.MayReencryptBatch(ctx, c.caller, c.name); err != nil {
			if n := c.r.ContentLength; n < 0 || n > freeMemory {
				c.w.Header().Set("Connection", "close") // else net/http reads the body before it answers
			}
			c.reading()(0)
			c.fail(err)
			return
		}
	}
	if c.route.body != noBody {
		if err := c.readBody(ctx); err != nil {
			c.fail(err)
			return
		}
	}
	if class := c.route.class; class == decrypts || class == management || class == reads {
		if err := c.admit(ctx, class, c.weight()); err != nil {
			c.fail(err)
			return
		}
	}
	if err := c.route.handle(ctx, c); err != nil {
		c.fail(err)
	}
}

// authHeaders sets what authentication has for the client, whatever the answer.
func (c *call) authHeaders(cookie, serverToken string) {
	if cookie != "" {
		c.w.Header().Set("Set-Cookie", cookie)
	}
	if serverToken != "" {
		c.w.Header()[wwwAuthenticate] = []string{serverToken}
	}
}

// delegation answers an operation on delegation tokens, which may be asked for
// at any path.
func (c *call) delegation(res authn.DelegationResult) {
	c.caller.Principal = res.Caller
	c.authHeaders(res.SetCookie, res.ServerToken)
	if res.Refusal == nil {
		c.Audit.Log(c.r.Context(), audit.Event{Status: audit.OK, Op: audit.Op(res.Op), Caller: c.caller, Token: res.Sequence, Message: res.Description})
	}
	switch {
	case res.Refusal != nil && (res.Refusal.Kind == authn.BadDelegation || res.Refusal.Kind == authn.TooManyTokens):
		c.report(res.Refusal)
		// Hadoop says this in the reason phrase, of which its client makes an
		// IOException; an AuthenticationException it would not expect here.
		c.throw(http.StatusForbidden, kmswire.Throw(kmswire.IOException, res.Refusal.Reason))
	case res.Refusal != nil:
		c.refuse(res.Refusal)
	case res.Token != "":
		c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendDelegationToken(b, res.Token) })
	case !res.Expires.IsZero():
		c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendLong(b, res.Expires.UnixMilli()) })
	default:
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	}
}

// acceptable tells whether the client takes JSON, where JSON would be answered.
func (c *call) acceptable() bool {
	accept := c.r.Header.Values("Accept")
	if c.route == nil || !c.route.json || len(accept) == 0 {
		return true
	}
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		media, _, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(media)) {
		case "application/json", "application/*", "*/*", "*":
			return true
		}
	}
	return false
}

// param returns a query parameter's first value.
func (c *call) param(name string) (string, bool) {
	if c.query == nil {
		c.query = c.r.URL.Query()
	}
	v, ok := c.query[name]
	if !ok {
		return "", false
	}
	return v[0], true
}

// baseURL is scheme and host as the client named them.
func (c *call) baseURL() string {
	scheme := "http://"
	if c.r.TLS != nil {
		scheme = "https://"
	}
	return scheme + c.r.Host
}

// buffers holds bodies while they are read, and answers while they are built, of up to
// freeMemory; longBuffers longer ones, which are reserved where they are used.
// Either may hold keys, so they are wiped before they are used again.
var buffers, longBuffers = sync.Pool{New: newBuffer}, sync.Pool{New: newBuffer}

func newBuffer() any {
	const most = 4 << 10 // more than most answers take
	b := make([]byte, 0, most)
	return &b
}

// keepBuffer is the largest buffer that goes back to the pool.
const keepBuffer = 256 << 10

// json writes an answer that build appends. A change has been made when it is answered,
// so its answer, which is short, waits for no memory.
func (c *call) json(status int, build func([]byte) []byte) {
	p, _ := buffers.Get().(*[]byte)
	b := build((*p)[:0])
	if status == http.StatusOK && c.route != nil && c.route.class != management {
		if err := c.reserve(c.r.Context(), int64(cap(b))); err != nil {
			recycle(b)
			c.fail(err)
			return
		}
	}
	c.answer(status, "application/json", b)
	recycle(b)
}

// recycle wipes a buffer and gives it back.
func recycle(b []byte) {
	clear(b)
	switch {
	case b == nil || cap(b) > keepBuffer:
	case cap(b) > freeMemory:
		longBuffers.Put(&b)
	default:
		buffers.Put(&b)
	}
}

// answer writes a whole response. A HEAD gets the headers of an empty one.
func (c *call) answer(status int, contentType string, body []byte) {
	if c.r.Method == http.MethodHead {
		body = nil
	}
	if status == http.StatusOK && c.route == nil && len(body) > freeMemory { // of a servlet
		if err := c.reserve(c.r.Context(), int64(len(body))); err != nil {
			c.fail(err)
			return
		}
	}
	c.typed(contentType)
	c.send(status, body)
}

// typed sets the headers of an answer that is no page.
func (c *call) typed(contentType string) {
	h := c.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("Expires", c.began.UTC().Format(http.TimeFormat))
}

// defaultHeaders are those that Hadoop sends with every answer, spelt as there.
var defaultHeaders = [...][2]string{{"X-Content-Type-Options", "nosniff"}, {"X-XSS-Protection", "1; mode=block"}}

// send writes a response with the headers that all have.
func (c *call) send(status int, body []byte) {
	c.head(status, int64(len(body)))
	if c.r.Method == http.MethodHead {
		return
	}
	c.write(body)
}

// head writes the head of a response with a body of so many bytes.
func (c *call) head(status int, length int64) {
	c.status = status
	h := c.w.Header()
	for _, d := range defaultHeaders {
		if len(h[d[0]]) == 0 { // hadoop.http.header.* may say otherwise
			h[d[0]] = []string{d[1]}
		}
	}
	h.Set("Pragma", "no-cache")
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	c.w.WriteHeader(status)
	if c.r.Method == http.MethodHead {
		return
	}
	c.gauges.web.bytes.Add(length)
	c.leave() // the work is done: who reads slowly keeps no turn
	c.writing(length)
}

// write writes a body, or a part of one; false where the client has gone.
func (c *call) write(body []byte) bool {
	if _, err := c.w.Write(body); err != nil && len(body) > 0 {
		c.Log.Debug("the client went away before its answer", "id", c.caller.RequestID, "err", err)
		return false
	}
	return true
}

// rawPath is the path as the client wrote it, undecoded.
func rawPath(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if path != "" && path[0] == '/' {
		return path
	}
	// GET http://host/path, as to a proxy.
	if _, rest, ok := strings.Cut(path, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			return rest[i:]
		}
		return "/"
	}
	return path
}
