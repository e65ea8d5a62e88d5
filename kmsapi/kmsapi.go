// Package kmsapi serves the REST API of Hadoop's KMS: the fifteen operations that
// Hadoop's own clients call. It parses a request, lets package authn authenticate
// the caller, and calls the keyring. The answers are those of Hadoop's KMS;
// docs/hadoop-divergences lists each difference with its reason.
//
// The contract is org.apache.hadoop.crypto.key.kms.server.KMS in Hadoop 3.4, on
// Jetty 9.4 and Jersey 1.
package kmsapi

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/keyring"
	"claviger/trace"
)

// Limits bounds one request.
type Limits struct {
	MaxKeys  int   // EDEKs of one generate
	MaxBatch int   // EDEKs of one batch re-encryption
	MaxBody  int64 // bytes of a batch's body; smallBody limits other bodies
	// MaxMemory is the memory of all large requests together, in bytes; 0 means
	// four times MaxBody.
	MaxMemory int64
	MaxNames  int // keys of one request for metadata; 0 means defaultNames
	// MaxMaterial is the longest material of an EDEK, in bytes; 0 means
	// defaultMaterial.
	MaxMaterial int
	// MaxNewVersions is how many key versions a user may make in an hour, by
	// creation and roll; 0 means no limit.
	MaxNewVersions int
	// MaxParameters is the number of parameters in a query; 0 means
	// defaultParameters.
	MaxParameters int
	Slow          Slow // the zero value means DefaultSlow
}

// Config holds the parts and settings of the REST API.
type Config struct {
	Ring  *keyring.Ring
	Auth  *authn.Authenticator
	Audit audit.Logger
	Log   *slog.Logger
	// KeyAuthorization is hadoop.kms.key.authorization.enable. Without it, Hadoop
	// reports a missing version in another way.
	KeyAuthorization bool
	Limits           Limits
	Admission        Admission // the zero value means DefaultAdmission
	Operations       Operations
	// NotReady returns the reason why no request can be served yet, or "". As
	// long as there is a reason, each answer makes the client try another node.
	NotReady func() string
	// StoreName names this server's metastore. A request from a server with the
	// same StoreName is refused: see fromSameStore. "" refuses none.
	StoreName string
	// Observe, if not nil, is called for each request with its operation
	// ("decrypt_eek"; "unknown" if none), its status, its number of EDEKs, and its
	// duration.
	Observe func(op string, status, edeks int, took time.Duration)
	// Waited, if not nil, is called for each request that had to wait for a slot
	// of its class (see Classes). granted is false if it got no slot in time.
	Waited func(class string, took time.Duration, granted bool)
	// Limiters, if not nil, is set by New, to report how full the classes are.
	Limiters *Limiters
	// Refused, if not nil, is called for each request that was refused before its
	// operation, with one of Reasons.
	Refused func(reason string)
	// Tracer traces requests; nil traces none.
	Tracer *trace.Tracer
}

// smallBody is the limit of every body except a batch's, in bytes. A creation
// with all its attributes takes a few kilobytes.
const smallBody = 1 << 20

type api struct {
	Config
	instance    string // every request id starts with it
	gauges      *gauges
	warned      *warnings
	lines       lines // log lines about requests that could not be served
	newVersions quota
	large       *limiter // memory of large requests, in bytes
	lists       lists
	dump        stackDump
	limiters    [classes]*limiter
	requests    atomic.Uint64
	dates       httpDates
	sweeper     sweeper
}

// API is the REST API of a KMS: the handler of all paths below /kms, and of the
// pages of Hadoop's web server.
type API struct{ *api }

// New returns the REST API.
func New(cfg Config) (*API, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.defaults()
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	a := &api{
		Config:      cfg,
		instance:    hex.EncodeToString(id),
		gauges:      newGauges(cfg.Operations, time.Now()),
		warned:      &warnings{now: time.Now, since: make(map[string]*warned)},
		newVersions: quota{most: cfg.Limits.MaxNewVersions},
		lists:       newLists(),
		large:       newLargeRequests(cfg.Limits, cfg.Admission, cfg.Log),
		limiters:    newLimiters(cfg.Admission, cfg.Waited, cfg.Log),
	}
	if cfg.Limiters != nil {
		cfg.Limiters.all = append(a.limiters[noClass+1:len(a.limiters):len(a.limiters)], a.large)
	}
	return &API{a}, nil
}

// check refuses a Config that lacks a part or a limit. A zero Admission is not an
// error, because defaults sets it. The same is true of a zero Reads.
func (cfg *Config) check() error {
	if cfg.Ring == nil || cfg.Auth == nil || cfg.Audit == nil {
		return errors.New("kmsapi.New: Ring, Auth and Audit must be given")
	}
	if cfg.Limits.MaxKeys <= 0 || cfg.Limits.MaxBatch <= 0 || cfg.Limits.MaxBody <= 0 {
		return errors.New("kmsapi.New: all Limits must be positive")
	}
	if a := cfg.Admission; a != (Admission{}) && (a.Decrypts <= 0 || a.Generates <= 0 || a.Batches <= 0 ||
		a.Management <= 0 || a.Reads < 0 || a.Wait <= 0) {
		return errors.New("kmsapi.New: all of Admission must be positive")
	}
	return nil
}

