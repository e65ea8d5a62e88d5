package trustee

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"claviger"
)

func known(parties ...*Identity) func(string) (*Party, error) {
	return func(fingerprint string) (*Party, error) {
		for _, p := range parties {
			if p.Fingerprint() == fingerprint {
				return &p.Party, nil
			}
		}
		return nil, claviger.Errorf("test", claviger.Denied, "", "the client %s is not known", fingerprint)
	}
}

// remade returns body with a changed envelope.
func remade(t *testing.T, body []byte, change func(*envelope)) []byte {
	t.Helper()
	var e envelope
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatal(err)
	}
	change(&e)
	out, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// forged returns the request body with a changed payload and a signature of signer. The request still names its client.
func forged(t *testing.T, body []byte, signer *Identity, change func(*requestPayload)) []byte {
	t.Helper()
	var e envelope
	var p requestPayload
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		t.Fatal(err)
	}
	change(&p)
	payload, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signer.envelope(payload, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRequest: a request is read by the server that it is addressed to, if the two clocks are not too far apart.
func TestRequest(t *testing.T) {
	client, server := pair()
	now := time.Now()
	body, digest, err := client.NewRequest(VerbFind, server.Fingerprint(), FindArgs{Label: "key/zone1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, skew := range []time.Duration{0, 4 * time.Minute, -4 * time.Minute} {
		r, err := server.ReadRequest(VerbFind, body, now.Add(skew), known(client))
		if err != nil {
			t.Fatal(err)
		}
		var args FindArgs
		if err := r.ReadArgs(&args); err != nil || args.Label != "key/zone1" ||
			r.Client.Fingerprint() != client.Fingerprint() || r.Digest != digest {
			t.Errorf("%+v, %+v, %v", r, args, err)
		}
		if err := r.ReadArgs(new(GetArgs)); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("arguments of another verb: %v", err)
		}
	}
	again, second, err := client.NewRequest(VerbFind, server.Fingerprint(), FindArgs{Label: "key/zone1"}, now)
	if err != nil || second == digest || bytes.Equal(again, body) {
		t.Errorf("two requests are the same (%v)", err)
	}
}

// TestHostileRequests: a server refuses forged, damaged and old requests.
func TestHostileRequests(t *testing.T) {
	client, server := pair()
	now := time.Now()
	good, _, err := client.NewRequest(VerbGet, server.Fingerprint(), GetArgs{UUID: "u"}, now)
	if err != nil {
		t.Fatal(err)
	}
	toOther, _, err := client.NewRequest(VerbGet, client.Fingerprint(), GetArgs{}, now)
	if err != nil {
		t.Fatal(err)
	}
	impostor := func(change func(*requestPayload)) []byte { return forged(t, good, server, change) }
	var public bytes.Buffer
	if err := server.Public(&public); err != nil {
		t.Fatal(err)
	}
	stolen, err := json.Marshal(RegisterArgs{PublicKey: public.Bytes(), Org: "ORG"})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		verb string
		body []byte
		at   time.Time
		want string
	}{
		"nothing":         {VerbGet, nil, now, "JSON"},
		"no JSON":         {VerbGet, []byte("get"), now, "JSON"},
		"two":             {VerbGet, append(bytes.Clone(good), good...), now, "follows"},
		"an unknown name": {VerbGet, []byte(`{"payload":"","signature":"","x":1}`), now, "unknown field"},
		"cut off":         {VerbGet, good[:len(good)-10], now, "JSON"},
		"no signature": {VerbGet, remade(t, good, func(e *envelope) { e.Signature = nil }), now,
			"does not have the signature"},
		"a changed payload": {VerbGet, remade(t, good,
			func(e *envelope) { e.Payload = bytes.Replace(e.Payload, []byte(`"u"`), []byte(`"v"`), 1) }), now,
			"does not have the signature"},
		"another verb":   {VerbPurge, good, now, "a request to get was sent to purge"},
		"another server": {VerbGet, toOther, now, "meant for the server " + client.Fingerprint()},
		"an impostor": {VerbGet, impostor(func(*requestPayload) {}), now, "does not have the signature of " +
			client.String()},
		"an unknown client": {VerbGet, impostor(func(p *requestPayload) { p.Client = server.Fingerprint() }), now,
			"not known"},
		"no client":     {VerbGet, impostor(func(p *requestPayload) { p.Client = "../.." }), now, "fingerprint"},
		"a short nonce": {VerbGet, impostor(func(p *requestPayload) { p.Nonce = []byte{1} }), now, "nonce"},
		"an hour late":  {VerbGet, good, now.Add(time.Hour), "NTP"},
		"an hour early": {VerbGet, good, now.Add(-time.Hour), "NTP"},
		"another's key": {VerbRegister, impostor(func(p *requestPayload) { p.Verb, p.Args = VerbRegister, stolen }),
			now, "names " + client.Fingerprint()},
		"registration without a key": {VerbRegister, impostor(func(p *requestPayload) {
			p.Verb, p.Args = VerbRegister, json.RawMessage(`{"publicKey":"AAAA","org":"o","auth":"a"}`)
		}), now, ""},
		"registration with an unknown name": {VerbRegister, impostor(func(p *requestPayload) {
			p.Verb, p.Args = VerbRegister, json.RawMessage(`{"x":1}`)
		}), now, "the arguments of register cannot be read"},
		"a payload that is not JSON": {VerbGet, remade(t, good, func(e *envelope) { e.Payload = []byte("get") }), now,
			"the request's payload is not the JSON"},
	} {
		r, err := server.ReadRequest(c.verb, c.body, c.at, known(client))
		if r != nil || !(claviger.Is(err, claviger.Invalid) || claviger.Is(err, claviger.Denied)) ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %q", what, r, err, c.want)
		}
	}
}

