package trustee

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"claviger"
)

// Port is the default port of a trustee. APIPath is the first part of the path of each request.
const (
	Port    = 11371
	APIPath = "/v1/"
)

// Verbs of requests. Each is posted to APIPath + verb.
const (
	VerbRegister = "register"
	VerbPut      = "put"
	VerbGet      = "get"
	VerbFind     = "find"
	VerbList     = "list"
	VerbDelete   = "delete"
	VerbUndelete = "undelete"
	VerbPurge    = "purge"
	VerbClients  = "clients"
)

// Verbs of an operator. The commands of the same name post them to the server of their host. The
// servers' own identity signs them.
const (
	VerbStatus  = "status"
	VerbPromote = "promote"
	VerbAlone   = "alone"
	VerbResync  = "resync"
)

// Verbs between the two servers of a pair. The identity of the servers signs them. Package replica
// defines their arguments and results.
const (
	VerbPeerHello   = "peer-hello"
	VerbPeerAppend  = "peer-append"
	VerbPeerEntries = "peer-entries"
	VerbPeerLoad    = "peer-load"
	VerbPeerDigest  = "peer-digest"
	VerbPeerYield   = "peer-yield"
	VerbPeerCompare = "peer-compare"
)

// ForPeer reports whether only the servers' own identity may use a verb: a verb of an operator, or
// one between the two servers.
func ForPeer(verb string) bool {
	switch verb {
	case VerbStatus, VerbPromote, VerbAlone, VerbResync,
		VerbPeerHello, VerbPeerAppend, VerbPeerEntries, VerbPeerLoad, VerbPeerDigest, VerbPeerYield, VerbPeerCompare:
		return true
	}
	return false
}

const (
	// MaxBody is the size limit of a request and of an answer. It has room for a content of
	// MaxContent bytes that is encoded in base64 twice.
	MaxBody = 2 << 20
	// MaxSkew is how much the clocks of client and server may differ.
	MaxSkew = 5 * time.Minute
	// nonceSize is the size of the nonce of a request, in bytes.
	nonceSize = 16
)

// envelope is the body of a request and of an answer: a payload, which is JSON, and a detached
// OpenPGP signature of the payload's bytes. Both are base64 in the envelope.
type envelope struct {
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"`
}

// requestPayload is what a client signs.
type requestPayload struct {
	Verb   string          `json:"verb"`
	Client string          `json:"client"` // fingerprint
	Server string          `json:"server"` // fingerprint of the server that the request is for
	Time   time.Time       `json:"time"`
	Nonce  []byte          `json:"nonce"`
	Args   json.RawMessage `json:"args"`
}

// answerPayload is what a server signs.
type answerPayload struct {
	// Request is the SHA-256 of the payload of the request, in hex. It ties the answer to the request.
	Request string          `json:"request"`
	Server  string          `json:"server"`
	Time    time.Time       `json:"time"`
	Error   string          `json:"error,omitempty"`
	Kind    string          `json:"kind,omitempty"`    // of the error, a claviger.Kind
	Replay  bool            `json:"replay,omitempty"`  // the error is ErrReplay
	Passive bool            `json:"passive,omitempty"` // the error is ErrPassive
	Result  json.RawMessage `json:"result,omitempty"`
}

// ErrReplay is in the error of a request that the server has already handled. A client that repeats a
// request because the answer was lost then knows that the first request succeeded.
var ErrReplay = errors.New("this request was already handled: it was sent twice, or somebody replays a recorded " +
	"request")

// ErrUnsure is in the error of a request for a deposit or client that one of two servers does not
// hold, and that the other server may hold. ReadAnswer compares its text, so the text must not change.
var ErrUnsure = errors.New("this Key Trustee Server does not hold that and cannot say whether it is there, since the " +
	"other one of the two may hold it: claviger trustee status, on its host, says what to do")

// ErrPassive is in the error of kind Unavailable that a passive server returns for a change. The
// server has changed nothing, and the other server may accept the change.
var ErrPassive = errors.New("this Key Trustee Server is the passive one of two, and changes are made at the active " +
	"one: claviger trustee status shows which that is, claviger trustee promote makes this server active")

