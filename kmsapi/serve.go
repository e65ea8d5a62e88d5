package kmsapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/keyring"
	"claviger/kmswire"
	"claviger/provider"
)

// serve runs the stages in Hadoop's order: authentication, path, method, body,
// operation. A stage returns false if it has answered the request itself.
func (c *call) serve() {
	req := authn.RequestOf(c.r)
	c.caller.RemoteAddr = req.RemoteIP.String()
	path := rawPath(c.r)
	if !c.mayStart(path) {
		return
	}
	anonymous, ok := c.authenticate(req)
	if !ok || !c.belowKMS(path) {
		return
	}
	pattern, rawName, ok := c.resource(path)
	if !ok || !c.findRoute(pattern, anonymous) || !c.readName(pattern, rawName) {
		return
	}
	c.runRoute()
}

// authenticate sets the caller. ok is false if it has answered the request itself: it
// was refused, or was an operation on delegation tokens.
func (c *call) authenticate(req authn.Request) (anonymous, ok bool) {
	if c.known {
		return false, true
	}
	login := c.span.Step("authentication")
	if res, ok := c.Auth.Delegation(c.r.Context(), c.r.Method, req); ok {
		login.End()
		c.opName = "delegation_token"
		c.gauges.tokens.count(res, time.Since(c.began))
		c.delegation(res)
		return false, false
	}
	res := c.Auth.Authenticate(c.r.Context(), req)
	if res.Refusal != nil {
		login.Fail("refused")
	}
	login.End()
	c.authHeaders(res.SetCookie, res.ServerToken)
	if res.Refusal != nil {
		c.refuse(res.Refusal)
		return false, false
	}
	if res.Principal != nil {
		c.caller.Principal = *res.Principal
	}
	return res.Anonymous, true
}

// mayStart makes the checks that come before authentication.
func (c *call) mayStart(path string) bool {
	if strings.Contains(path, "%00") || c.tooManyParameters() { // Jetty refuses such a request before any filter
		c.badMessage()
		return false
	}
	if c.fromSameStore() {
		return false
	}
	if why := c.NotReady(); why != "" {
		c.throw(http.StatusServiceUnavailable, kmswire.Throw(kmswire.StandbyException, why))
		return false
	}
	return true
}

// fromSameStore refuses a request from a server that uses the same metastore. An
// administrator has configured that server with this one, or with itself, as a
// source. It would then find each of its own keys in "another" KMS. So the request
// is refused even if this server is not ready.
func (c *call) fromSameStore() bool {
	if c.StoreName == "" || c.r.Header.Get(kmswire.StoreHeader) != c.StoreName {
		return false
	}
	c.w.Header().Set(kmswire.SameStoreHeader, "true")
	c.throw(http.StatusBadRequest, kmswire.Throw(kmswire.IOException,
		"this server cannot be a source of keys for a node of its own metastore"))
	return true
}

// belowKMS serves the pages of Hadoop's web server. It returns true for a path
// that belongs to the KMS.
func (c *call) belowKMS(path string) bool {
	outside := path != base && !strings.HasPrefix(path, base+"/")
	op, servlet := c.servletOf(path)
	switch {
	case servlet != nil:
		c.opName = op
		if err := c.admit(c.r.Context(), servlets, 1); err != nil {
			c.fail(err)
			return false
		}
		servlet(c)
	case outside && c.r.Method == http.MethodOptions:
		// Jetty's default servlet answers OPTIONS for "*" and for any path outside
		// the KMS, whether the path exists or not. Clients with an unusual provider URI
		// authenticate at such paths.
		c.w.Header().Set("Allow", "GET,HEAD,POST,OPTIONS")
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	case outside:
		c.page(http.StatusNotFound, "Not Found")
	default:
		return true
	}
	return false
}

// resource returns the pattern that a path below /kms matches, and the raw name
// in the path.
func (c *call) resource(path string) (pattern, rawName string, ok bool) {
	pattern, rawName, ok = match(withoutMatrix(path))
	if !ok {
		if path == base {
			path += "/"
		}
		c.fail(kmswire.Throw(kmswire.NotFoundException, "null for uri: "+c.baseURL()+path))
		return "", "", false
	}
	if c.r.Method == http.MethodOptions {
		c.w.Header().Set("Allow", allowed(pattern))
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
		return "", "", false
	}
	return pattern, rawName, true
}

