package kmsclient

import (
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

// refused makes an error of an answer that is not success. Hadoop tells most of
// its errors by text alone: the texts are those of its 3.x servers, and ours
// sends the same.
func (p *Provider) refused(ctx context.Context, h *host, r request, resp *http.Response) *failure {
	text, readErr := readAll(resp.Body, maxErrorBody)
	var remote *kmswire.Exception
	message, class := "", ""
	if readErr == nil {
		remote = kmswire.ReadException(text)
	}
	if remote != nil {
		message, class = remote.Message, remote.Simple()
	}
	says := func(kind claviger.Kind, text string) *failure {
		err := fmt.Errorf("KMS %s: %s", h.base, text)
		if user := seen(r, message); user != "" {
			err = &provider.SeenAs{User: user, Err: err}
		}
		return &failure{err: claviger.E(r.op, kind, r.key, err), final: true}
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return &failure{err: claviger.Errorf(r.op, claviger.Denied, r.key,
			"KMS %s does not take its own login cookie of user %q: its hosts' clocks or signer secrets may differ",
			h.base, p.opt.User), untouched: true, final: true}
	case resp.StatusCode == http.StatusForbidden:
		kind, advice := p.denied(ctx, r, message)
		if message == "" {
			message = resp.Status
		}
		return says(kind, message+advice)
	case resp.StatusCode == http.StatusServiceUnavailable:
		// A KMS that says so has changed nothing; nor has a balancer without one.
		return &failure{err: fmt.Errorf("%s %s", resp.Status, message), untouched: true, busy: remote != nil}
	case resp.StatusCode == http.StatusBadGateway, resp.StatusCode == http.StatusGatewayTimeout:
		return &failure{err: errors.New(resp.Status)}
	case remote == nil:
		if err := refusedScheme(h, resp, text); err != nil {
			return &failure{err: err, untouched: true}
		}
		if resp.StatusCode < http.StatusMultipleChoices {
			return says(claviger.Internal, fmt.Sprintf("answered %s, which is no answer to this request", resp.Status))
		}
		return says(claviger.Internal, fmt.Sprintf(
			"answered %s without a reason; is the path of the URI that of the KMS?", resp.Status))
	}
	// The texts that a KMS of several kinds of failure has in common first.
	if kind, advice := p.denied(ctx, r, message); strings.Contains(message, "AuthorizationException") {
		// Inside generate Hadoop wraps a refusal into an IOException, with 500.
		return says(kind, message+advice)
	}
	for _, t := range texts {
		if t.class != "" && t.class != class || t.op != "" && t.op != r.op || !strings.Contains(message, t.text) {
			continue
		}
		return says(t.kind, message)
	}
	if message == "" {
		message = class
	}
	if resp.StatusCode == http.StatusBadRequest {
		return says(claviger.Invalid, message)
	}
	f := says(claviger.Internal, fmt.Sprintf("%s (%s, %s)", message, class, resp.Status))
	// A fault of this host, perhaps: Hadoop too asks the next one.
	f.final = resp.StatusCode != http.StatusInternalServerError || !r.safe
	f.answered = true
	return f
}

// texts are Hadoop's messages, by which alone it tells most errors.
var texts = []struct {
	text  string
	class string // "" any
	op    string // "" any
	kind  claviger.Kind
}{
	{text: "already exists", op: opUndelete, kind: claviger.KeyExists},
	{text: "No deleted key ", kind: claviger.KeyNotFound},
	{text: " not found", op: opDescribe, kind: claviger.KeyNotFound},
	{text: "null for uri: ", op: opDescribe, kind: claviger.Unsupported}, // a KMS that has no such path
	{text: "has no key ", op: opMigrate, kind: claviger.KeyNotFound},
	{text: "already exists", op: opCreate, kind: claviger.KeyExists},
	{text: "Wrong keysize", kind: claviger.InvalidKeySize},
	{text: "Wrong key length. Required", kind: claviger.MaterialLength},
	{text: "", class: "UndeclaredThrowableException", op: opCreate, kind: claviger.UnknownCipher},
	{text: "is not supported; the ciphers are", op: opCreate, kind: claviger.UnknownCipher}, // claviger's
	{text: "", class: "UnsupportedOperationException", kind: claviger.Unsupported},
	{text: "Uppercase key names are unsupported", kind: claviger.Invalid},
	{text: "Wrong IV length", kind: claviger.BadIV},
	{text: "does not belong to the key", kind: claviger.WrongKey},
	{text: "No KeyVersion exists for key", kind: claviger.KeyNotFound},
	{text: "Can't find Metadata for key", kind: claviger.KeyNotFound},
	{text: "does not exist in", op: opDelete, kind: claviger.KeyNotFound},
	{text: "not found", op: opRoll, kind: claviger.KeyNotFound},
	{text: "KeyVersion name '", kind: claviger.VersionNotFound}, // "... does not exist", without key authorization
	{text: "Key name '", kind: claviger.KeyNotFound},            // the same
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

// aclOf maps Hadoop's operations, as its messages and audit lines name them, to
// the type of their ACL.
var aclOf = map[string]string{
	"CREATE_KEY": "CREATE", "DELETE_KEY": "DELETE", "ROLL_NEW_VERSION": "ROLLOVER", "INVALIDATE_CACHE": "ROLLOVER",
	"GET_KEYS": "GET_KEYS", "GET_METADATA": "GET_METADATA", "GET_KEYS_METADATA": "GET_METADATA",
	"GET_KEY_VERSION": "GET", "GET_KEY_VERSIONS": "GET", "GET_CURRENT_KEY": "GET",
	"GENERATE_EEK": "GENERATE_EEK", "REENCRYPT_EEK": "GENERATE_EEK", "REENCRYPT_EEK_BATCH": "GENERATE_EEK",
	"DECRYPT_EEK": "DECRYPT_EEK",
}

// trusteeACLOf are the ACLs of operations that Hadoop has not.
var trusteeACLOf = map[string]string{
	"UNDELETE_KEY": "keytrustee.kms.acl.UNDELETE", "PURGE_KEY": "keytrustee.kms.acl.PURGE",
	"GET_DELETED_KEYS": "keytrustee.kms.acl.UNDELETE or keytrustee.kms.acl.PURGE",
}

// seen is the user as whom the far KMS saw us, where it says so; "" where it does not, or
// speaks of the user on whose behalf it was asked.
func seen(r request, message string) string {
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

// shortOf is the name without the host and the realm of a principal.
func shortOf(name string) string {
	if i := strings.IndexAny(name, "/@"); i > 0 {
		return name[:i]
	}
	return name
}

// denied says of which kind a refusal is, and what at the far KMS would lift it.
func (p *Provider) denied(ctx context.Context, r request, message string) (kind claviger.Kind, advice string) {
	if m := doAsUser.FindStringSubmatch(message); m != nil {
		return claviger.Denied,
			fmt.Sprintf(" (hadoop.kms.proxyuser.%s.users or .groups in that KMS's kms-site.xml must admit %s, and "+
				".hosts this host; it must be restarted then)", shortOf(m[1]), r.as)
	}
	if m := doAsHost.FindStringSubmatch(message); m != nil {
		return claviger.Denied,
			fmt.Sprintf(" (hadoop.kms.proxyuser.%s.hosts in that KMS's kms-site.xml must name this host's "+
				"address; it must be restarted then)", shortOf(m[1]))
	}
	if m := keyDenied.FindStringSubmatch(message); m != nil {
		return claviger.KeyDenied,
			fmt.Sprintf(" (whitelist.key.acl.%s, or key.acl.%s.%s where that key has entries of its own, in that "+
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
					"hadoop.kms.blacklist.%s not name him)", acl, m[1], acl)
		}
	}
	return claviger.Denied, ""
}

// closedError is what every call gives after Close.
func closedError(op, about string) error {
	return claviger.E(op, claviger.Closed, about, errors.New("the connection to the KMS was closed"))
}
