package kmsapi

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/keyring"
	"claviger/kmswire"
)

// This file alone maps errors to their form on the wire: the statuses of Hadoop's
// KMSExceptionsProvider, and the texts of the exceptions of its KMS.

// retryAfter is the value of the Retry-After header of a 503, in seconds. Another
// node may serve the client at once, and this node after a short time.
const retryAfter = "5"

// statusOf returns the status of an exception, as KMSExceptionsProvider does.
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

// fail writes the answer for an error of any stage.
func (c *call) fail(err error) {
	var large *tooLarge
	if errors.As(err, &large) {
		c.w.Header().Set("Connection", "close") // the rest of the body is not read
		c.throw(http.StatusRequestEntityTooLarge, kmswire.Throw(kmswire.IOException, large.Error()))
		return
	}
	e := c.exception(err)
	if claviger.Is(err, claviger.SourceRefused) || e.Class == kmswire.StandbyException {
		// No other code writes an audit line: this server's own rules had allowed it.
		c.audit(audit.Error, e.Message)
	}
	c.throw(statusOf(e.Class), e)
}

// throw writes a RemoteException, and the audit line that Hadoop writes with it.
// It writes no audit line if authentication or authorization refused the request,
// because these write their own, and none with a StandbyException.
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
	e := audit.Event{
		Status: status, Caller: c.caller, Message: message, Method: c.r.Method, URL: c.auditURL(), EDEKs: c.edeks,
	}
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

// exception maps an error to the exception that Hadoop's KMS throws for it.
func (c *call) exception(err error) *kmswire.Exception {
	var thrown *kmswire.Exception
	if errors.As(err, &thrown) {
		return thrown
	}
	var overload *busy
	if errors.As(err, &overload) {
		// A load-balancing client tries all other nodes, and then this one again.
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
		text := "Key " + e.Key + " already exists in " + c.Ring.PrimaryURI()
		if c.op() == "undelete_key" {
			text += "; the deleted key of that name can be undeleted when this one is deleted"
		}
		return kmswire.Throw(kmswire.IOException, text)
	case claviger.VersionNotFound:
		if !c.KeyAuthorization {
			return kmswire.Throw(kmswire.NullPointer, "KeyVersion name '"+e.Key+"' does not exist"+history(err))
		}
		return kmswire.Throw(kmswire.IllegalArgument, "'"+e.Key+"' not found"+history(err))
	case claviger.BadIV:
		return kmswire.Throw(kmswire.IOException,
			"java.security.InvalidAlgorithmParameterException: Wrong IV length: must be 16 bytes long")
	case claviger.Denied, claviger.KeyDenied, claviger.SourceRefused:
		c.denied = e.Kind == claviger.Denied
		return kmswire.Throw(kmswire.AuthorizationException, text(e))
	case claviger.Unsupported:
		return kmswire.Throw(kmswire.UnsupportedOperation, text(e))
	case claviger.SourceUnreachable:
		return c.standby(err, c.sourceSilent(e))
	case claviger.Unavailable, claviger.Closed:
		return c.standby(err, "this node cannot serve the request now")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return c.timedOut(err)
	}
	answer := cmp.Or(claviger.AnswerOf(err), "internal error")
	return kmswire.Throw(kmswire.IOException, answer+"; "+c.logFailure(slog.LevelError, "a request failed", err))
}

// timedOut is the exception after the operation's deadline. For a key management
// request it is not a 503: clients take a 503 for "nothing was changed", and
// repeat the request at another node.
func (c *call) timedOut(err error) *kmswire.Exception {
	if c.route == nil || c.route.class != management {
		return c.standby(err, "this node could not serve the request in "+c.deadline())
	}
	return kmswire.Throw(kmswire.IOException, "the request was given up after "+c.deadline()+
		"; check whether it was done before you repeat it; "+
		c.logFailure(slog.LevelError, "a request took too long", err))
}

