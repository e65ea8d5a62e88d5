// Package gssapi does Kerberos with MIT's libgssapi_krb5. An acceptor finds the sender of a token. An initiator proves
// the identity of this process to another service. The package is only a binding: rules for user names and HTTP are in
// other packages.
//
// The acceptor accepts the tokens of Hadoop's clients: a krb5 token, plain or wrapped in SPNEGO. Its reply has the same
// form. One token is a whole exchange. A negotiation of several steps, as for NTLM, is refused.
//
// An acceptor reads its keytab for each token, so keys rotate without a restart. It accepts any key of the keytab, and
// then compares the ticket's service. It changes no environment variable. Tickets that were obtained with a keytab
// stay in the memory of this process. Errors name the reason of a refusal, see Kind.
//
// The library cannot be interrupted while it waits for a KDC. Call Step on a goroutine of its own, as
// provider/kmsclient does. That package uses an initiator through an interface, and accepts no cookie before the other
// KMS has proved its identity by its AP-REP.
//
// A build without cgo, or with the tag nogssapi, has the same functions, and each constructor returns ErrNotBuilt.
package gssapi

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotBuilt is the error of a program that was built without Kerberos.
var ErrNotBuilt = errors.New("this program was built without Kerberos (no cgo, or the build tag nogssapi); use a " +
	"build with libgssapi_krb5")

// MaxToken is the largest size of a token, in bytes. A ticket with a large authorization record (a PAC of a user in a
// thousand groups) has about 12 kB. Hadoop's limit for a header is 64 KiB in base64.
const MaxToken = 64 << 10

// AcceptorConfig describes the service that accepts tokens.
type AcceptorConfig struct {
	// Keytab is the file with the service's keys. It is read again for each token, so new keys need no restart.
	Keytab string
	// Principals are the principals of this service, with or without the realm: "HTTP/host@REALM". The single entry
	// "*" means each HTTP/... principal of the keytab.
	Principals []string
	// ReplayCache is the place where used tokens are recorded, in MIT's form ("dfl:", "file2:/path", "none:"). "" is
	// the library's default, a file that all processes of this user share.
	ReplayCache string
}

// Accepted describes the sender of a token.
type Accepted struct {
	Client  string // the full principal: name@REALM
	Service string // our principal that the ticket is for
	Reply   []byte // the answer to send back, in the form of the token
}

// InitiatorConfig names our principal and the service that we talk to.
type InitiatorConfig struct {
	// With Keytab, we log in as Principal with its key. The ticket stays in this process's memory, and the library
	// renews it from the keytab. Without Keytab, the tickets in CCache are used: those of Principal, if it is not "".
	// CCache has MIT's form ("FILE:/tmp/krb5cc_0"); "" is the default of the environment.
	Keytab, Principal string
	CCache            string
	// Target is the other service: a principal ("zookeeper/host@REALM") or a service at a host ("HTTP@host").
	Target string
	SPNEGO bool // wrap the tokens in SPNEGO, as browsers and curl do; false: plain krb5
	Mutual bool // the other service must prove its identity too
}

// Kind is the kind of a failure. Kinds differ if the operator's cure differs.
type Kind int

// The kinds of failure.
const (
	Other         Kind = iota
	BadToken           // not a token, or not of this protocol
	Replay             // the token was used before
	Skew               // the clocks differ too much
	Expired            // the ticket has expired, or is not yet valid
	NoKey              // the keytab has no key that opens the ticket
	NoKeytab           // the keytab does not exist, or cannot be read
	WrongService       // the ticket is for another service
	NoCredentials      // we have no ticket and cannot get one
)

// KeytabEntry is one key of a keytab.
type KeytabEntry struct {
	Principal  string // with its realm
	Version    int    // the kvno
	Encryption string // such as aes256-cts-hmac-sha1-96
}

// encryptions are the names of encryption types, by the numbers that IANA registers ("Kerberos Encryption Type
// Numbers").
var encryptions = map[int]string{1: "des-cbc-crc", 2: "des-cbc-md4", 3: "des-cbc-md5", 16: "des3-cbc-sha1",
	17: "aes128-cts-hmac-sha1-96", 18: "aes256-cts-hmac-sha1-96", 19: "aes128-cts-hmac-sha256-128",
	20: "aes256-cts-hmac-sha384-192", 23: "arcfour-hmac", 24: "arcfour-hmac-exp", 25: "camellia128-cts-cmac",
	26: "camellia256-cts-cmac"}

// encryptionName returns the name of an encryption type.
func encryptionName(number int) string {
	if name, ok := encryptions[number]; ok {
		return name
	}
	return fmt.Sprintf("type %d", number)
}

// Error is a failure of the library, or a refusal of this package.
type Error struct {
	Kind Kind
	// Detail is the library's text. It may name principals, hosts and files. It is for the log, and must not be sent
	// to the client.
	Detail string
	// Cure is advice for an operator; "" if there is none.
	Cure string
	// Java is the answer of Hadoop's server in such a case, as far as it is known. It reveals nothing about this host.
	Java string
}

// Error returns the text for the log.
func (e *Error) Error() string {
	if e.Cure == "" {
		return e.Detail
	}
	return e.Detail + "; " + e.Cure
}

