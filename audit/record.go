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

// RecordKind says what a record of a chain tells of.
type RecordKind string

// The kinds of records.
const (
	EventRecord RecordKind = "event" // an audit event
	BeginRecord RecordKind = "begin" // writing begins, in a new process or a new file
	LostRecord  RecordKind = "lost"  // events that could not be written, and were not kept
	// LargeRecord stands, on a stream of datagrams alone, for a record that fits none:
	// its seq, prev and hash are those of that record.
	LargeRecord RecordKind = "large"
)

// Record is one line of a chain.
//
// The line is a JSON object whose first members are seq and prev and whose last
// is hash. hash is the SHA-256 (or, with a key, the HMAC-SHA-256) over the 32
// bytes that prev names, followed by the line's own bytes up to, and without,
// the comma before "hash". So there is no canonical form to agree on: what was
// hashed is what stands in the file.
type Record struct {
	Seq  uint64 `json:"seq"`  // 1 more than that of the record before
	Prev string `json:"prev"` // hash of the record before; 64 zeros for the first of all

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
	User     string   `json:"user,omitempty"`     // whose rights counted
	Short    string   `json:"short,omitempty"`    // user's short name, where it differs
	RealUser string   `json:"realUser,omitempty"` // who authenticated, where he acts for user (doAs)
	// number of the delegation token: brought by the request, or issued, renewed, cancelled
	Token    int32    `json:"token,omitempty"`
	Address  string   `json:"address,omitempty"`
	Request  string   `json:"request,omitempty"` // id, the same in the server's log
	Method   string   `json:"method,omitempty"`
	URL      string   `json:"url,omitempty"`
	Provider string   `json:"provider,omitempty"` // URI of the primary, or of the sources that answered
	Message  string   `json:"message,omitempty"`
	Cut      []string `json:"cut,omitempty"` // members that are not here in whole, see shorten

	// Of a begin:
	Format  int    `json:"format,omitempty"`  // of the records that follow; 1
	MAC     string `json:"mac,omitempty"`     // "sha256" or "hmac-sha256"
	Reason  string `json:"reason,omitempty"`  // "start" or "file"
	Torn    int    `json:"torn,omitempty"`    // bytes of an unfinished line that a crash left before this one
	Missing uint64 `json:"missing,omitempty"` // records before this one that were written, and are gone

	// Of a loss:
	Count uint64 `json:"count,omitempty"`

	// Of a large:
	Bytes int `json:"bytes,omitempty"` // of the line that it stands for

	Hash string `json:"hash,omitempty"`
}

// Bounds. A client makes up the texts of a record, and a character of them may take six
// bytes in JSON. So what is bounded is the record as it is written.
const (
	maxFrom = 64 // names of versions

	// maxBody is the most that a record may take between prev and hash. It lies far below
	// the 65,507 bytes of a datagram.
	maxBody = 16 << 10
	// A record above it keeps that much of each text, and of all names of versions together.
	cutText = 768
	cutFrom = 4 << 10

	// maxRecord is what Verify reads at most: records of earlier versions, which bounded
	// texts before they were escaped, took up to 2.2 MiB.
	maxRecord = 4 << 20

	recordFormat = 1
	timeOfRecord = "2006-01-02T15:04:05.000000Z"
)

type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

func parseDigest(s string) (d digest, err error) {
	if len(s) != 2*len(d) || strings.ToLower(s) != s {
		return d, fmt.Errorf("%.80q is no hash of 64 hexadecimal digits", s)
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

// seal appends a record to b, as a line, and returns its hash. body is what
// encodeBody made.
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

// split takes a line (without its newline) apart into what is hashed and the
// hash.
func split(line []byte) (hashed []byte, sum digest, err error) {
	end := len(hashMember) + 2*len(sum) + len(`"}`)
	at := len(line) - end
	if at < 1 || !bytes.HasPrefix(line[at:], []byte(hashMember)) || !bytes.HasSuffix(line, []byte(`"}`)) {
		return nil, sum, errors.New("the line does not end with a hash: it is no record, or was cut")
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
		return r, fmt.Errorf("the line is no record: %w", err)
	}
	if d.More() {
		return r, errors.New("there is more than one record in the line")
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
	return r, fmt.Errorf("member kind is %.40q, which is not known", r.Kind)
}

// encoder is a JSON encoder and what it writes into.
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
		panic(err) // strings and numbers only
	}
	const head = `{"seq":0,"prev":"",`
	// JSON leaves characters as they are that mislead a reader of the line: U+0085 ends a line for some
	// readers, U+202E turns the rest of the line around. Only JSON's strings hold such characters.
	return []byte(inLine(string(e.b.Bytes()[len(head) : e.b.Len()-len("}\n")])))
}

// encodeEvent returns what encodeBody does of an event, shortened where it is above
// maxBody.
func encodeEvent(event *Event, node string) []byte {
	r := eventRecord(event, node)
	if r.long() <= maxBody { // else nothing of it is escaped in vain
		if body := encodeBody(r); len(body) <= maxBody {
			return body
		}
	}
	r.shorten(cutText, cutFrom)
	return encodeBody(r)
}

// eventRecord is the record of an event.
func eventRecord(event *Event, node string) Record {
	e := event.masked() // before the texts are shortened
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

// stamp is a time as records write it.
func stamp(t time.Time) string { return t.UTC().Format(timeOfRecord) }
