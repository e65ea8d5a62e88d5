package replica

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"claviger/trustee/server"
)

// namedLosses is how many records a Loss names. It counts all records.
const namedLosses = 5

// Loss describes the records of one store that another store lacks, or holds in another state.
type Loss struct {
	Orgs     int      `json:"orgs"`
	Clients  int      `json:"clients"`
	Deposits int      `json:"deposits"`
	Names    []string `json:"names"` // readable names of the first records
}

// None reports whether there are no such records.
func (l *Loss) None() bool { return l == nil || l.Orgs+l.Clients+l.Deposits == 0 }

// String returns the counts and the names.
func (l *Loss) String() string {
	all := l.Orgs + l.Clients + l.Deposits
	text := fmt.Sprintf("%d organizations, %d clients and %d deposits: %s", l.Orgs, l.Clients, l.Deposits,
		strings.Join(l.Names, ", "))
	if more := all - len(l.Names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// recordState is the state of a record. Its hash is compared.
type recordState struct {
	Names   []string
	Lists   [][]string
	Bytes   [][]byte
	Expires int64 // milliseconds since 1970; 0 is never
	Deleted bool
}

// nonNil returns a copy that is not nil, so that nil and an empty list have the same hash.
func nonNil(l []string) []string { return append([]string{}, l...) }

// holdings are the records of a store without the contents of deposits: the hash of the state of each
// record, by kind and name.
type holdings map[string][sha256.Size]byte

// holding returns the key and the state of a record in holdings, and a readable name. ok is false for
// records that may be lost: recorded requests and expired deposits. The state does not contain the
// content of a deposit, because the owner has signed the content together with the uuid.
func holding(r server.Record, now time.Time) (key, name string, state [sha256.Size]byte, ok bool) {
	var s recordState
	switch {
	case r.Org != nil:
		o := r.Org
		key, name = "org "+o.Name, fmt.Sprintf("organization %q", o.Name)
		s = recordState{Names: []string{o.UUID, o.Auth}, Lists: [][]string{nonNil(o.Contacts)}}
	case r.Client != nil:
		c := r.Client
		key, name = "client "+c.Fingerprint, "client "+c.Fingerprint
		s = recordState{Names: []string{c.Org, string(c.State)}, Bytes: [][]byte{c.PublicKey}}
	case r.Deposit != nil:
		d := r.Deposit
		if !d.Expires.IsZero() && !d.Expires.After(now) {
			return "", "", state, false
		}
		key, name = "deposit "+d.UUID, fmt.Sprintf("deposit %.200q", d.Label)
		s = recordState{Names: []string{d.Owner, d.Org, d.Label}, Lists: [][]string{nonNil(d.Access)},
			Deleted: d.Sealed.Deleted != nil}
		if !d.Expires.IsZero() {
			s.Expires = d.Expires.UnixMilli()
		}
	default:
		return "", "", state, false
	}
	text, _ := json.Marshal(s) // JSON can hold each text and number
	return key, name, sha256.Sum256(text), true
}

// add adds a record.
func (h holdings) add(r server.Record, now time.Time) {
	if key, _, state, ok := holding(r, now); ok {
		h[key] = state
	}
}

// lacks counts a record of another store in lost unless h holds it in the same state.
func (h holdings) lacks(r server.Record, now time.Time, lost *Loss) {
	key, name, state, ok := holding(r, now)
	if mine, there := h[key]; ok && (!there || mine != state) {
		lost.count(r, name)
	}
}

// count counts a record.
func (l *Loss) count(r server.Record, name string) {
	switch {
	case r.Org != nil:
		l.Orgs++
	case r.Client != nil:
		l.Clients++
	default:
		l.Deposits++
	}
	if len(l.Names) < namedLosses {
		l.Names = append(l.Names, name)
	}
}
