package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"sync"
	"time"

	"claviger/secret"
)

// RecordKind is the kind of a record of a chain.
type RecordKind string

// The kinds of records.
const (
	EventRecord RecordKind = "event" // an audit event
	BeginRecord RecordKind = "begin" // a new process, or a new file, begins
	LostRecord  RecordKind = "lost"  // events could not be written, and are lost
	// LargeRecord replaces a record that is too long for a datagram; it is only sent to streams. Its seq, prev and
	// hash are those of the long record.
	LargeRecord RecordKind = "large"
)

// Record is one line of a chain.
//
// The line is a JSON object. Its first members are seq and prev, and its last member is hash. hash is the SHA-256 or,
// with a key, the HMAC-SHA-256 over two parts: the 32 bytes of prev, and the bytes of the line up to the comma before
// "hash", without the comma. So no canonical form of JSON is needed: the bytes in the file are the bytes that were
// hashed.
type Record struct {
	Seq  uint64 `json:"seq"`  // 1 more than that of the previous record
	Prev string `json:"prev"` // hash of the previous record; 64 zeros in the first record of a chain

	Time string     `json:"time"` // RFC 3339 in UTC, microseconds
	Node string     `json:"node"`
	Kind RecordKind `json:"kind"`

	// Of an event:
	Status   Status   `json:"status,omitempty"`
	Op       Op       `json:"op,omitempty"`
	KeyRight bool     `json:"keyRight,omitempty"` // op is a key-level right
	Key      string   `json:"key,omitempty"`
	Version  string   `json:"version,omitempty"`
	From     []string `json:"from,omitempty"`
	EDEKs    int      `json:"edeks,omitempty"`
	User     string   `json:"user,omitempty"`     // the user whose rights counted
	Short    string   `json:"short,omitempty"`    // user's short name, if it differs
	RealUser string   `json:"realUser,omitempty"` // the authenticated user that acts for User (doAs)
	// Token is the number of the delegation token that authenticated the request, or was issued, renewed or cancelled.
	Token    int32    `json:"token,omitempty"`
	Address  string   `json:"address,omitempty"`
	Request  string   `json:"request,omitempty"` // id, the same in the server's log
	Method   string   `json:"method,omitempty"`
	URL      string   `json:"url,omitempty"`
	Provider string   `json:"provider,omitempty"` // URI of the primary provider, or of the sources that answered
	Message  string   `json:"message,omitempty"`
	Cut      []string `json:"cut,omitempty"` // members that were shortened, see shorten

	// Of a BeginRecord:
	Format  int    `json:"format,omitempty"`  // of the following records; 1
	MAC     string `json:"mac,omitempty"`     // "sha256" or "hmac-sha256"
	Reason  string `json:"reason,omitempty"`  // "start" or "file"
	Torn    int    `json:"torn,omitempty"`    // bytes of an unfinished line that a crash left before this line
	Missing uint64 `json:"missing,omitempty"` // number of records that were written before this one, and do not exist

	// Of a LostRecord:
	Count uint64 `json:"count,omitempty"`

	// Of a LargeRecord:
	Bytes int `json:"bytes,omitempty"` // length of the line that it replaces

	Hash string `json:"hash,omitempty"`
}

// Limits. A client chooses the texts of a record, and one byte of a text may become six bytes in JSON. So the limits
// are for the JSON.
const (
	maxFrom = 64 // names of versions

	// maxBody is the maximum length in bytes of a record between prev and hash. It is far below the 65,507 bytes of a
	// datagram.
	maxBody = 16 << 10
	// A longer record keeps cutText bytes of each text, and cutFrom bytes of all names of versions together.
	cutText = 768
	cutFrom = 4 << 10

	// maxRecord is the maximum length in bytes of a record that Verify reads. Earlier versions limited texts before
	// they were escaped; their records have up to 2.2 MiB.
	maxRecord = 4 << 20

	recordFormat = 1
	timeOfRecord = "2006-01-02T15:04:05.000000Z"
)

type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

func parseDigest(s string) (d digest, err error) {
	if len(s) != 2*len(d) || strings.ToLower(s) != s {
		return d, fmt.Errorf("%.80q is not a hash of 64 hexadecimal digits", s)
	}
	_, err = hex.Decode(d[:], []byte(s))
	return d, err
}

// sealer makes hashes of records.
type sealer struct{ h hash.Hash }

func newSealer(key secret.Bytes) sealer {
	if len(key) == 0 {
		return sealer{sha256.New()}
	}
	return sealer{hmac.New(sha256.New, key)}
}

func (s sealer) sum(prev digest, line []byte) (d digest) {
	s.h.Reset()
	_, _ = s.h.Write(prev[:]) // a hash does not fail
	_, _ = s.h.Write(line)
	s.h.Sum(d[:0])
	return d
}

