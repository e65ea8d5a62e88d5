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

// Port is the trustee's, and APIPath is where requests are posted.
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

// Verbs of an operator, posted by the commands of the same name to the server of their host.
// They are signed by the servers' own identity.
const (
	VerbStatus  = "status"
	VerbPromote = "promote"
	VerbAlone   = "alone"
	VerbResync  = "resync"
)

// Verbs between the two servers of a pair, signed by their identity. Package replica has the
// arguments and results.
const (
	VerbPeerHello   = "peer-hello"
	VerbPeerAppend  = "peer-append"
	VerbPeerEntries = "peer-entries"
	VerbPeerLoad    = "peer-load"
	VerbPeerDigest  = "peer-digest"
	VerbPeerYield   = "peer-yield"
	VerbPeerCompare = "peer-compare"
)

// ForPeer reports whether a verb is for the servers' own identity alone: an operator's, or one
// between the two servers.
func ForPeer(verb string) bool {
	switch verb {
	case VerbStatus, VerbPromote, VerbAlone, VerbResync,
		VerbPeerHello, VerbPeerAppend, VerbPeerEntries, VerbPeerLoad, VerbPeerDigest, VerbPeerYield, VerbPeerCompare:
		return true
	}
	return false
}

const (
	// MaxBody bounds a request and an answer: a content at its longest, in base64
	// twice.
	MaxBody = 2 << 20
	// MaxSkew is how far the clocks of client and server may be apart.
	MaxSkew = 5 * time.Minute
	// nonceSize of a request, in bytes.
	nonceSize = 16
)

// envelope is what goes over the wire, both ways: a payload, which is JSON, and a
// detached OpenPGP signature over its bytes. Both are base64 in it.
type envelope struct {
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"`
}

// requestPayload is what a client signs.
type requestPayload struct {
	Verb   string          `json:"verb"`
	Client string          `json:"client"` // fingerprint
	Server string          `json:"server"` // fingerprint of whom it is meant for
	Time   time.Time       `json:"time"`
	Nonce  []byte          `json:"nonce"`
	Args   json.RawMessage `json:"args"`
}

// answerPayload is what a server signs.
type answerPayload struct {
	// Request is SHA-256 of the request's payload, in hex: an answer fits one request.
	Request string          `json:"request"`
	Server  string          `json:"server"`
	Time    time.Time       `json:"time"`
	Error   string          `json:"error,omitempty"`
	Kind    string          `json:"kind,omitempty"`    // of the error, a claviger.Kind
	Replay  bool            `json:"replay,omitempty"`  // the error is ErrReplay
	Passive bool            `json:"passive,omitempty"` // the error is ErrPassive
	Result  json.RawMessage `json:"result,omitempty"`
}

// ErrReplay is in the error of a request that came before. Who sent it again, since
// the first answer was lost, learns by it that the request was done.
var ErrReplay = errors.New("this request was done already: it came twice, or somebody sends what he has overheard")

// ErrUnsure is in the error of a request for what one of two servers does not hold,
// where the other may: it may be there.
var ErrUnsure = errors.New("this Key Trustee Server does not hold that and cannot say whether it is there, since the " +
	"other one of the two may hold it: claviger trustee status, on its host, says what to do")

// ErrPassive is in the error, of kind Unavailable, of a change that a passive
// server is asked for: nothing was changed, and the other server may take it.
var ErrPassive = errors.New("this Key Trustee Server is the passive one of two, and changes are made at the active " +
	"one: claviger trustee status shows which that is, claviger trustee promote makes this one active")

// Arguments and results of the verbs.
type (
	// RegisterArgs are the client's public key as Party.Public writes it, and the
	// organization's name and secret. Result: RegisterResult.
	RegisterArgs struct {
		PublicKey []byte `json:"publicKey"`
		Org       string `json:"org"`
		Auth      string `json:"auth"`
		// Alone: the client is to be the organization's only one. It is refused, with
		// kind KeyExists, where another that is not disabled was there before.
		Alone bool `json:"alone,omitempty"`
	}
	// ClientsResult are the clients of the asker's organization, the oldest first.
	ClientsResult struct {
		Org     string         `json:"org"`
		Clients []ListedClient `json:"clients"`
	}
	// ListedClient is a client as others of its organization may see it.
	ListedClient struct {
		Fingerprint string    `json:"fingerprint"`
		Created     time.Time `json:"created"`
		Disabled    bool      `json:"disabled,omitempty"`
	}
	// RegisterResult tells whether the client is let in at once, or waits for an
	// operator.
	RegisterResult struct {
		Active bool `json:"active"`
	}
	// PutArgs are a sealed deposit, and the uuid of one that it replaces.
	PutArgs struct {
		Deposit  Sealed `json:"deposit"`
		Replaces string `json:"replaces,omitempty"`
	}
	// GetArgs are the uuid. Result: Sealed.
	GetArgs struct {
		UUID string `json:"uuid"`
	}
	// FindArgs are the label. Result: Sealed.
	FindArgs struct {
		Label string `json:"label"`
	}
	// ListArgs are those of Box.List. Result: []Sealed.
	ListArgs struct {
		Prefix  string `json:"prefix"`
		Deleted bool   `json:"deleted,omitempty"`
		After   string `json:"after,omitempty"`
		Limit   int    `json:"limit"`
	}
	// UUIDArgs of delete, undelete and purge.
	UUIDArgs struct {
		UUIDs []string `json:"uuids"`
	}
)

