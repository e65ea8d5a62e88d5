package server

import (
	"testing"
	"time"

	"claviger"
)

// TestDigester: the digest of no records is the digest of no bytes. A Digester counts records, and refuses an empty
// record. A zero time has another digest than each other time. The same time in another time zone has the same digest.
func TestDigester(t *testing.T) {
	const none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // the SHA-256 of no bytes
	var d Digester
	if d.Sum() != none {
		t.Errorf("no records: %s", d.Sum())
	}
	if err := d.Add(Record{}); !claviger.Is(err, claviger.Internal) || d.Sum() != none {
		t.Errorf("an empty record: %v", err)
	}
	if err := d.Add(Record{Once: &Once{Digest: "d"}}); err != nil || d.Sum() != none {
		t.Errorf("a recorded request: %v", err)
	}
	of := func(at time.Time) string {
		t.Helper()
		var d Digester
		for _, r := range []Record{{Org: &Org{Created: at}}, {Client: &Client{}}, {Deposit: &Row{}}} {
			if err := d.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		if d.Orgs != 1 || d.Clients != 1 || d.Deposits != 1 {
			t.Errorf("%+v", d)
		}
		return d.Sum()
	}
	at := time.UnixMilli(1700000000123).UTC()
	if of(at) != of(at.In(time.FixedZone("X", 3600))) || of(at) == of(at.Add(time.Millisecond)) || of(at) == none {
		t.Error("the digest depends on the time zone, or not on the time")
	}
	if of(time.Time{}) != of(time.UnixMilli(0)) || of(time.Time{}) == of(time.Time{}.Add(time.Millisecond)) {
		t.Error("a zero time does not count as never")
	}
}