// seal appends a record to b, as a line, and returns its hash. body is the result of encodeBody.
func (s sealer) seal(b []byte, seq uint64, prev digest, body []byte) ([]byte, digest) {
	begin := len(b)
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"prev":"`...)
	b = hex.AppendEncode(b, prev[:])
	b = append(b, `",`...)
	b = append(b, body...)
	sum := s.sum(prev, b[begin:])
	b = append(b, hashMember...)
	b = hex.AppendEncode(b, sum[:])
	return append(b, "\"}\n"...), sum
}

const hashMember = `,"hash":"`

// split splits a line without its newline into the bytes that are hashed, and the hash.
func split(line []byte) (hashed []byte, sum digest, err error) {
	end := len(hashMember) + 2*len(sum) + len(`"}`)
	at := len(line) - end
	if at < 1 || !bytes.HasPrefix(line[at:], []byte(hashMember)) || !bytes.HasSuffix(line, []byte(`"}`)) {
		return nil, sum, errors.New("the line does not end with a hash: it is not a record, or was cut")
	}
	sum, err = parseDigest(string(line[at+len(hashMember) : len(line)-2]))
	return line[:at], sum, err
}

// ParseRecord reads a line. It checks the form, not the hash.
func ParseRecord(line []byte) (Record, error) {
	var r Record
	if _, _, err := split(line); err != nil {
		return r, err
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("the line is not a record: %w", err)
	}
	if d.More() {
		return r, errors.New("the line has more than one record")
	}
	if _, err := parseDigest(r.Prev); err != nil {
		return r, fmt.Errorf("member prev: %w", err)
	}
	if r.Seq == 0 {
		return r, errors.New("member seq is missing")
	}
	if want := `{"seq":` + strconv.FormatUint(r.Seq, 10) + `,"prev":"` + r.Prev +
		`",`; !bytes.HasPrefix(line, []byte(want)) {
		return r, errors.New("the line does not begin with seq and prev")
	}
	switch r.Kind {
	case EventRecord, BeginRecord, LostRecord, LargeRecord:
		return r, nil
	}
	return r, fmt.Errorf("member kind is %.40q, which is not a kind of record", r.Kind)
}

// encoder is a JSON encoder and its buffer.
type encoder struct {
	b bytes.Buffer
	e *json.Encoder
}

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.e = json.NewEncoder(&e.b)
	e.e.SetEscapeHTML(false)
	return e
}}

// encodeBody returns the members of a record between prev and hash.
func encodeBody(r Record) []byte {
	e, _ := encoders.Get().(*encoder)
	defer encoders.Put(e)
	e.b.Reset()
	r.Seq, r.Prev, r.Hash = 0, "", ""
	if err := e.e.Encode(r); err != nil {
		panic(err) // cannot happen: there are only strings and numbers
	}
	const head = `{"seq":0,"prev":"",`
	// JSON does not escape some characters that mislead a reader of the line: U+0085 ends a line for some readers,
	// U+202E reverses the rest of the line. Such characters can only be in JSON's strings, so inLine may escape them.
	return []byte(inLine(string(e.b.Bytes()[len(head) : e.b.Len()-len("}\n")])))
}

// encodeEvent returns encodeBody of an event. If that is longer than maxBody, the texts are shortened.
func encodeEvent(event *Event, node string) []byte {
	r := eventRecord(event, node)
	if r.textLen() <= maxBody { // otherwise the record is too long even without escapes
		if body := encodeBody(r); len(body) <= maxBody {
			return body
		}
	}
	r.shorten(cutText, cutFrom)
	return encodeBody(r)
}

// eventRecord returns the record of an event.
func eventRecord(event *Event, node string) Record {
	e := event.masked() // mask first: a shortened credential would not be recognized
	r := Record{
		Time: stamp(e.Time), Node: node, Kind: EventRecord, Status: e.Status,
		Op: e.Op, KeyRight: e.KeyRight, Key: e.Key, Version: e.Version, From: e.From, EDEKs: e.EDEKs,
		User: e.Caller.Name, Address: e.Caller.RemoteAddr, Request: e.Caller.RequestID,
		Method: e.Method, URL: e.URL, Provider: e.Provider, Message: e.Message,
	}
	if e.Caller.Short != e.Caller.Name {
		r.Short = e.Caller.Short
	}
	if e.Caller.Real != nil {
		r.RealUser = e.Caller.Real.Name
	}
	if r.Token = e.Caller.Token; r.Token == 0 {
		r.Token = e.Token
	}
	if len(r.From) > maxFrom {
		r.From, r.Cut = append(r.From[:maxFrom:maxFrom], more(len(e.From)-maxFrom)), []string{"from"}
	}
	return r
}

// stamp returns a time in the format of records.
func stamp(t time.Time) string { return t.UTC().Format(timeOfRecord) }