// findRoute sets c.route. It refuses an anonymous caller, a method that the
// pattern does not have, and a client that does not accept JSON.
func (c *call) findRoute(pattern string, anonymous bool) bool {
	if anonymous {
		c.fail(&kmswire.Exception{Class: kmswire.NullPointer, Message: `Cannot invoke ` +
			`"org.apache.hadoop.security.UserGroupInformation.doAs(java.security.PrivilegedExceptionAction)" ` +
			`because "user" is null`})
		return false
	}
	if c.route = find(pattern, c.r.Method); c.route == nil {
		c.w.Header().Set("Allow", allowed(pattern))
		c.throw(http.StatusMethodNotAllowed,
			&kmswire.Exception{Class: kmswire.WebApplicationException, NoMessage: true})
		return false
	}
	if !c.acceptable() {
		c.fail(&kmswire.Exception{Class: kmswire.WebApplicationException, NoMessage: true})
		return false
	}
	return true
}

// readName sets c.name and c.version from the raw name of the path, and refuses a
// name that is empty or too long.
func (c *call) readName(pattern, rawName string) (ok bool) {
	if c.name, ok = decodeName(rawName); !ok {
		c.badMessage()
		return false
	}
	if len(c.r.RequestURI) > 4*claviger.MaxVersionName {
		c.name = strings.Clone(c.name) // it is remembered in several places, and must not keep a long request there
	}
	param, most := "name", claviger.MaxName
	if strings.HasPrefix(pattern, "keyversion/") {
		param, most = "versionName", claviger.MaxVersionName
		c.version = claviger.ParseVersion(c.name)
	}
	if c.name == "" && strings.Contains(pattern, "{name}") {
		c.fail(kmswire.Throw(kmswire.IllegalArgument, "Parameter '"+param+"' cannot be empty"))
		return false
	}
	if len(c.name) > most {
		c.fail(kmswire.Throw(kmswire.IllegalArgument,
			"the name in the path is longer than "+strconv.Itoa(most)+" bytes"))
		return false
	}
	return true
}

// runRoute reads the body, waits for a request slot, and runs the operation.
func (c *call) runRoute() {
	ctx := &operationContext{
		Context:  provider.WithCaller(keyring.WithSlot(c.span.In(c.r.Context()), c), c.caller.Short),
		deadline: time.Now().Add(c.route.deadline), sweeper: &c.sweeper,
	}
	defer ctx.end(context.Canceled)
	if c.route.body == batchBody && !c.mayReencryptBatch(ctx) {
		return
	}
	if c.route.body != noBody {
		if err := c.readBody(ctx); err != nil {
			c.fail(err)
			return
		}
	}
	// The other classes wait in their handlers, which know the request's weight.
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

// mayReencryptBatch checks the caller's right before the long body of a batch is
// read into memory.
func (c *call) mayReencryptBatch(ctx context.Context) bool {
	err := c.Ring.MayReencryptBatch(ctx, c.caller, c.name)
	if err == nil {
		return true
	}
	if n := c.r.ContentLength; n < 0 || n > freeMemory {
		c.w.Header().Set("Connection", "close") // otherwise net/http reads the body before it answers
	}
	c.readDeadlines()(0)
	c.fail(err)
	return false
}

// authHeaders sets the headers that authentication adds to every answer.
func (c *call) authHeaders(cookie, serverToken string) {
	if cookie != "" {
		c.w.Header().Set("Set-Cookie", cookie)
	}
	if serverToken != "" {
		c.w.Header()[wwwAuthenticate] = []string{serverToken}
	}
}

// delegation answers an operation on delegation tokens. Clients may send one to
// any path.
func (c *call) delegation(res authn.DelegationResult) {
	c.caller.Principal = res.Caller
	c.authHeaders(res.SetCookie, res.ServerToken)
	if res.Refusal == nil {
		c.Audit.Log(c.r.Context(), audit.Event{Status: audit.OK, Op: audit.Op(res.Op), Caller: c.caller,
			Token: res.Sequence, Message: res.Description})
	}
	switch {
	case res.Refusal != nil && (res.Refusal.Kind == authn.BadDelegation || res.Refusal.Kind == authn.TooManyTokens):
		c.reportRefusal(res.Refusal)
		// Hadoop sends this text in the reason phrase. Its client makes an IOException
		// of it, and does not expect an AuthenticationException here.
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

// acceptable reports whether the client accepts the route's answer. It is false
// only if the answer is JSON and the Accept header excludes JSON.
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