// Arguments and results of the verbs.
type (
	// RegisterArgs are the client's public key as Party.Public writes it, and the organization's name
	// and secret. Result: RegisterResult.
	RegisterArgs struct {
		PublicKey []byte `json:"publicKey"`
		Org       string `json:"org"`
		Auth      string `json:"auth"`
		// Alone makes the server refuse the client, with kind KeyExists, if the organization already
		// has another client that is not disabled.
		Alone bool `json:"alone,omitempty"`
	}
	// ClientsResult are the clients of the sender's organization, the oldest first.
	ClientsResult struct {
		Org     string         `json:"org"`
		Clients []ListedClient `json:"clients"`
	}
	// ListedClient is what other clients of the organization may know of a client.
	ListedClient struct {
		Fingerprint string    `json:"fingerprint"`
		Created     time.Time `json:"created"`
		Disabled    bool      `json:"disabled,omitempty"`
	}
	// RegisterResult says whether the client is active at once, or waits until an operator accepts it.
	RegisterResult struct {
		Active bool `json:"active"`
	}
	// PutArgs are a sealed deposit, and the uuid of the deposit that it replaces.
	PutArgs struct {
		Deposit  Sealed `json:"deposit"`
		Replaces string `json:"replaces,omitempty"`
	}
	// GetArgs are the arguments of Box.Get. Result: Sealed.
	GetArgs struct {
		UUID string `json:"uuid"`
	}
	// FindArgs are the arguments of Box.Find. Result: Sealed.
	FindArgs struct {
		Label string `json:"label"`
	}
	// ListArgs are the arguments of Box.List. Result: []Sealed.
	ListArgs struct {
		Prefix  string `json:"prefix"`
		Deleted bool   `json:"deleted,omitempty"`
		After   string `json:"after,omitempty"`
		Limit   int    `json:"limit"`
	}
	// UUIDArgs are the arguments of delete, undelete and purge.
	UUIDArgs struct {
		UUIDs []string `json:"uuids"`
	}
)

// NewRequest makes and signs a request to the server with this fingerprint. The answer to the request
// must contain digest.
func (id *Identity) NewRequest(verb, server string, args any, now time.Time) (body []byte, digest string, err error) {
	const op = "trustee.NewRequest"
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, "", claviger.E(op, claviger.Internal, "", err)
	}
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // it never fails
	payload, err := json.Marshal(requestPayload{Verb: verb, Client: id.Fingerprint(), Server: server, Time: now.UTC(),
		Nonce: nonce, Args: raw})
	if err != nil {
		return nil, "", claviger.E(op, claviger.Internal, "", err)
	}
	body, err = id.envelope(payload, now)
	if err != nil {
		return nil, "", claviger.E(op, claviger.KindOf(err), "", err)
	}
	return body, digestOf(payload), nil
}

func (id *Identity) envelope(payload []byte, now time.Time) ([]byte, error) {
	signature, err := id.sign(payload, now)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{payload, signature})
}

func digestOf(payload []byte) string {
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:])
}

// Request is a request that a server received and checked. It may be a replay: that check needs the
// store of the server.
type Request struct {
	Verb   string
	Client *Party
	Time   time.Time
	Args   json.RawMessage
	// Digest identifies the request. If two requests have the same digest, one request was sent twice.
	Digest string
}

