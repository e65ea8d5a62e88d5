package authn

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Negotiator accepts the tokens of SPNEGO, wrapped or raw Kerberos. Its method
// is called from many goroutines.
type Negotiator interface {
	// Accept returns the principal that a client's token proves, and the token to
	// answer with. One token is all that a handshake takes; what would need more
	// is an error. Errors are a *NegotiationError.
	Accept(token []byte) (client string, reply []byte, err error)
}

// NegotiationError says why a client's token is refused.
type NegotiationError struct {
	// Reason is for the caller, in the words of Java's acceptor.
	Reason string
	// Explanation is for the operator alone: what is wrong, and the cure.
	Explanation string
	Err         error
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
}

// endpointForm is what Hadoop takes for the path of a servlet.
var endpointForm = regexp.MustCompile(`^/\w+$`)

// NewKerberos makes the handler. Requests to the servlets of whitelist
// (kerberos.endpoint.whitelist: "/jmx" and the like) are anonymous.
func NewKerberos(n Negotiator, whitelist []string) (*Kerberos, error) {
	k := &Kerberos{negotiator: n, whitelist: make(map[string]bool), kind: kerberosTokenType}
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
			Explanation: "the Authorization header says Negotiate, and no token in base64 follows; the client, or a proxy in between, has broken it"}}
	}
	client, reply, err := k.negotiator.Accept(raw)
	if err != nil {
		refusal := &Refusal{Kind: BadTicket, Reason: defectiveToken, Explanation: err.Error()}
		var known *NegotiationError
		if errors.As(err, &known) {
			refusal.Reason = known.Reason
		}
		return attempt{refusal: refusal}
	}
	var att attempt
	if len(reply) > 0 {
		att.reply = Negotiate + " " + base64.StdEncoding.EncodeToString(reply)
	}
	if !validName(client) {
		att.refusal = &Refusal{Kind: BadTicket,
			Reason:      "java.lang.IllegalArgumentException: userName is NULL, empty or contains a '&'",
			Explanation: fmt.Sprintf("the ticket is good, but its principal %q cannot be a user here: it is too long, or holds characters that would break a cookie or a log", client)}
		return att
	}
	att.token = &token{principal: client, kind: k.kind}
	return att
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