// TestHostileAnswers: a client refuses forged and damaged answers, and passes on the errors of a server.
func TestHostileAnswers(t *testing.T) {
	server, other := pair()
	now := time.Now()
	answer := func(id *Identity, digest string, result any, err error) []byte {
		t.Helper()
		body, aerr := id.NewAnswer(digest, result, err, now)
		if aerr != nil {
			t.Fatal(aerr)
		}
		return body
	}
	good := answer(server, "d1", RegisterResult{Active: true}, nil)
	var result RegisterResult
	if err := ReadAnswer(good, &server.Party, "d1", now, &result); err != nil || !result.Active {
		t.Fatalf("%+v, %v", result, err)
	}
	if err := ReadAnswer(answer(server, "d1", nil, nil), &server.Party, "d1", now, nil); err != nil {
		t.Error(err)
	}
	notJSON, err := server.envelope([]byte("answer"), now)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		body []byte
		kind claviger.Kind
		want string
	}{
		"nothing":                    {nil, claviger.Invalid, "JSON"},
		"a payload that is not JSON": {notJSON, claviger.Invalid, "the payload of the answer"},
		"of another": {answer(other, "d1", RegisterResult{}, nil), claviger.Invalid,
			"another one, or somebody between"},
		"to another": {answer(server, "d2", RegisterResult{}, nil), claviger.Invalid, "to another request"},
		"changed": {remade(t, good,
			func(e *envelope) { e.Payload = bytes.Replace(e.Payload, []byte("true"), []byte("false"), 1) }),
			claviger.Invalid, "signature"},
		"unsigned":         {remade(t, good, func(e *envelope) { e.Signature = nil }), claviger.Invalid, "signature"},
		"cut off":          {good[:len(good)/2], claviger.Invalid, "JSON"},
		"another's result": {answer(server, "d1", []string{"x"}, nil), claviger.Invalid, "cannot be read"},
		"a refusal": {answer(server, "d1", nil, claviger.Errorf("s", claviger.Denied, "",
			"the client is disabled")), claviger.Denied, "is disabled"},
		"a fault": {answer(server, "d1", nil, claviger.Errorf("s", claviger.Internal, "", "/var/lib/secret")),
			claviger.Internal, "its log says why"},
		"an unexpected kind": {answer(server, "d1", nil, claviger.Errorf("s", claviger.KeyDenied, "", "x")),
			claviger.Internal, "x"},
	} {
		if err := ReadAnswer(c.body, &server.Party, "d1", now, new(RegisterResult)); !claviger.Is(err, c.kind) ||
			!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "/var/lib") {
			t.Errorf("%s: %v; want %v, %q", what, err, c.kind, c.want)
		}
	}
}