// NewRequest signs a request to the server of that fingerprint. Of the body only
// answers with that digest fit.
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

// Request is one that a server was sent, checked as far as it can be without its
// store: it may still be a replay.
type Request struct {
	Verb   string
	Client *Party
	Time   time.Time
	Args   json.RawMessage
	// Digest names the request: two of the same digest are one, sent twice.
	Digest string
}

// ReadRequest checks a request: that it is meant for this server and this verb,
// signed by the client that it names, and of now. client returns the public key
// of a client; who registers brings his own. Kinds Invalid, and what client
// returns.
func (id *Identity) ReadRequest(verb string, body []byte, now time.Time,
	client func(fingerprint string) (*Party, error)) (*Request, error) {
	const op = "trustee.ReadRequest"
	refuse := func(format string, args ...any) (*Request, error) {
		return nil, claviger.Errorf(op, claviger.Invalid, "", format, args...)
	}
	var e envelope
	if err := strictly(body, &e); err != nil {
		return refuse("the request is not the JSON that it should be: %w", err)
	}
	var p requestPayload
	if err := strictly(e.Payload, &p); err != nil {
		return refuse("the request's payload is not the JSON that it should be: %w", err)
	}
	if !wellFormed(p.Client, fingerprintLen, fingerprintLen) || len(p.Nonce) != nonceSize {
		return refuse("the request's payload lacks the client's fingerprint or a nonce of %d bytes", nonceSize)
	}
	var from *Party
	var err error
	if verb == VerbRegister {
		var args RegisterArgs
		if err := strictly(p.Args, &args); err != nil {
			return refuse("the arguments of %s cannot be read: %w", verb, err)
		}
		if from, err = ReadParty(args.PublicKey); err != nil {
			return nil, err
		}
	} else if from, err = client(strings.ToUpper(p.Client)); err != nil {
		return nil, err
	}
	// Before the signature nothing that was said is believed.
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
		return refuse("the request is of %s, and here it is %s: set the clocks of both by NTP",
			p.Time.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &Request{Verb: verb, Client: from, Time: p.Time, Args: p.Args, Digest: digestOf(e.Payload)}, nil
}

// ReadArgs reads a request's arguments. Kind Invalid.
func (r *Request) ReadArgs(into any) error {
	if err := strictly(r.Args, into); err != nil {
		return claviger.Errorf("trustee.ReadArgs", claviger.Invalid, "", "the arguments of %s cannot be read: %w",
			r.Verb, err)
	}
	return nil
}

// NewAnswer signs the answer to a request of that digest: result, or where err is
// not nil its kind and text. A text of kind Internal stays here.
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

// remoteKinds are the kinds that a server's answer may have; others are Internal.
var remoteKinds = []claviger.Kind{claviger.Invalid, claviger.KeyNotFound, claviger.KeyExists, claviger.Denied,
	claviger.Unavailable}

// errUnbelieved is in the error of an answer that cannot be believed: what became of the
// request is not known.
var errUnbelieved = errors.New("the answer cannot be believed")

type unbelieved struct{ error }

func (u *unbelieved) Unwrap() error        { return u.error }
func (u *unbelieved) Is(target error) bool { return target == errUnbelieved } //nolint:errorlint // this is its Is

// ReadAnswer checks an answer of the server to the request of that digest, and
// reads its result into into, which may be nil. The error is what the server
// says, or of kind Invalid where the answer cannot be believed.
func ReadAnswer(body []byte, server *Party, digest string, now time.Time, into any) error {
	const op = "trustee.ReadAnswer"
	refuse := func(format string, args ...any) error {
		return claviger.E(op, claviger.Invalid, "", &unbelieved{fmt.Errorf(format, args...)})
	}
	var e envelope
	if err := strictly(body, &e); err != nil {
		return refuse("the answer of %s is not the JSON that it should be: %w", server, err)
	}
	if err := server.verify(e.Payload, e.Signature, now); err != nil {
		return refuse("the answer does not have the signature of the Key Trustee Server %s: is it another one, or "+
			"somebody between? (%w)", server, err)
	}
	var p answerPayload
	if err := strictly(e.Payload, &p); err != nil {
		return refuse("the payload of the answer of %s is not the JSON that it should be: %w", server, err)
	}
	if subtle.ConstantTimeCompare([]byte(p.Request), []byte(digest)) != 1 ||
		!strings.EqualFold(p.Server, server.Fingerprint()) {
		return refuse("the answer of %s is to another request", server)
	}
	if p.Kind != "" {
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
		// It has no mark of its own in the payload, which older clients could not read.
		if kind == claviger.Unavailable && strings.HasSuffix(p.Error, ErrUnsure.Error()) {
			return claviger.Errorf("trustee.Server", kind, "", "the Key Trustee Server %s says: %w", server, ErrUnsure)
		}
		return claviger.Errorf("trustee.Server", kind, "", "the Key Trustee Server %s says: %.500s", server, p.Error)
	}
	if into == nil {
		return nil
	}
	if err := strictly(p.Result, into); err != nil {
		return refuse("the result of %s cannot be read: %w", server, err)
	}
	return nil
}
