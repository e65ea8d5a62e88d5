package kmsapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/keyring"
	"claviger/kmswire"
)

// This file alone knows how what went wrong looks on the wire: Hadoop's
// KMSExceptionsProvider, and the texts of what its KMS throws.

// retryAfter is what a client is told, in seconds, where another node may serve
// it at once and this one will again.
const retryAfter = "5"

// statusOf is KMSExceptionsProvider's table from exception to status.
func statusOf(class string) int {
	switch class {
	case kmswire.AuthorizationException, kmswire.AccessControlException, kmswire.AuthenticationException:
		return http.StatusForbidden
	case kmswire.IllegalArgument, kmswire.InvalidParameter, kmswire.UnsupportedOperation:
		return http.StatusBadRequest
	case kmswire.NotFoundException: // Hadoop: 500
		return http.StatusNotFound
	case kmswire.StandbyException:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// fail answers an error of any stage.
func (c *call) fail(err error) {
	var large *tooLarge
	if errors.As(err, &large) {
		c.w.Header().Set("Connection", "close") // the rest of the body is not read
		c.throw(http.StatusRequestEntityTooLarge, kmswire.Throw(kmswire.IOException, large.Error()))
		return
	}
	e := c.exception(err)
	if claviger.Is(err, claviger.SourceRefused) || e.Class == kmswire.StandbyException {
		// Nobody else leaves a line: our own rules had said yes.
		c.audit(audit.Error, e.Message)
	}
	c.throw(statusOf(e.Class), e)
}

// throw writes a RemoteException, and the audit line that Hadoop writes with
// it: none where authentication or authorisation said no, for these have left
// their own, and none where nobody has looked at the request yet.
func (c *call) throw(status int, e *kmswire.Exception) {
	if status == http.StatusServiceUnavailable {
		c.w.Header().Set("Retry-After", retryAfter)
	}
	switch e.Class {
	case kmswire.AuthorizationException, kmswire.AuthenticationException, kmswire.StandbyException:
	default:
		message := e.Message
		if e.NoMessage {
			message = "null"
		}
		c.audit(audit.Error, message)
	}
	c.json(status, func(b []byte) []byte { return kmswire.AppendException(b, e) })
}

func (c *call) audit(status audit.Status, message string) {
	e := audit.Event{Status: status, Caller: c.caller, Message: message, Method: c.r.Method, URL: c.auditURL(), EDEKs: c.edeks}
	if c.route != nil {
		e.Op = audit.Op(strings.ToUpper(c.op()))
		if strings.HasPrefix(c.route.pattern, patternKeyVersion) {
			e.Version = c.name
			e.Key = c.version.Key
		} else {
			e.Key = c.name
		}
	}
	c.Audit.Log(c.r.Context(), e)
}

// exception maps a domain error to what Hadoop throws there.
func (c *call) exception(err error) *kmswire.Exception {
	var thrown *kmswire.Exception
	if errors.As(err, &thrown) {
		return thrown
	}
	var overload *busy
	if errors.As(err, &overload) {
		// Load-balancing clients go to another node, and to this one again when they
		// have asked all.
		return kmswire.Throw(kmswire.StandbyException, overload.Error())
	}
	var e *claviger.Error
	if !errors.As(err, &e) {
		e = claviger.E("kmsapi", claviger.Internal, "", err)
	}
	switch e.Kind {
	case claviger.Invalid, claviger.WrongKey:
		return kmswire.Throw(kmswire.IllegalArgument, text(e))
	case claviger.InvalidKeySize:
		return kmswire.Throw(kmswire.InvalidParameter, "Wrong keysize: must be equal to 128, 192 or 256")
	case claviger.MaterialLength:
		return kmswire.Throw(kmswire.IOException, text(e))
	case claviger.UnknownCipher:
		return &kmswire.Exception{Class: kmswire.UndeclaredThrowable, NoMessage: true}
	case claviger.KeyNotFound:
		return c.keyNotFound(e)
	case claviger.KeyExists:
		if c.op() == "undelete_key" {
			return kmswire.Throw(kmswire.IOException, "Key "+e.Key+" already exists in "+c.Ring.PrimaryURI()+"; the deleted key of that name can be undeleted when this one is deleted")
		}
		return kmswire.Throw(kmswire.IOException, "Key "+e.Key+" already exists in "+c.Ring.PrimaryURI())
	case claviger.VersionNotFound:
		if !c.KeyAuthorization {
			return kmswire.Throw(kmswire.NullPointer, "KeyVersion name '"+e.Key+"' does not exist"+history(err))
		}
		return kmswire.Throw(kmswire.IllegalArgument, "'"+e.Key+"' not found"+history(err))
	case claviger.BadIV:
		return kmswire.Throw(kmswire.IOException, "java.security.InvalidAlgorithmParameterException: Wrong IV length: must be 16 bytes long")
	case claviger.Denied, claviger.KeyDenied, claviger.SourceRefused:
		c.denied = e.Kind == claviger.Denied
		return kmswire.Throw(kmswire.AuthorizationException, text(e))
	case claviger.Unsupported:
		return kmswire.Throw(kmswire.UnsupportedOperation, text(e))
	case claviger.SourceUnreachable:
		return c.standby(err, c.awaits(e))
	case claviger.Unavailable, claviger.Closed:
		return c.standby(err, "this node cannot serve the request now")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		if c.route == nil || c.route.class != management {
			return c.standby(err, "this node could not serve the request in "+c.limit())
		}
		// Not a 503: clients take that for "nothing was done", and ask another node.
		c.Log.Error("a request took too long", "id", c.caller.RequestID, "op", c.op(), "name", c.name, "err", err)
		return kmswire.Throw(kmswire.IOException, "the request was given up after "+c.limit()+"; look whether it was done before you repeat it. The server's log tells more under request id "+c.caller.RequestID)
	}
	if !errors.Is(err, context.Canceled) { // the client has gone: nobody to tell
		c.Log.Error("a request failed", "id", c.caller.RequestID, "op", c.op(), "name", c.name, "err", err)
	}
	return kmswire.Throw(kmswire.IOException, "internal error; the server's log tells more under request id "+c.caller.RequestID)
}

// standby makes a load-balancing client go to another node, whatever is away: the HSM,
// the metastore, a source. It is for what has surely changed nothing: clients repeat even
// a roll after it. The text does not have the reason: the names of inner systems are for
// operators, who find them in the log.
func (c *call) standby(err error, text string) *kmswire.Exception {
	if !errors.Is(err, context.Canceled) { // the client has gone: no fault of this node
		if silent, ok := c.lines.due(c.caller.Short); ok {
			c.Log.Warn("a request could not be served now", "id", c.caller.RequestID, "user", c.caller.Short, "op", c.op(), "name", c.name, "err", err, "notShown", silent)
		}
	}
	if answer := claviger.AnswerOf(err); answer != "" {
		return kmswire.Throw(kmswire.StandbyException, answer)
	}
	return kmswire.Throw(kmswire.StandbyException, text+"; its log tells more under request id "+c.caller.RequestID)
}

// awaits says for which answer of a source the request would have to wait.
func (c *call) awaits(e *claviger.Error) string {
	const silent = "does not answer this node"
	switch c.op() {
	case "create_key", "undelete_key":
		return "key '" + e.Key + "' cannot be made now: a source, which may have a key of that name, " + silent
	case "migrate_key":
		return "key '" + e.Key + "' cannot be taken over now: its source " + silent
	}
	return "'" + e.Key + "' is not held here, and a source, which may hold it, " + silent
}

// limit is how long the operation may take.
func (c *call) limit() string {
	if c.route == nil {
		return "time"
	}
	return c.route.deadline.String()
}

// keyNotFound: each operation has its own words.
func (c *call) keyNotFound(e *claviger.Error) *kmswire.Exception {
	switch c.op() {
	case "roll_new_version":
		return kmswire.Throw(kmswire.IOException, "Can't find Metadata for key "+e.Key+history(e))
	case "undelete_key", "purge_key":
		text := "No deleted key " + e.Key + " in " + c.Ring.PrimaryURI()
		var others *keyring.OtherDeletedError
		if errors.As(e, &others) {
			text += " " + others.Error()
		}
		return kmswire.Throw(kmswire.IOException, text)
	case "migrate_key":
		return kmswire.Throw(kmswire.IOException, "The source of the migration has no key "+e.Key)
	case "delete_key":
		return kmswire.Throw(kmswire.IOException, "Key "+e.Key+" does not exist in "+c.Ring.PrimaryURI()+history(e))
	case "reencrypt_eek_batch":
		return kmswire.Throw(kmswire.NullPointer, "Key name '"+e.Key+"' does not exist"+history(e))
	}
	return kmswire.Throw(kmswire.IOException, "Key "+e.Key+" not found"+history(e))
}

// history is what the journal of a migration knows of what was not found; "" where
// it knows nothing, and the text is Hadoop's own.
func history(err error) string {
	var t *keyring.Taken
	if !errors.As(err, &t) {
		return ""
	}
	return ": " + t.Error()
}

// insideGenerate wraps what Hadoop's generator threads throw: an IOException
// whose message is the cause's, class included. A refusal at operation level
// comes before those threads.
func insideGenerate(c *call, err error) error {
	switch claviger.KindOf(err) {
	case claviger.Denied, claviger.Unavailable, claviger.SourceUnreachable, claviger.Closed, claviger.Internal, claviger.Invalid:
		return err
	case claviger.KeyNotFound:
		return kmswire.Throw(kmswire.IOException, "org.apache.hadoop.thirdparty.com.google.common.util.concurrent.UncheckedExecutionException: java.lang.NullPointerException: No KeyVersion exists for key '"+c.name+"' "+history(err))
	}
	return kmswire.Throw(kmswire.IOException, c.exception(err).Error())
}

// text is an error's own words, which its kind allows to be shown.
func text(e *claviger.Error) string {
	for e.Err != nil {
		inner, ok := e.Err.(*claviger.Error) //nolint:errorlint // the one it is: what wraps it has more to say
		if !ok {
			return e.Err.Error()
		}
		e = inner // without the name of our function
	}
	return e.Kind.String()
}

// wwwAuthenticate is the header's name, spelt as Hadoop does.
const wwwAuthenticate = "WWW-Authenticate"

// refuse answers what authentication said no to.
func (c *call) refuse(r *authn.Refusal) {
	c.report(r)
	switch r.Kind {
	case authn.NotAllowed:
		c.audit(audit.Unauthenticated, r.Reason)
		c.throw(http.StatusForbidden, kmswire.Throw(kmswire.AuthorizationException, r.Reason))
	case authn.BadDelegation:
		c.audit(audit.Unauthenticated, r.Reason)
		c.throw(http.StatusForbidden, kmswire.Throw(kmswire.AuthenticationException, r.Reason))
	case authn.NoDelegator:
		c.audit(audit.Unauthenticated, r.Reason)
		c.w.Header()[wwwAuthenticate] = r.Challenges
		status := http.StatusUnauthorized
		if slices.Contains(r.Challenges, authn.PseudoAuth) {
			status = http.StatusForbidden
		}
		c.answer(status, "text/plain;charset=utf-8", nil)
	case authn.BadOperation:
		c.throw(http.StatusBadRequest, kmswire.Throw(kmswire.IllegalArgument, r.Reason))
	case authn.UnknownDelegation:
		c.throw(http.StatusNotFound, kmswire.Throw(kmswire.IOException, r.Reason))
	case authn.Malformed:
		c.audit(audit.Unauthenticated, r.Reason)
		c.w.Header().Set("Connection", "close")
		c.page(http.StatusInternalServerError, "java.lang.IllegalArgumentException: "+r.Reason)
	case authn.BadTicket:
		// Also where the method is OPTIONS: it is with those that clients shake hands.
		c.audit(audit.Unauthenticated, r.Reason)
		c.page(http.StatusForbidden, r.Reason)
	case authn.StoreUnavailable:
		c.throw(http.StatusServiceUnavailable, kmswire.Throw(kmswire.StandbyException, r.Reason))
	case authn.NoShortName:
		c.audit(audit.Unauthenticated, r.Reason)
		c.w.Header().Set("Connection", "close")
		c.page(http.StatusInternalServerError, r.Reason)
	default:
		if c.r.Method != http.MethodOptions {
			c.audit(audit.Unauthenticated, r.Reason)
		}
		c.w.Header()[wwwAuthenticate] = r.Challenges
		c.page(http.StatusUnauthorized, r.Reason)
	}
}
