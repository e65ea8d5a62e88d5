package kmsclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
)

// refusal has the parts of an error answer from which failures are made.
type refusal struct {
	h       *host
	r       request
	status  string // e.g. "403 Forbidden"
	message string // of the exception; "" if there is none
}

// failure returns a final failure of that kind with the text.
func (a refusal) failure(kind claviger.Kind, text string) *failure {
	err := fmt.Errorf("KMS %s: %s", a.h.base, text)
	if user := seenUser(a.r, a.message); user != "" {
		err = &provider.SeenAs{User: user, Err: err}
	}
	return &failure{err: claviger.E(a.r.op, kind, a.r.key, err), final: true}
}

// refused makes a failure from an answer that is not a success. Hadoop distinguishes most errors by their text only.
// The texts are those of its 3.x servers; claviger sends the same.
func (p *Provider) refused(ctx context.Context, h *host, r request, resp *http.Response) *failure {
	text, readErr := readAll(resp.Body, maxErrorBody)
	var remote *kmswire.Exception
	a := refusal{h: h, r: r, status: resp.Status}
	if readErr == nil {
		remote = kmswire.ReadException(text)
	}
	if remote != nil {
		a.message = remote.Message
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return &failure{err: claviger.Errorf(r.op, claviger.Denied, r.key,
			"KMS %s rejects its own login cookie of user %q: its hosts' clocks or signer secrets may differ",
			h.base, p.opt.User), untouched: true, final: true}
	case resp.StatusCode == http.StatusForbidden:
		kind, advice := p.denied(ctx, r, a.message)
		return a.failure(kind, cmp.Or(a.message, resp.Status)+advice)
	case resp.StatusCode == http.StatusServiceUnavailable:
		// A KMS with this answer has changed nothing. A balancer without a KMS behind it has changed nothing either.
		return &failure{err: fmt.Errorf("%s %s", resp.Status, a.message), untouched: true, busy: remote != nil}
	case resp.StatusCode == http.StatusBadGateway, resp.StatusCode == http.StatusGatewayTimeout:
		return &failure{err: errors.New(resp.Status)}
	case remote == nil:
		return a.noException(resp, text)
	}
	// Hadoop wraps a refusal inside generate into an IOException with status 500, so look for a refusal first.
	if kind, advice := p.denied(ctx, r, a.message); strings.Contains(a.message, "AuthorizationException") {
		return a.failure(kind, a.message+advice)
	}
	return a.exception(resp.StatusCode, remote.Simple())
}

// noException makes a failure from an answer without a RemoteException. text is the body.
func (a refusal) noException(resp *http.Response, text []byte) *failure {
	if err := refusedScheme(a.h, resp, text); err != nil {
		return &failure{err: err, untouched: true}
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return a.failure(claviger.Internal, fmt.Sprintf("answered %s, which is not valid for this request", a.status))
	}
	return a.failure(claviger.Internal, fmt.Sprintf(
		"answered %s without a reason; does the URI have the path of the KMS?", a.status))
}

// exception makes a failure from an exception with that class, without the package's name.
func (a refusal) exception(status int, class string) *failure {
	for _, t := range texts {
		if t.class != "" && t.class != class || t.op != "" && t.op != a.r.op || !strings.Contains(a.message, t.text) {
			continue
		}
		return a.failure(t.kind, a.message)
	}
	message := cmp.Or(a.message, class)
	if status == http.StatusBadRequest {
		return a.failure(claviger.Invalid, message)
	}
	f := a.failure(claviger.Internal, fmt.Sprintf("%s (%s, %s)", message, class, a.status))
	// The fault may be of this host alone. Hadoop's client also tries the next host.
	f.final = status != http.StatusInternalServerError || !a.r.safe
	f.answered = true
	return f
}

// texts are parts of Hadoop's messages with the kind of the error. The first match counts.
var texts = []struct {
	text  string
	class string // "" for any
	op    string // "" for any
	kind  claviger.Kind
}{
	{text: "already exists", op: opUndelete, kind: claviger.KeyExists},
	{text: "No deleted key ", kind: claviger.KeyNotFound},
	{text: " not found", op: opDescribe, kind: claviger.KeyNotFound},
	{text: "null for uri: ", op: opDescribe, kind: claviger.Unsupported}, // the KMS has no such path
	{text: "has no key ", op: opMigrate, kind: claviger.KeyNotFound},
	{text: "already exists", op: opCreate, kind: claviger.KeyExists},
	{text: "Wrong keysize", kind: claviger.InvalidKeySize},
	{text: "Wrong key length. Required", kind: claviger.MaterialLength},
	{text: "", class: "UndeclaredThrowableException", op: opCreate, kind: claviger.UnknownCipher},
	{text: "is not supported; the ciphers are", op: opCreate, kind: claviger.UnknownCipher}, // of claviger
	{text: "", class: "UnsupportedOperationException", kind: claviger.Unsupported},
	{text: "Uppercase key names are unsupported", kind: claviger.Invalid},
	{text: "Wrong IV length", kind: claviger.BadIV},
	{text: "does not belong to the key", kind: claviger.WrongKey},
	{text: "No KeyVersion exists for key", kind: claviger.KeyNotFound},
	{text: "Can't find Metadata for key", kind: claviger.KeyNotFound},
	{text: "does not exist in", op: opDelete, kind: claviger.KeyNotFound},
	{text: "not found", op: opRoll, kind: claviger.KeyNotFound},
	{text: "KeyVersion name '", kind: claviger.VersionNotFound}, // "... does not exist", if the KMS has no key ACLs
	{text: "Key name '", kind: claviger.KeyNotFound},            // as above
	{text: "not found", op: opUnwrap, kind: claviger.VersionNotFound},
	{text: "not found", op: opReencrypt, kind: claviger.VersionNotFound},
}

