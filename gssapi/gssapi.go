// Package gssapi is Kerberos by MIT's libgssapi_krb5: an acceptor, which finds
// out who sent a token, and an initiator, which proves who we are to another
// service. It is a binding and no more: names, rules and HTTP are others' matter.
//
// The acceptor takes what Hadoop's clients send: a krb5 token in SPNEGO's
// wrapping, or bare, and answers in the form that it was asked in. One token is
// one whole exchange; negotiations of several legs, which NTLM would need, are
// refused.
//
// An acceptor reads its keytab for each token, so keys rotate without a restart. It
// accepts any key of the keytab and compares the ticket's service afterwards. It
// changes no environment variable. Tickets got with a keytab stay in the memory of
// this process. The reasons of a refusal are told apart.
//
// The library cannot be interrupted while it waits for a KDC. Call Step on a
// goroutine of its own, as provider/kmsclient does. That package knows an initiator by
// an interface, and takes no cookie before the other KMS has proved itself by its
// AP-REP.
//
// A build without cgo, or with the tag nogssapi, has the same functions, and
// each constructor returns ErrNotBuilt.
package gssapi

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotBuilt says that this program can't do Kerberos at all.
var ErrNotBuilt = errors.New("this program was built without Kerberos (no cgo, or the build tag nogssapi); use a build with libgssapi_krb5")

// MaxToken is the most bytes of a token. A ticket with a large authorization
// record (a PAC of a user in a thousand groups) has some 12 kB, and Hadoop's
// header limit is 64 KiB in base64.
const MaxToken = 64 << 10

// AcceptorConfig says which service we are.
type AcceptorConfig struct {
	// Keytab is the file with the service's keys. It is read anew when a token comes,
	// so that new keys are known without a restart.
	Keytab string
	// Principals that we answer to, "HTTP/host@REALM" or without the realm; the one
	// entry "*" is each HTTP/... principal of the keytab.
	Principals []string
	// ReplayCache names where used tokens are remembered, in MIT's form ("dfl:",
	// "file2:/path", "none:"); "" is the library's default, a file that all
	// processes of this user share.
	ReplayCache string
}

// Accepted is who sent a token.
type Accepted struct {
	Client  string // the full principal: name@REALM
	Service string // the principal of ours that the ticket is for
	Reply   []byte // to send back, in the form of the token
}

// InitiatorConfig says who we are and whom we talk to.
type InitiatorConfig struct {
	// Keytab and Principal log in by a key; the ticket is kept in this process's
	// memory and renewed from the keytab. Without Keytab the tickets of CCache are
	// used, in MIT's form ("FILE:/tmp/krb5cc_0"; "" is the default of the
	// environment), of Principal where that is not "".
	Keytab, Principal string
	CCache            string
	// Target is a principal ("zookeeper/host@REALM") or a service at a host
	// ("HTTP@host").
	Target string
	SPNEGO bool // wrap the tokens, as browsers and curl do; else bare krb5
	Mutual bool // the other side has to prove itself too
}

// Kind says what is wrong with a token, as far as an operator's cure differs.
type Kind int

// The kinds of failure.
const (
	Other         Kind = iota
	BadToken           // not a token, or not of this protocol
	Replay             // the token was used before
	Skew               // the clocks differ too much
	Expired            // the ticket is over, or not yet valid
	NoKey              // the keytab has no key that opens the ticket
	NoKeytab           // the keytab is gone, or cannot be read
	WrongService       // the ticket is for another service
	NoCredentials      // we have no ticket, or can't get one
)

// Error is a failure of the library's or a refusal of ours.
type Error struct {
	Kind Kind
	// Detail is what the library says. It may name principals, hosts and files: it
	// is for the log, not for whoever sent the token.
	Detail string
	// Cure is what an operator may do about it; "" where nothing can be said.
	Cure string
	// Java is what Hadoop's server answers in such a case, as far as known; it tells
	// the sender nothing of this host.
	Java string
}

// Error is for the log.
func (e *Error) Error() string {
	if e.Cure == "" {
		return e.Detail
	}
	return e.Detail + "; " + e.Cure
}

// unspecified is the text of a GSSException that says nothing of its cause.
const unspecified = "GSSException: Failure unspecified at GSS-API level"

// javaFailure is a GSSException's text around a mechanism's own.
func javaFailure(mechanism string) string {
	return unspecified + " (Mechanism level: " + mechanism + ")"
}

// phrases tell kinds by the library's words. Its numbers can't: they are mapped
// anew when a mechanism lies inside another. The words are those of MIT's
// krb5_err.et and rd_req_dec.c.
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

// explain makes an error of the library's two texts: that of the general status
// and that of the mechanism.
func explain(major, minor string) *Error {
	e := &Error{Detail: major}
	if minor != "" && !strings.EqualFold(major, minor) {
		e.Detail = major + ": " + minor
	}
	// The mechanism's own words say more than the general ones.
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

// advise fills in the cure, and Java's words.
func (e *Error) advise(minor string) {
	switch e.Kind {
	case Replay:
		e.Cure = "the same token came twice: a proxy that repeats requests, or somebody who replays them"
		e.Java = javaFailure("Request is a replay (34)")
	case Skew:
		e.Cure = "the clocks of this host and of the client differ by more than the clockskew of krb5.conf (5 minutes unless set): synchronise both by NTP"
		e.Java = javaFailure("Clock skew too great (37)")
	case Expired:
		e.Cure = "the client has to log in anew (kinit), or a clock is wrong"
		e.Java = javaFailure("Ticket expired (32)")
		if strings.Contains(strings.ToLower(minor), "not yet valid") {
			e.Java = javaFailure("Ticket not yet valid (33)")
		}
	case NoKey:
		e.Cure = "the keytab lacks the key that the KDC made the ticket with: export it again after each password change (ktadd, or ktpass), compare `klist -kte` here with `kvno` at the client, and let clients with older tickets log in anew"
		e.Java = javaFailure("Checksum failed")
	case WrongService:
		e.Cure = "the client addressed another name than the one that we have: the host in its URL must be that of the principal HTTP/host"
		e.Java = "GSSException: No valid credentials provided (Mechanism level: Failed to find any Kerberos credentails)" //nolint:misspell // as Java spells it
	case BadToken:
		e.Java = "GSSException: Defective token detected"
	case NoCredentials:
		e.Java = "GSSException: No valid credentials provided"
	case NoKeytab:
		e.Cure = "put the keytab back, readable to the user that this process runs as; nothing has to be restarted"
		e.Java = unspecified
	case Other:
		e.Java = unspecified // the library's own words may name a file of this host
	}
}

// badToken refuses what need not be shown to the library.
func badToken(detail, java string) *Error {
	return &Error{Kind: BadToken, Detail: detail, Java: java}
}

// check refuses at once what can't be a token.
func check(token []byte) *Error {
	switch {
	case len(token) == 0:
		return badToken("an empty token", "java.nio.BufferUnderflowException")
	case len(token) > MaxToken:
		return badToken(fmt.Sprintf("a token of %d bytes; %d are the most", len(token), MaxToken),
			"GSSException: Defective token detected")
	case token[0] != 0x60: // [APPLICATION 0], which every initial GSS token starts with
		return badToken("no GSS-API token: it starts with other bytes", "java.util.NoSuchElementException")
	}
	return nil
}