// ReadRequest checks a request: that it is for this server and this verb, that the client that it
// names has signed it, and that it is recent. client returns the public key of a client; a
// registration contains the key. Errors are of kind Invalid, or those of client.
func (id *Identity) ReadRequest(verb string, body []byte, now time.Time,
	client func(fingerprint string) (*Party, error)) (*Request, error) {
	const op = "trustee.ReadRequest"
	refuse := func(format string, args ...any) (*Request, error) {
		return nil, claviger.Errorf(op, claviger.Invalid, "", format, args...)
	}
	var e envelope
	if err := decodeStrict(body, &e); err != nil {
		return refuse("the request is not the JSON that it should be: %w", err)
	}
	var p requestPayload
	if err := decodeStrict(e.Payload, &p); err != nil {
		return refuse("the request's payload is not the JSON that it should be: %w", err)
	}
	if !wellFormed(p.Client, fingerprintLen, fingerprintLen) || len(p.Nonce) != nonceSize {
		return refuse("the request's payload lacks the client's fingerprint or a nonce of %d bytes", nonceSize)
	}
	var from *Party
	var err error
	if verb == VerbRegister {
		var args RegisterArgs
		if err := decodeStrict(p.Args, &args); err != nil {
			return refuse("the arguments of %s cannot be read: %w", verb, err)
		}
		if from, err = ReadParty(args.PublicKey); err != nil {
			return nil, err
		}
	} else if from, err = client(strings.ToUpper(p.Client)); err != nil {
		return nil, err
	}
	// Nothing in the payload counts before the signature is checked.
	if err := from.verify(e.Payload, e.Signature, now); err != nil {
		return refuse("the request does not have the signature of %s: %w", from, err)
	}
	switch {
	case !strings.EqualFold(p.Client, from.Fingerprint()):
		return refuse("the request names %s as its client, and was signed by %s", p.Client, from)
	case !strings.EqualFold(p.Server, id.Fingerprint()):
		return refuse("the request is meant for the server %s, and this is %s", p.Server, id)
	case p.Verb != verb:
		return refuse("a request to %s was sent to %s", p.Verb, verb)
	case p.Time.Sub(now).Abs() > MaxSkew:
		return refuse("the request was made at %s, but it is %s here: set the clocks of both by NTP",
			p.Time.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &Request{Verb: verb, Client: from, Time: p.Time, Args: p.Args, Digest: digestOf(e.Payload)}, nil
}

// ReadArgs reads a request's arguments. Kind Invalid.
func (r *Request) ReadArgs(into any) error {
	if err := decodeStrict(r.Args, into); err != nil {
		return claviger.Errorf("trustee.ReadArgs", claviger.Invalid, "", "the arguments of %s cannot be read: %w",
			r.Verb, err)
	}
	return nil
}

// NewAnswer makes and signs the answer to the request with this digest: result, or the kind and the
// text of err if it is not nil. The text of an error of kind Internal is not sent.
func (id *Identity) NewAnswer(digest string, result any, err error, now time.Time) ([]byte, error) {
	const op = "trustee.NewAnswer"
	p := answerPayload{Request: digest, Server: id.Fingerprint(), Time: now.UTC()}
	if err != nil {
		p.Kind, p.Error, p.Replay, p.Passive = claviger.KindOf(err).String(), err.Error(), errors.Is(err, ErrReplay),
			errors.Is(err, ErrPassive)
		if claviger.Is(err, claviger.Internal) {
			p.Error = "the server has failed; its log says why"
		}
	} else if result != nil {
		raw, err := json.Marshal(result)
		if err != nil {
			return nil, claviger.E(op, claviger.Internal, "", err)
		}
		p.Result = raw
	}
	payload, jerr := json.Marshal(p)
	if jerr != nil {
		return nil, claviger.E(op, claviger.Internal, "", jerr)
	}
	body, jerr := id.envelope(payload, now)
	if jerr != nil {
		return nil, claviger.E(op, claviger.Internal, "", jerr)
	}
	return body, nil
}

// remoteKinds are the kinds that the error in an answer may have. Any other kind counts as Internal.
var remoteKinds = []claviger.Kind{claviger.Invalid, claviger.KeyNotFound, claviger.KeyExists, claviger.Denied,
	claviger.Unavailable}

// errInvalidAnswer is in the error of an answer that is invalid or not authentic. The outcome of the
// request is unknown.
var errInvalidAnswer = errors.New("the answer is invalid")

type invalidAnswer struct{ error }

func (i *invalidAnswer) Unwrap() error        { return i.error }
func (i *invalidAnswer) Is(target error) bool { return target == errInvalidAnswer } //nolint:errorlint // this is its Is

// ReadAnswer checks the answer of the server to the request with this digest, and decodes its result
// into into, which may be nil. The error is the error in the answer, or of kind Invalid if the answer
// is invalid or not authentic.
func ReadAnswer(body []byte, server *Party, digest string, now time.Time, into any) error {
	const op = "trustee.ReadAnswer"
	refuse := func(format string, args ...any) error {
		return claviger.E(op, claviger.Invalid, "", &invalidAnswer{fmt.Errorf(format, args...)})
	}
	var e envelope
	if err := decodeStrict(body, &e); err != nil {
		return refuse("the answer of %s is not the JSON that it should be: %w", server, err)
	}
	if err := server.verify(e.Payload, e.Signature, now); err != nil {
		return refuse("the answer does not have the signature of the Key Trustee Server %s: is it another one, or "+
			"somebody between? (%w)", server, err)
	}
	var p answerPayload
	if err := decodeStrict(e.Payload, &p); err != nil {
		return refuse("the payload of the answer of %s is not the JSON that it should be: %w", server, err)
	}
	if subtle.ConstantTimeCompare([]byte(p.Request), []byte(digest)) != 1 ||
		!strings.EqualFold(p.Server, server.Fingerprint()) {
		return refuse("the answer of %s is to another request", server)
	}
	if p.Kind != "" {
		return p.err(server)
	}
	if into == nil {
		return nil
	}
	if err := decodeStrict(p.Result, into); err != nil {
		return refuse("the result of %s cannot be read: %w", server, err)
	}
	return nil
}

// err returns the error in an answer.
func (p *answerPayload) err(server *Party) error {
	kind := claviger.Internal
	for _, k := range remoteKinds {
		if k.String() == p.Kind {
			kind = k
		}
	}
	if p.Replay {
		return claviger.Errorf("trustee.Server", kind, "", "the Key Trustee Server %s says: %w", server, ErrReplay)
	}
	if p.Passive {
		return claviger.Errorf("trustee.Server", claviger.Unavailable, "", "the Key Trustee Server %s says: %w",
			server, ErrPassive)
	}
	// The payload has no field for ErrUnsure, because older clients would refuse an unknown field.
	if kind == claviger.Unavailable && strings.HasSuffix(p.Error, ErrUnsure.Error()) {
		return claviger.Errorf("trustee.Server", kind, "", "the Key Trustee Server %s says: %w", server, ErrUnsure)
	}
	return claviger.Errorf("trustee.Server", kind, "", "the Key Trustee Server %s says: %.500s", server, p.Error)
}