func (cfg *Config) defaults() {
	cfg.Limits.defaults()
	if cfg.Admission == (Admission{}) {
		cfg.Admission = DefaultAdmission
	}
	if cfg.Admission.Reads == 0 {
		cfg.Admission.Reads = DefaultAdmission.Reads
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
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
}

// call is the state of one request.
type call struct {
	*api
	w      http.ResponseWriter
	r      *http.Request
	began  time.Time
	caller claviger.Caller
	known  bool // another face has authenticated the caller, see API.As
	route  *route
	name   string // decoded key or version name of the path
	// version is name parsed, if the path names a key version.
	version claviger.VersionRef
	query   url.Values // parsed at the first call of values
	body    []byte
	// used is the memory that the request uses, in bytes; reserved is its part of
	// the allowance for large requests.
	used, reserved int64
	estimate       int64    // part of used: the expected memory of a list
	limiter        *limiter // where the request holds slots; nil: it holds none
	slots          int64    // its weight in limiter
	released       *limiter // where it released its slots while it waits for a source
	edeks          int
	opName         string // replaces the route's own name, if not ""
	denied         bool   // by the operation-level rules
	status         int
	span           *trace.Span // nil if requests are not traced
}

// op returns the operation's name in metrics.
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
	a.run(&call{api: a, w: w, r: r, began: time.Now()})
}

// run serves the request of a new call.
func (a *api) run(c *call) {
	c.caller.RequestID = a.requestID()
	c.span = a.Tracer.Request(c.r.Header)
	a.gauges.web.begin()
	defer func() { a.gauges.web.end(c.status, time.Since(c.began)) }() // done may panic
	defer c.done()
	c.serve()
}

func (a *api) requestID() string {
	const digits = 32 // room for the instance, '-' and a number
	b := append(make([]byte, 0, digits), a.instance...)
	return string(strconv.AppendUint(append(b, '-'), a.requests.Add(1), 10))
}

// done counts and logs the request, and frees its memory and its slots. It turns
// a panic into an answer.
func (c *call) done() {
	a, r := c.api, c.r
	if p := recover(); p != nil {
		a.Log.Error("a request failed because of a fault in this program",
			"id", c.caller.RequestID, "op", c.op(), "panic", p, "stack", string(debug.Stack()))
		if c.status != 0 {
			// Close the connection. Otherwise the client may accept half an answer as complete.
			panic(http.ErrAbortHandler)
		}
		c.fail(claviger.Errorf("kmsapi", claviger.Internal, "", "panic"))
	}
	recycle(c.body) // it may hold key material
	c.releaseMemory()
	c.releaseSlots()
	now := time.Now()
	took := now.Sub(c.began)
	a.gauges.count(c.op(), c.status, c.denied, now)
	a.gauges.ranger.count(c, took)
	a.Observe(c.op(), c.status, c.edeks, took)
	c.endSpan()
	if a.Log.Enabled(r.Context(), slog.LevelDebug) {
		a.Log.Debug("request",
			"id", c.caller.RequestID, "user", c.caller.Name, "remote", c.caller.RemoteAddr,
			"method", r.Method, "path", r.URL.EscapedPath(), "status", c.status, "took", took)
	}
}

// endSpan ends the request's span. Only a fault of this node or of a part behind it counts as a failure.
func (c *call) endSpan() {
	if c.span == nil {
		return
	}
	c.span.Rename(c.op())
	c.span.Word(trace.RequestID, c.caller.RequestID)
	c.span.Number(trace.Status, c.status)
	if c.edeks > 0 {
		c.span.Number(trace.EDEKs, c.edeks)
	}
	if c.status >= http.StatusInternalServerError {
		c.span.Fail(strconv.Itoa(c.status))
	}
	c.span.End()
}

// param returns a query parameter's first value. It makes no map, since most requests need one parameter only.
func (c *call) param(name string) (string, bool) { return firstValue(c.r.URL.RawQuery, name) }

// values returns all values of a query parameter.
func (c *call) values(name string) []string {
	if c.query == nil {
		c.query = c.r.URL.Query()
	}
	return c.query[name]
}

// firstValue returns url.ParseQuery's first value of a name. Like ParseQuery, it leaves out a parameter with ';' and
// one whose escapes are broken.
func firstValue(query, name string) (string, bool) {
	for query != "" {
		var part string
		part, query, _ = strings.Cut(query, "&")
		if part == "" || strings.Contains(part, ";") {
			continue
		}
		key, value, _ := strings.Cut(part, "=")
		if key, err := url.QueryUnescape(key); err != nil || key != name {
			continue
		}
		if value, err := url.QueryUnescape(value); err == nil {
			return value, true
		}
	}
	return "", false
}

// baseURL returns scheme and host as the client sent them.
func (c *call) baseURL() string {
	scheme := "http://"
	if c.r.TLS != nil {
		scheme = "https://"
	}
	return scheme + c.r.Host
}

// rawPath returns the path as the client sent it, undecoded.
func rawPath(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if path != "" && path[0] == '/' {
		return path
	}
	// GET http://host/path, as clients send it to a proxy.
	if _, rest, ok := strings.Cut(path, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			return rest[i:]
		}
		return "/"
	}
	return path
}
