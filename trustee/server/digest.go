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

// digestInput is the form of a record for its digest. It depends neither on the store, nor on the time
// zone, nor on whether an empty list is nil. Times are milliseconds since 1970; 0 is never.
type digestInput struct {
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
// hold the same organizations, clients and deposits. Recorded requests do not count. The zero value is
// ready for use.
type Digester struct {
	sum hash.Hash
	// Orgs, Clients and Deposits count the records that were added.
	Orgs, Clients, Deposits int
}

// Add adds the next record. Kind Internal if the record is empty.
func (d *Digester) Add(r Record) error {
	var s digestInput
	switch {
	case r.Org != nil:
		o := r.Org
		s = digestInput{Kind: "org", Names: []string{o.Name, o.UUID, o.Auth}, Lists: [][]string{list(o.Contacts)},
			Times: []int64{millis(o.Created)}}
		d.Orgs++
	case r.Client != nil:
		c := r.Client
		s = digestInput{Kind: "client", Names: []string{c.Fingerprint, c.Org, string(c.State)},
			Bytes: [][]byte{c.PublicKey}, Times: []int64{millis(c.Created)}}
		d.Clients++
	case r.Deposit != nil:
		p := r.Deposit
		var deleted int64
		if p.Sealed.Deleted != nil {
			deleted = millis(*p.Sealed.Deleted)
		}
		s = digestInput{Kind: "deposit", Names: []string{p.UUID, p.Owner, p.Org, p.Label},
			Lists: [][]string{list(p.Access)},
			Bytes: [][]byte{p.Sealed.Statement, p.Sealed.Signature, p.Sealed.Content},
			Times: []int64{millis(p.Expires), deleted}, Flag: p.Wrapped}
		d.Deposits++
	case r.Once != nil:
		return nil
	default:
		return claviger.Errorf("server.Digester", claviger.Internal, "", "an empty record")
	}
	line, err := json.Marshal(s)
	if err != nil {
		return claviger.E("server.Digester", claviger.Internal, "", err)
	}
	if d.sum == nil {
		d.sum = sha256.New()
	}
	_, _ = d.sum.Write(append(line, '\n')) // a hash never fails
	return nil
}

// Sum returns the digest of all records that were added, 64 hex digits.
func (d *Digester) Sum() string {
	if d.sum == nil {
		d.sum = sha256.New()
	}
	return hex.EncodeToString(d.sum.Sum(nil))
}

// StateDigest returns the digest of all records of a store.
func StateDigest(ctx context.Context, s Store) (string, error) {
	var d Digester
	if err := s.Export(ctx, d.Add); err != nil {
		return "", err
	}
	return d.Sum(), nil
}
