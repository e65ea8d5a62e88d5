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

// Negotiator accepts the tokens of SPNEGO, wrapped or raw Kerberos. Its method
// is called from many goroutines.
type Negotiator interface {
	// Accept returns the principal that a client's token proves, and the token to
	// answer with. One token is all that a handshake takes; what would need more
	// is an error. Errors are a *NegotiationError.
	Accept(token []byte) (client string, reply []byte, err error)
	// Check returns an error where no token can be accepted as things stand: the keytab
	// is gone, cannot be read, or holds no key of the service.
	Check() error
}

// NegotiationError says why a client's token is refused.
type NegotiationError struct {
	// Reason is for the caller, in the words of Java's acceptor.
	Reason string
	// Explanation is for the operator alone: what is wrong, and the cure.
	Explanation string
	// Here: the cause may lie at this server, in its keytab or its clock, and then each
	// client is refused.
	Here bool
	Err  error
}

func (e *NegotiationError) Error() string { return e.Explanation }
func (e *NegotiationError) Unwrap() error { return e.Err }

// Negotiate is the challenge of type kerberos, and the scheme of its tokens.
const Negotiate = "Negotiate"

// Types of the cookies that follow a handshake. Hadoop's multi-scheme handler
// leaves the suffix out.
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

// endpointForm is what Hadoop takes for the path of a servlet.
var endpointForm = regexp.MustCompile(`^/\w+$`)

// NewKerberos makes the handler. Requests to the servlets of whitelist
// (kerberos.endpoint.whitelist: "/jmx" and the like) are anonymous.
func NewKerberos(n Negotiator, whitelist []string) (*Kerberos, error) {
	k := &Kerberos{negotiator: n, whitelist: make(map[string]bool), kind: kerberosTokenType, logins: new(logins)}
	for _, path := range whitelist {
		if !endpointForm.MatchString(path) {
			return nil, fmt.Errorf("%q is no servlet; it must be a / and a word, as in /jmx", path)
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
	// Hadoop compares the scheme with its case, and asks for no blank behind it.
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), Negotiate)
	if !ok {
		return attempt{refusal: &Refusal{Kind: Unauthenticated, Challenges: []string{Negotiate}}}
	}
	raw := decodeBase64(text)
	if len(raw) == 0 {
		return attempt{refusal: &Refusal{Kind: BadTicket, Reason: "java.nio.BufferUnderflowException",
			Explanation: "the Authorization header says Negotiate, and no token in base64 follows; the client, or a " +
				"proxy in between, has broken it"}}
	}
	client, reply, err := k.negotiator.Accept(raw)
	if err != nil {
		refusal := &Refusal{Kind: BadTicket, Reason: defectiveToken, Explanation: err.Error()}
		var known *NegotiationError
		if errors.As(err, &known) {
			refusal.Reason = known.Reason
			if known.Here {
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

// refusedInARow is how many logins have to be refused by a cause that may be this
// server's, and none accepted meanwhile, before CheckLogins tells.
const refusedInARow = 3

// logins remembers what became of the last ones.
type logins struct {
	mu   sync.Mutex
	row  int       // refused since one was accepted
	from time.Time // of the first of them
	last error     // why the last one was refused
}

func (l *logins) accepted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.row, l.last = 0, nil
}

func (l *logins) refused(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.row == 0 {
		l.from = time.Now()
	}
	l.row++
	l.last = why
}

// CheckKeytab tells that no client can log in, for want of a keytab with a key of the
// service.
func (k *Kerberos) CheckKeytab() error { return k.negotiator.Check() }

// CheckLogins tells that the last logins were all refused by a cause that may be this
// server's: its clock, or keys that are not those of the KDC. It may be the clients', too: a
// forged ticket is refused in the same way.
func (k *Kerberos) CheckLogins() error {
	k.logins.mu.Lock()
	defer k.logins.mu.Unlock()
	if k.logins.row < refusedInARow {
		return nil
	}
	return fmt.Errorf("the last %d logins, since %s, were all refused, the last one so: %w", k.logins.row,
		k.logins.from.UTC().Format(time.RFC3339), k.logins.last)
}

// decodeBase64 decodes as commons-codec's Base64 does, which hadoop-auth uses:
// libhdfs3 sends the URL-safe alphabet. Both alphabets are one, other characters
// are passed over, '=' is the end, and bits that make no byte are dropped.
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
		return nil // it cannot be: there is nothing but the alphabet
	}
	return raw[:n]
}

// defectiveToken is what a client is told of a token that is none.
const defectiveToken = "GSSException: Defective token detected"

// servlet is the path of the servlet that serves a request in Hadoop's KMS.
func servlet(path string) string {
	const kms = "/kms"
	if path != kms+"/jmx" && strings.HasPrefix(path, kms+"/") {
		return kms
	}
	return path
}