// standby makes a load-balancing client try another node, because this node lacks
// the HSM, the metastore or a source. Use it only if nothing was changed: after it
// a client repeats even a roll. The client does not see the reason, because names
// of internal systems are only for operators. The log has it.
func (c *call) standby(err error, text string) *kmswire.Exception {
	logged := c.logFailure(slog.LevelWarn, "a request could not be served now", err)
	if answer := claviger.AnswerOf(err); answer != "" {
		return kmswire.Throw(kmswire.StandbyException, answer)
	}
	return kmswire.Throw(kmswire.StandbyException, text+"; "+logged)
}

// logFailure writes a line about a request that this node could not serve, or counts the line if there have been too
// many. It returns for the client what the log has.
func (c *call) logFailure(level slog.Level, message string, err error) string {
	id := c.caller.RequestID
	if errors.Is(err, context.Canceled) { // the client has gone, and this node has no fault
		return "the request was canceled (request id " + id + ")"
	}
	notShown, earlier, ok := c.lines.due(message, c.caller.Short, id)
	if !ok {
		return "the server's log has many such requests and only counts request id " + id +
			"; it has the reason of an earlier one under request id " + earlier
	}
	c.Log.Log(c.r.Context(), level, message, "id", id, "user", c.caller.Short, "op", c.op(),
		"name", c.name, "err", err, "notShown", notShown)
	return "the server's log has the reason under request id " + id
}

// sourceSilent says what the operation needs from the source that does not answer.
func (c *call) sourceSilent(e *claviger.Error) string {
	const noAnswer = "does not answer this node"
	switch c.op() {
	case "create_key", "undelete_key":
		return "key '" + e.Key + "' cannot be made now: a source, which may have a key of that name, " + noAnswer
	case "migrate_key":
		return "key '" + e.Key + "' cannot be taken over now: its source " + noAnswer
	}
	return "'" + e.Key + "' is not held here, and a source, which may hold it, " + noAnswer
}

// deadline returns how long the operation may take.
func (c *call) deadline() string {
	if c.route == nil {
		return "time"
	}
	return c.route.deadline.String()
}

// keyNotFound is the exception for a missing key. In Hadoop each operation has its
// own text.
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

// history returns what the journal of a migration says about a missing key, to be
// added to Hadoop's text; "" if the journal has no entry.
func history(err error) string {
	var h *keyring.HistoryError
	if !errors.As(err, &h) {
		return ""
	}
	return ": " + h.Error()
}

// generateError wraps an error of generate as Hadoop's generator threads do: an
// IOException whose message holds class and message of the cause. Hadoop checks
// the operation-level rules before it starts those threads, so a refusal by these
// rules is not wrapped.
func generateError(c *call, err error) error {
	switch claviger.KindOf(err) {
	case claviger.Denied, claviger.Unavailable, claviger.SourceUnreachable, claviger.Closed, claviger.Internal,
		claviger.Invalid:
		return err
	case claviger.KeyNotFound:
		return kmswire.Throw(kmswire.IOException, "org.apache.hadoop.thirdparty.com.google.common.util.concurrent."+
			"UncheckedExecutionException: java.lang.NullPointerException: No KeyVersion exists for key '"+
			c.name+"' "+history(err))
	}
	return kmswire.Throw(kmswire.IOException, c.exception(err).Error())
}

// text returns an error's own text. Use it only for kinds whose comment allows the
// caller to see the text.
func text(e *claviger.Error) string {
	for e.Err != nil {
		inner, ok := e.Err.(*claviger.Error) //nolint:errorlint // only a direct one: a wrapper's text says more
		if !ok {
			return e.Err.Error()
		}
		e = inner // leaves out the name of our function
	}
	return e.Kind.String()
}

// wwwAuthenticate is the header's name in Hadoop's spelling.
const wwwAuthenticate = "WWW-Authenticate"

// refuse writes the answer for a refusal of package authn.
func (c *call) refuse(r *authn.Refusal) {
	c.reportRefusal(r)
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
		// OPTIONS are audited, too: clients authenticate with these requests.
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
