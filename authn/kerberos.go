package authn

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Negotiator accepts the tokens of SPNEGO, and raw Kerberos tokens. Its methods may be called from many goroutines.
type Negotiator interface {
	// Accept returns the principal that a client's token proves, and the token for the answer. A handshake has one
	// token; if it needs more, that is an error. Each error is a *NegotiationError.
	Accept(token []byte) (client string, reply []byte, err error)
	// Check returns an error if Accept cannot accept any token: the keytab does not exist, cannot be read, or has no
	// key of the service.
	Check() error
}

// NegotiationError is the reason why a client's token is refused.
type NegotiationError struct {
	// Reason is for the caller, with the text of Java's acceptor.
	Reason string
	// Explanation is only for the operator: the problem and its cure.
	Explanation string
	// ServerSide means that the server's keytab or clock may be the cause. Then all clients are refused.
	ServerSide bool
	Err        error
}

func (e *NegotiationError) Error() string { return e.Explanation }
func (e *NegotiationError) Unwrap() error { return e.Err }

// Negotiate is the challenge of type kerberos, and the scheme of its tokens.
const Negotiate = "Negotiate"

// Types of the cookies that follow a handshake. Hadoop's multi-scheme handler uses the type without the suffix.
const (
	kerberosTokenType      = "kerberos-dt"
	kerberosInnerTokenType = "kerberos"
)

// Kerberos is the authentication type "kerberos": SPNEGO over HTTP.
type Kerberos struct {
	negotiator Negotiator
	whitelist  map[string]bool
	kind       string // of the cookies
	logins     *logins
}

// endpointForm is Hadoop's form of a servlet's path.
var endpointForm = regexp.MustCompile(`^/\w+$`)

// NewKerberos makes the handler. whitelist has paths of servlets, such as "/jmx" (kerberos.endpoint.whitelist).
// Requests to these servlets are anonymous.
func NewKerberos(n Negotiator, whitelist []string) (*Kerberos, error) {
	k := &Kerberos{negotiator: n, whitelist: make(map[string]bool), kind: kerberosTokenType, logins: new(logins)}
	for _, path := range whitelist {
		if !endpointForm.MatchString(path) {
			return nil, fmt.Errorf("%q is not a servlet; write a / and a word, as in /jmx", path)
		}
		k.whitelist[path] = true
	}
	return k, nil
}

func (k *Kerberos) tokenTypes() []string { return []string{k.kind} }

func (k *Kerberos) authenticate(r Request, _ bool) attempt {
	if k.whitelist[servlet(r.Path)] {
		return attempt{anonymous: true}
	}
	// As in Hadoop, the case of the scheme matters, and no blank has to follow.
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), Negotiate)
	if !ok {
		return attempt{refusal: &Refusal{Kind: Unauthenticated, Challenges: []string{Negotiate}}}
	}
	raw := decodeBase64(text)
	if len(raw) == 0 {
		return attempt{refusal: &Refusal{Kind: BadTicket, Reason: "java.nio.BufferUnderflowException",
			Explanation: "the Authorization header has the scheme Negotiate, but no token in base64; the client, or " +
				"a proxy between client and server, has damaged it"}}
	}
	client, reply, err := k.negotiator.Accept(raw)
	if err != nil {
		refusal := &Refusal{Kind: BadTicket, Reason: defectiveToken, Explanation: err.Error()}
		var known *NegotiationError
		if errors.As(err, &known) {
			refusal.Reason = known.Reason
			if known.ServerSide {
				k.logins.refused(known)
			}
		}
		return attempt{refusal: refusal}
	}
	k.logins.accepted()
	var att attempt
	if len(reply) > 0 {
		att.reply = Negotiate + " " + base64.StdEncoding.EncodeToString(reply)
	}
	if !validName(client) {
		att.refusal = &Refusal{Kind: BadTicket,
			Reason: "java.lang.IllegalArgumentException: userName is NULL, empty or contains a '&'",
			Explanation: fmt.Sprintf("the ticket is good, but its principal %q cannot be a user here: it is too "+
				"long, or holds characters that would break a cookie or a log", client)}
		return att
	}
	att.token = &token{principal: client, kind: k.kind}
	return att
}

// refusedInARow is the number of logins that must be refused with ServerSide, without an accepted login between them,
// before CheckLogins returns an error.
const refusedInARow = 3

// logins counts the refused logins since the last accepted one.
type logins struct {
	mu    sync.Mutex
	count int       // refused logins
	since time.Time // when the first was refused
	last  error     // why the last was refused
}

func (l *logins) accepted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count, l.last = 0, nil
}

func (l *logins) refused(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		l.since = time.Now()
	}
	l.count++
	l.last = err
}

// CheckKeytab returns an error if no client can log in because the keytab has no key of the service.
func (k *Kerberos) CheckKeytab() error { return k.negotiator.Check() }

// CheckLogins returns an error if all of the last logins were refused and the server may be the cause: its clock may
// be wrong, or its keys may differ from the KDC's. The clients may also be the cause, because a forged ticket is
// refused in the same way.
func (k *Kerberos) CheckLogins() error {
	k.logins.mu.Lock()
	defer k.logins.mu.Unlock()
	if k.logins.count < refusedInARow {
		return nil
	}
	return fmt.Errorf("the last %d logins, since %s, were all refused; the last error is: %w", k.logins.count,
		k.logins.since.UTC().Format(time.RFC3339), k.logins.last)
}

// decodeBase64 decodes as Base64 of commons-codec does, which hadoop-auth uses. It accepts the standard and the
// URL-safe alphabet (libhdfs3 sends the second), skips all other characters, stops at '=', and drops bits at the end
// that do not make a byte.
func decodeBase64(text string) []byte {
	plain := make([]byte, 0, len(text))
	for i := 0; i < len(text) && text[i] != '='; i++ {
		switch c := text[i]; {
		case c == '-':
			plain = append(plain, '+')
		case c == '_':
			plain = append(plain, '/')
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '+', c == '/':
			plain = append(plain, c)
		}
	}
	if len(plain)%4 == 1 {
		plain = plain[:len(plain)-1]
	}
	raw := make([]byte, base64.RawStdEncoding.DecodedLen(len(plain)))
	n, err := base64.RawStdEncoding.Decode(raw, plain)
	if err != nil {
		return nil // cannot happen: plain has only letters of the alphabet
	}
	return raw[:n]
}

// defectiveToken is the reason that a client gets if its token cannot be read.
const defectiveToken = "GSSException: Defective token detected"

// servlet returns the path of the servlet that serves a request in Hadoop's KMS.
func servlet(path string) string {
	const kms = "/kms"
	if path != kms+"/jmx" && strings.HasPrefix(path, kms+"/") {
		return kms
	}
	return path
}
