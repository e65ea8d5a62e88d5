package claviger_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
)

// TestLimitLog: a message that each request repeats is written a few times a minute, with a count of the others, and
// does not suppress other messages.
func TestLimitLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log := claviger.LimitLog(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug})))
		lines := func() []string {
			defer text.Reset()
			return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
		}
		for n := range 400 {
			log.With("n", n).Warn("lost", "key", fmt.Sprint("k", n))
		}
		log.Error("found")
		if got := lines(); len(got) != 6 || !strings.Contains(got[4], "key=k4") || !strings.Contains(got[5], "found") {
			t.Errorf("%q", got)
		}
		time.Sleep(time.Minute)
		claviger.LimitLog(log).Warn("lost", "key", "k400")
		log.Warn("lost", "key", "k401")
		got := lines()
		if len(got) != 2 || !strings.HasSuffix(got[0], "key=k400 notShown=395") ||
			!strings.HasSuffix(got[1], "key=k401") {
			t.Errorf("after a minute: %q", got)
		}
		time.Sleep(time.Minute)
		for n := range 20 { // reason 0 takes the burst; of the other 29 reasons, 9 are written
			log.Warn("ended", "err", "reason 0")
			if n > 4 {
				log.Warn("ended", "err", fmt.Sprint("reason ", n))
			}
		}
		if got := lines(); len(got) != 5+9 || !strings.Contains(got[5], `err="reason 5"`) {
			t.Errorf("other reasons: %q", got)
		}
		time.Sleep(10 * time.Second)
		log.Warn("ended", "err", "reason 0")
		if got := lines(); len(got) != 1 || !strings.HasPrefix(got[0], "time=") {
			t.Errorf("after a quiet time: %q", got)
		}
		for range 10 {
			log.Debug("detail")
		}
		if got := lines(); len(got) != 10 {
			t.Errorf("%d lines of level debug", len(got))
		}
	})
}
