package audit_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
)

// TestRecent: uses of a key that succeed are joined, so that they push out neither changes nor refusals; the oldest
// event goes first; credentials and long texts are not kept.
func TestRecent(t *testing.T) {
	r := audit.NewRecent(3)
	at := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	log := func(status audit.Status, op audit.Op, key, user string) {
		at = at.Add(time.Second)
		r.Log(context.Background(), audit.Event{Time: at, Status: status, Op: op, Key: key, Version: key + "@0",
			EDEKs: 2, Caller: claviger.Caller{Principal: claviger.Principal{Name: user, Short: user}}})
	}
	show := func() (lines []string) {
		for _, e := range r.Events() {
			lines = append(lines, fmt.Sprintf("%d*%s %s %s %s %d", e.Count, e.Status, e.Op, e.Key, e.Caller.Name,
				e.EDEKs))
		}
		return lines
	}
	log(audit.OK, audit.RollNewVersion, "k", "root")
	log(audit.Unauthorized, audit.DecryptEEK, "k", "eve")
	for range 1000 {
		log(audit.OK, audit.DecryptEEK, "k", "alice")
	}
	want := "1000*OK DECRYPT_EEK k alice 2000\n1*UNAUTHORIZED DECRYPT_EEK k eve 2\n1*OK ROLL_NEW_VERSION k root 2"
	if got := strings.Join(show(), "\n"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	first := r.Events()[0]
	if first.First.Equal(first.Time) || !first.Time.Equal(at) {
		t.Errorf("joined events from %v to %v, now %v", first.First, first.Time, at)
	}
	log(audit.OK, audit.RollNewVersion, "k", "root")
	log(audit.OK, audit.RollNewVersion, "k", "root") // each change is an event of its own
	log(audit.OK, audit.DecryptEEK, "k", "bob")      // pushes out alice
	log(audit.OK, audit.DecryptEEK, "k", "alice")    // begins a new event
	want = "1*OK DECRYPT_EEK k alice 2\n1*OK DECRYPT_EEK k bob 2\n1*OK ROLL_NEW_VERSION k root 2"
	if got := strings.Join(show(), "\n"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	r.Log(context.Background(), audit.Event{Status: audit.Error, Op: audit.GetKeys, Key: strings.Repeat("k", 10000),
		URL: "http://h/kms?delegation=SECRET", Message: "Negotiate " + strings.Repeat("YII", 40)})
	e := r.Events()[0]
	if len(e.Key) > 2000 || strings.Contains(e.Message, "YIIYII") || e.Time.IsZero() {
		t.Errorf("kept %d bytes, %q, %v", len(e.Key), e.Message, e.Time)
	}
	if r.Err() != nil || r.Close() != nil {
		t.Error("it fails")
	}
}
