package replica

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"claviger"
	"claviger/trustee/server"
)

// namedLosses is how many records a Loss names. It counts the others.
const namedLosses = 5

// Loss is what one store holds that another store lacks or holds in another state.
type Loss struct {
	Orgs     int      `json:"orgs"`
	Clients  int      `json:"clients"`
	Deposits int      `json:"deposits"`
	Names    []string `json:"names"` // of the first records, for people
}

// None reports whether nothing is lost.
func (l *Loss) None() bool { return l == nil || l.Orgs+l.Clients+l.Deposits == 0 }

// String counts and names what is lost.
func (l *Loss) String() string {
	all := l.Orgs + l.Clients + l.Deposits
	text := fmt.Sprintf("%d organizations, %d clients and %d deposits: %s", l.Orgs, l.Clients, l.Deposits,
		strings.Join(l.Names, ", "))
	if more := all - len(l.Names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// held is hashed as the state of a record.
type held struct {
	Names   []string
	Lists   [][]string
	Bytes   [][]byte
	Expires int64 // milliseconds since 1970; 0 is never
	Deleted bool
}

func list(l []string) []string { return append([]string{}, l...) } // nil and empty are equal

// holdings are the records of a store without the contents of deposits: a digest of the state of
// each record, by kind and name.
type holdings map[string][sha256.Size]byte

// holding returns a record's key and state in holdings, and its name for people. ok is false for
// records that may be dropped: remembered requests and expired deposits. A deposit's uuid stands for
// its content, which the owner has signed.
func holding(r server.Record, now time.Time) (key, name string, state [sha256.Size]byte, ok bool, err error) {
	var s held
	switch {
	case r.Org != nil:
		o := r.Org
		key, name = "org "+o.Name, fmt.Sprintf("organization %q", o.Name)
		s = held{Names: []string{o.UUID, o.Auth}, Lists: [][]string{list(o.Contacts)}}
	case r.Client != nil:
		c := r.Client
		key, name = "client "+c.Fingerprint, "client "+c.Fingerprint
		s = held{Names: []string{c.Org, string(c.State)}, Bytes: [][]byte{c.PublicKey}}
	case r.Deposit != nil:
		d := r.Deposit
		if !d.Expires.IsZero() && !d.Expires.After(now) {
			return "", "", state, false, nil
		}
		key, name = "deposit "+d.UUID, fmt.Sprintf("deposit %.200q", d.Label)
		s = held{Names: []string{d.Owner, d.Org, d.Label}, Lists: [][]string{list(d.Access)},
			Deleted: d.Sealed.Deleted != nil}
		if !d.Expires.IsZero() {
			s.Expires = d.Expires.UnixMilli()
		}
	default:
		return "", "", state, false, nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "", "", state, false, claviger.E("replica.holding", claviger.Internal, "", err)
	}
	return key, name, sha256.Sum256(text), true, nil
}

// add adds a record.
func (h holdings) add(r server.Record, now time.Time) error {
	key, _, state, ok, err := holding(r, now)
	if ok {
		h[key] = state
	}
	return err
}

// lacks counts a record of another store in lost if h does not hold it in the same state.
func (h holdings) lacks(r server.Record, now time.Time, lost *Loss) error {
	key, name, state, ok, err := holding(r, now)
	if err != nil || !ok {
		return err
	}
	if mine, there := h[key]; there && mine == state {
		return nil
	}
	lost.count(r, name)
	return nil
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