// TestStatement: Read returns a sealed deposit as it was. It refuses a deposit that was changed, that breaks a limit,
// or that another client has sealed.
func TestStatement(t *testing.T) {
	owner, other := pair()
	now := time.Now()
	d := Deposit{UUID: NewUUID(), Label: "key/zone1", Description: "x", Expires: now.Add(time.Hour),
		Access: []string{other.Fingerprint()}, Content: []byte("sealed")}
	s, err := owner.seal(d, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Read(&owner.Party, now)
	if err != nil || got.UUID != d.UUID || got.Owner != owner.Fingerprint() || got.Label != d.Label ||
		!bytes.Equal(got.Content, d.Content) || got.Expires.Sub(d.Expires).Abs() > time.Millisecond ||
		len(got.Access) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	list := *s
	list.Content = nil // as in lists
	if got, err := list.Read(&owner.Party, now); err != nil || got.Digest == "" {
		t.Errorf("%+v, %v", got, err)
	}
	many := make([]string, MaxAccess+1)
	for i := range many {
		many[i] = fmt.Sprintf("%040d", i)
	}
	// with seals a changed deposit.
	with := func(change func(d *Deposit)) func(*Sealed) {
		changed := d
		change(&changed)
		return func(s *Sealed) { *s, _ = resealed(owner, changed, now) }
	}
	for what, change := range map[string]func(s *Sealed){
		"another's":       func(s *Sealed) { *s, _ = resealed(other, d, now) },
		"swapped content": func(s *Sealed) { s.Content = []byte("another") },
		"empty content":   func(s *Sealed) { s.Content = []byte{} },
		"a changed label": func(s *Sealed) {
			s.Statement = bytes.Replace(s.Statement, []byte("zone1"), []byte("zone2"), 1)
		},
		"no signature": func(s *Sealed) { s.Signature = nil },
		"a long label": with(func(d *Deposit) { d.Label = strings.Repeat("l", MaxLabel+1) }),
		"no label":     with(func(d *Deposit) { d.Label = "" }),
		"a long description": with(func(d *Deposit) {
			d.Description = strings.Repeat("l", MaxDescription+1)
		}),
		"a uuid that is a path":              with(func(d *Deposit) { d.UUID = "../../../../../../../../etc/passwd" }),
		"too many readers":                   with(func(d *Deposit) { d.Access = many }),
		"a reader that is not a fingerprint": with(func(d *Deposit) { d.Access = []string{"bob"} }),
		"a long content":                     with(func(d *Deposit) { d.Content = make([]byte, MaxContent+1) }),
	} {
		c := *s
		change(&c)
		if got, err := c.Read(&owner.Party, now); !claviger.Is(err, claviger.Invalid) || got.UUID != "" {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

// TestStatementForm: a statement that its owner has signed, but that no client makes, is refused.
func TestStatementForm(t *testing.T) {
	owner, _ := pair()
	now := time.Now()
	short, err := json.Marshal(statement{UUID: NewUUID(), Owner: owner.Fingerprint(), Label: "key/a", Digest: "ab"})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"no JSON":            "the statement of a deposit of " + owner.String() + " cannot be read",
		`{"owner":"","x":1}`: "unknown field",
		string(short):        `"ab" is not a digest`,
	} {
		signature, err := owner.sign([]byte(text), now)
		if err != nil {
			t.Fatal(err)
		}
		s := Sealed{Statement: []byte(text), Signature: signature}
		if got, err := s.Read(&owner.Party, now); !claviger.Is(err, claviger.Invalid) || got.UUID != "" ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	if at, err := (&Sealed{Statement: []byte("no JSON")}).Made(); !claviger.Is(err, claviger.Invalid) || !at.IsZero() {
		t.Errorf("Made: %v, %v", at, err)
	}
}

// TestAnswerErrors: a client can distinguish the errors that it must handle, and no other error is taken for one.
func TestAnswerErrors(t *testing.T) {
	server, _ := pair()
	now := time.Now()
	unsure := errors.New(ErrUnsure.Error())
	for what, tt := range map[string]struct {
		sent error
		want error // nil: none of the three
	}{
		"a replay":         {claviger.E("s", claviger.Invalid, "", ErrReplay), ErrReplay},
		"a passive server": {claviger.E("s", claviger.Unavailable, "", ErrPassive), ErrPassive},
		"an unsure server": {claviger.E("s", claviger.Unavailable, "", ErrUnsure), ErrUnsure},
		"the same text":    {claviger.E("s", claviger.Denied, "", unsure), nil},
		"another error":    {claviger.Errorf("s", claviger.Unavailable, "", "the store does not answer"), nil},
	} {
		body, err := server.NewAnswer("d", nil, tt.sent, now)
		if err != nil {
			t.Fatal(err)
		}
		err = ReadAnswer(body, &server.Party, "d", now, nil)
		if !claviger.Is(err, claviger.KindOf(tt.sent)) {
			t.Errorf("%s: %v", what, err)
		}
		for _, known := range []error{ErrReplay, ErrPassive, ErrUnsure} {
			if errors.Is(err, known) != (known == tt.want) {
				t.Errorf("%s: %v is %q: %t", what, err, known, errors.Is(err, known))
			}
		}
	}
	// An invalid answer keeps the error that was found in it.
	err := ReadAnswer([]byte("{"), &server.Party, "d", now, nil)
	if !errors.Is(err, errInvalidAnswer) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half an answer: %v", err)
	}
}

// TestForPeer checks which verbs are for the other server and its operator.
func TestForPeer(t *testing.T) {
	for verb, want := range map[string]bool{VerbRegister: false, VerbPut: false, VerbGet: false, VerbFind: false,
		VerbList: false, VerbDelete: false, VerbUndelete: false, VerbPurge: false, VerbClients: false, "": false,
		VerbStatus: true, VerbPromote: true, VerbAlone: true, VerbResync: true, VerbPeerHello: true,
		VerbPeerAppend: true, VerbPeerEntries: true, VerbPeerLoad: true, VerbPeerDigest: true, VerbPeerYield: true,
		VerbPeerCompare: true} {
		if got := ForPeer(verb); got != want {
			t.Errorf("%q: %t", verb, got)
		}
	}
}

func resealed(id *Identity, d Deposit, now time.Time) (Sealed, error) {
	s, err := id.seal(d, now)
	if err != nil {
		return Sealed{}, err
	}
	return *s, nil
}

// FuzzRequest: nobody without the client's key can make a request that the server accepts, nor without the server's key
// an answer.
func FuzzRequest(f *testing.F) {
	client, server := pair()
	now := time.Now()
	body, digest, err := client.NewRequest(VerbGet, server.Fingerprint(), GetArgs{UUID: "u"}, now)
	if err != nil {
		f.Fatal(err)
	}
	answer, err := server.NewAnswer(digest, nil, nil, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add(answer)
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := server.ReadRequest(VerbGet, data, now, known(client)); err == nil && r.Digest != digest {
			t.Errorf("a forged request: %q", data)
		}
		if ReadAnswer(data, &server.Party, "another", now, nil) == nil {
			t.Errorf("a forged answer: %q", data)
		}
	})
}