var (
	opDenied  = regexp.MustCompile(`^User:(\S+) not allowed to do '(\w+)'(?: on '([^']*)')?`)
	keyDenied = regexp.MustCompile(
		`User \[([^\]]*)\] is not authorized to perform \[(\w+)\] on key with ACL name \[([^\]]*)\]`)
	newDenied = regexp.MustCompile(`User \[([^\]]*)\] is not authorized to create key`)
	doAsUser  = regexp.MustCompile(`^User: (\S+) is not allowed to impersonate (\S+)`)
	doAsHost  = regexp.MustCompile(`^Unauthorized connection for super-user: (\S+)`)
)

// aclOf maps Hadoop's operations to the type of their ACL. The names are those of its messages and audit lines.
var aclOf = map[string]string{
	"CREATE_KEY": "CREATE", "DELETE_KEY": "DELETE", "ROLL_NEW_VERSION": "ROLLOVER", "INVALIDATE_CACHE": "ROLLOVER",
	"GET_KEYS": "GET_KEYS", "GET_METADATA": "GET_METADATA", "GET_KEYS_METADATA": "GET_METADATA",
	"GET_KEY_VERSION": "GET", "GET_KEY_VERSIONS": "GET", "GET_CURRENT_KEY": "GET",
	"GENERATE_EEK": "GENERATE_EEK", "REENCRYPT_EEK": "GENERATE_EEK", "REENCRYPT_EEK_BATCH": "GENERATE_EEK",
	"DECRYPT_EEK": "DECRYPT_EEK",
}

// trusteeACLOf has the ACLs of operations that Hadoop's KMS lacks.
var trusteeACLOf = map[string]string{
	"UNDELETE_KEY": "keytrustee.kms.acl.UNDELETE", "PURGE_KEY": "keytrustee.kms.acl.PURGE",
	"GET_DELETED_KEYS": "keytrustee.kms.acl.UNDELETE or keytrustee.kms.acl.PURGE",
}

// seenUser returns the user name under which the KMS saw us, if the message has it. It returns "" if the message has no
// name, or has the name of the user on whose behalf the request was sent.
func seenUser(r request, message string) string {
	for _, re := range []*regexp.Regexp{doAsUser, doAsHost, opDenied, keyDenied, newDenied} {
		if m := re.FindStringSubmatch(message); m != nil {
			if r.as != "" && re != doAsUser && re != doAsHost {
				return ""
			}
			return shortOf(m[1])
		}
	}
	return ""
}

// shortOf returns the name of a principal without host and realm.
func shortOf(name string) string {
	if i := strings.IndexAny(name, "/@"); i > 0 {
		return name[:i]
	}
	return name
}

// denied returns the kind of a refusal, and advice which setting of the KMS would allow the request.
func (p *Provider) denied(ctx context.Context, r request, message string) (kind claviger.Kind, advice string) {
	if m := doAsUser.FindStringSubmatch(message); m != nil {
		return claviger.Denied,
			fmt.Sprintf(" (hadoop.kms.proxyuser.%s.users or .groups in that KMS's kms-site.xml must admit %s, and "+
				".hosts this host; restart that KMS after the change)", shortOf(m[1]), r.as)
	}
	if m := doAsHost.FindStringSubmatch(message); m != nil {
		return claviger.Denied,
			fmt.Sprintf(" (hadoop.kms.proxyuser.%s.hosts in that KMS's kms-site.xml must name this host's "+
				"address; restart that KMS after the change)", shortOf(m[1]))
	}
	if m := keyDenied.FindStringSubmatch(message); m != nil {
		return claviger.KeyDenied,
			fmt.Sprintf(" (whitelist.key.acl.%s, or key.acl.%s.%s if that key has its own entries, in that "+
				"KMS's kms-acls.xml must admit %s)", m[2], m[3], m[2], m[1])
	}
	if m := newDenied.FindStringSubmatch(message); m != nil {
		return claviger.KeyDenied,
			fmt.Sprintf(" (whitelist.key.acl.MANAGEMENT or default.key.acl.MANAGEMENT in that "+
				"KMS's kms-acls.xml must admit %s)", m[1])
	}
	if m := opDenied.FindStringSubmatch(message); m != nil {
		if acl := trusteeACLOf[m[2]]; acl != "" {
			return claviger.Denied, fmt.Sprintf(" (%s in that KMS's kms-acls.xml must admit %s)", acl, m[1])
		}
		if acl := aclOf[m[2]]; acl != "" {
			if p.Ranger(ctx) {
				return claviger.Denied, rangerAdvice(m[2], m[1], m[3])
			}
			return claviger.Denied,
				fmt.Sprintf(" (hadoop.kms.acl.%s in that KMS's kms-acls.xml must admit %s, and "+
					"hadoop.kms.blacklist.%s must not name that user)", acl, m[1], acl)
		}
	}
	return claviger.Denied, ""
}

// closedError returns the error of every call after Close.
func closedError(op, about string) error {
	return claviger.E(op, claviger.Closed, about, errors.New("the connection to the KMS was closed"))
}
