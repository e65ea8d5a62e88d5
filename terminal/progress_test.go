package terminal

import (
	"bytes"
	"testing"
	"time"
)

// TestProgressInALog: a log gets a line now and then, and none of short work.
func TestProgressInALog(t *testing.T) {
	var log bytes.Buffer
	p := NewProgress(&log, "keys", false)
	now := time.Unix(0, 0)
	p.now = func() time.Time { return now }
	p.Show(0, 0, "listing")
	for i := range 26 {
		p.Show(i, 25, "key\x1b[2J")
		now = now.Add(time.Second)
	}
	p.End()
	const want = `10 of 25 keys, after 10s: key\u001b[2J` + "\n" + `20 of 25 keys, after 20s: key\u001b[2J` + "\n"
	if log.String() != want {
		t.Errorf("%s, want %s", &log, want)
	}
}

// TestQuiet: with --quiet nothing is shown.
func TestQuiet(t *testing.T) {
	var log bytes.Buffer
	p := NewProgress(&log, "keys", true)
	p.now = func() time.Time { return time.Now().Add(time.Hour) }
	p.Show(1, 2, "step")
	p.Show(2, 2, "step")
	p.End()
	if log.Len() > 0 {
		t.Errorf("%s", &log)
	}
}
