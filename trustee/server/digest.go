package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"time"

	"claviger"
)

// stated is hashed for a record. The form is the same for every store, time zone and way of writing an
// empty list. Times are milliseconds since 1970; 0 is never.
type stated struct {
	Kind  string
	Names []string
	Lists [][]string
	Bytes [][]byte
	Times []int64
	Flag  bool
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func list(l []string) []string { return append([]string{}, l...) }

// A Digester makes a digest of the records of Export, in their order. Two stores with equal digests
// hold the same organizations, clients and deposits. Remembered requests do not count. The zero value
// is ready.
type Digester struct {
	sum hash.Hash
	// Orgs, Clients and Deposits are how many of each were added.
	Orgs, Clients, Deposits int
}

// Add takes the next record. Kind Internal for one that holds nothing.
func (d *Digester) Add(r Record) error {
	var s stated
	switch {
	case r.Org != nil:
		o := r.Org
		s = stated{Kind: "org", Names: []string{o.Name, o.UUID, o.Auth}, Lists: [][]string{list(o.Contacts)},
			Times: []int64{millis(o.Created)}}
		d.Orgs++
	case r.Client != nil:
		c := r.Client
		s = stated{Kind: "client", Names: []string{c.Fingerprint, c.Org, string(c.State)}, Bytes: [][]byte{c.PublicKey},
			Times: []int64{millis(c.Created)}}
		d.Clients++
	case r.Deposit != nil:
		p := r.Deposit
		var deleted int64
		if p.Sealed.Deleted != nil {
			deleted = millis(*p.Sealed.Deleted)
		}
		s = stated{Kind: "deposit", Names: []string{p.UUID, p.Owner, p.Org, p.Label}, Lists: [][]string{list(p.Access)},
			Bytes: [][]byte{p.Sealed.Statement, p.Sealed.Signature, p.Sealed.Content},
			Times: []int64{millis(p.Expires), deleted}, Flag: p.Wrapped}
		d.Deposits++
	case r.Once != nil:
		return nil
	default:
		return claviger.Errorf("server.Digester", claviger.Internal, "", "a record that holds nothing")
	}
	line, err := json.Marshal(s)
	if err != nil {
		return claviger.E("server.Digester", claviger.Internal, "", err)
	}
	if d.sum == nil {
		d.sum = sha256.New()
	}
	_, _ = d.sum.Write(append(line, '\n')) // a hash takes all
	return nil
}

// Sum is the digest of all records that were added, 64 hex digits.
func (d *Digester) Sum() string {
	if d.sum == nil {
		d.sum = sha256.New()
	}
	return hex.EncodeToString(d.sum.Sum(nil))
}

// StateDigest is the digest of everything that a store holds now.
func StateDigest(ctx context.Context, s Store) (string, error) {
	var d Digester
	if err := s.Export(ctx, d.Add); err != nil {
		return "", err
	}
	return d.Sum(), nil
}