// unspecified is the text of a GSSException without a cause.
const unspecified = "GSSException: Failure unspecified at GSS-API level"

// javaFailure returns the text of a GSSException with a mechanism's text in it.
func javaFailure(mechanism string) string {
	return unspecified + " (Mechanism level: " + mechanism + ")"
}

// phrases maps parts of the library's texts to kinds. The library's error numbers cannot be used, since they change
// when one mechanism is inside another. The texts are from MIT's krb5_err.et and rd_req_dec.c.
var phrases = []struct {
	text string // in lower case
	kind Kind
}{
	{"request is a replay", Replay},
	{"clock skew too great", Skew},
	{"ticket expired", Expired},
	{"credentials have expired", Expired},
	{"ticket not yet valid", Expired},
	{"ticket is not yet valid", Expired},
	{"does not match request ticket server", WrongService},
	{"wrong principal in request", WrongService},
	{"not found in keytab", NoKey},
	{"cannot decrypt ticket", NoKey},
	{"cannot find key", NoKey},
	{"no key in keytab", NoKey},
	{"no matching key in keytab", NoKey},
	{"no key table entry", NoKey},
	{"key version", NoKey},
	{"key table", NoKeytab},
	{"keytab", NoKeytab},
	{"permission denied", NoKeytab},
	{"service key not available", NoKey},
	{"decrypt integrity check failed", NoKey},
	{"invalid token was supplied", BadToken},
	{"token header is malformed", BadToken},
	{"invalid msg", BadToken},
	{"asn.1", BadToken},
	{"unsupported mechanism", BadToken},
	{"unknown mech", BadToken},
	{"no credentials", NoCredentials},
	{"no kerberos credentials", NoCredentials},
	{"credentials cache", NoCredentials},
	{"not found in kerberos database", NoCredentials},
	{"cannot contact any kdc", NoCredentials},
	{"preauthentication failed", NoCredentials},
	{"client not found", NoCredentials},
}

// explain makes an error from two texts of the library: the text of the general status, and the text of the mechanism.
func explain(major, minor string) *Error {
	e := &Error{Detail: major}
	if minor != "" && !strings.EqualFold(major, minor) {
		e.Detail = major + ": " + minor
	}
	// The mechanism's text is more exact than the general text.
	for _, text := range []string{minor, major} {
		lower := strings.ToLower(text)
		for _, p := range phrases {
			if strings.Contains(lower, p.text) {
				e.Kind = p.kind
				e.advise(minor)
				return e
			}
		}
	}
	e.advise("")
	return e
}

// advise sets Cure and Java for the kind of the error.
func (e *Error) advise(minor string) {
	switch e.Kind {
	case Replay:
		e.Cure = "the same token came twice: a proxy that repeats requests, or somebody who replays them"
		e.Java = javaFailure("Request is a replay (34)")
	case Skew:
		e.Cure = "the clocks of this host and of the client differ by more than the clockskew of krb5.conf (5 " +
			"minutes unless set): synchronise both by NTP"
		e.Java = javaFailure("Clock skew too great (37)")
	case Expired:
		e.Cure = "the client must log in again (kinit), or a clock is wrong"
		e.Java = javaFailure("Ticket expired (32)")
		if strings.Contains(strings.ToLower(minor), "not yet valid") {
			e.Java = javaFailure("Ticket not yet valid (33)")
		}
	case NoKey:
		e.Cure = "the keytab lacks the key that the KDC made the ticket with: export it again after each password " +
			"change (ktadd, or ktpass), compare `klist -kte` here with `kvno` at the client, and let clients with " +
			"older tickets log in again"
		e.Java = javaFailure("Checksum failed")
	case WrongService:
		e.Cure = "the client used another name of this service: the host in its URL must be that of the principal " +
			"HTTP/host"
		e.Java = "GSSException: No valid credentials provided (Mechanism level: Failed to find any " +
			"Kerberos credentails)" //nolint:misspell // as Java spells it
	case BadToken:
		e.Java = "GSSException: Defective token detected"
	case NoCredentials:
		e.Java = "GSSException: No valid credentials provided"
	case NoKeytab:
		e.Cure = "put the keytab back, readable for the user that this process runs as; no restart is needed"
		e.Java = unspecified
	case Other:
		e.Java = unspecified // the library's own text may name a file of this host
	}
}

// badToken returns the error for a token that is refused without the library.
func badToken(detail, java string) *Error {
	return &Error{Kind: BadToken, Detail: detail, Java: java}
}

// check returns an error for bytes that cannot be a token.
func check(token []byte) *Error {
	switch {
	case len(token) == 0:
		return badToken("an empty token", "java.nio.BufferUnderflowException")
	case len(token) > MaxToken:
		return badToken(fmt.Sprintf("a token of %d bytes; at most %d are allowed", len(token), MaxToken),
			"GSSException: Defective token detected")
	case token[0] != 0x60: // [APPLICATION 0], the first byte of each initial GSS token
		return badToken("not a GSS-API token: it starts with other bytes", "java.util.NoSuchElementException")
	}
	return nil
}
