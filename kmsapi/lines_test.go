package kmsapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
)

// TestLinesByUser: one user can neither fill the log nor suppress the lines of others.
func TestLinesByUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lines
		count := func(user string, n int) (shown int) {
			for i := range n {
				_, earlier, ok := l.due("failed", user, fmt.Sprint(user, "-", i))
				if ok {
					shown++
				} else if want := fmt.Sprint(user, "-", linesEach-1); l.of["failed"].all < linesAll && earlier != want {
					t.Fatalf("the earlier request is %q, want %q", earlier, want)
				}
			}
			return shown
		}
		if n := count("mallory", 10_000); n != linesEach {
			t.Errorf("%d lines of one user", n)
		}
		if notShown, _, ok := l.due("failed", "alice", "1"); !ok || notShown != 10_000-linesEach {
			t.Errorf("another user's line: %v, %d not shown", ok, notShown)
		}
		all := linesEach + 1
		for i := range 100 {
			all += count(fmt.Sprint("user", i), linesEach)
		}
		if all != linesAll {
			t.Errorf("%d lines of all users", all)
		}
		if _, earlier, ok := l.due("failed", "bob", "1"); ok || earlier != l.of["failed"].last || earlier == "" {
			t.Errorf("after the lines of all users: %v, earlier request %q", ok, earlier)
		}
		if _, earlier, ok := l.due("failed", "alice", "2"); ok || earlier != "1" {
			t.Errorf("a user with a line: %v, earlier request %q", ok, earlier)
		}
		time.Sleep(linesEvery)
		if n := count("mallory", 1); n != 1 {
			t.Error("no line a minute later")
		}
	})
}

// TestReasonsOfInternalErrors: however many requests of a user cannot be served now, the log has the reason of each
// internal error, within the limit of these. An answer names the log's line of its own request only if there is one.
// Lines that are left out are counted, each message for itself, and the next line with the message has the count.
func TestReasonsOfInternalErrors(t *testing.T) {
	var log bytes.Buffer
	a := &api{Config: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	requests := 0
	answer := func(err error) (id, text string) {
		requests++
		c := &call{api: a, r: httptest.NewRequest("GET", "/kms/v1/key/k", nil)}
		c.caller.Short, c.caller.RequestID = "alice", fmt.Sprintf("f00-%d", requests)
		return c.caller.RequestID, c.exception(err).Message
	}
	away := claviger.E("test", claviger.Unavailable, "", errors.New("the HSM is away"))
	for range 100 {
		id, text := answer(away)
		shown := strings.Contains(log.String(), "id="+id+" ")
		if has := strings.Contains(text, "has the reason under request id "+id); has != shown {
			t.Fatalf("line in the log: %v, answer: %s", shown, text)
		}
		if !shown && !strings.HasSuffix(text, fmt.Sprintf("the reason of an earlier one under request id f00-%d",
			linesEach)) {
			t.Fatalf("the answer names no earlier request: %s", text)
		}
	}
	id, text := answer(errors.New("a fault"))
	if !strings.Contains(log.String(), "id="+id+" ") || !strings.HasSuffix(text, "the reason under request id "+id) {
		t.Errorf("no reason of an internal error after many answers 503: %s", text)
	}
	if strings.Contains(log.String(), fmt.Sprint("notShown=", 100-linesEach)) {
		t.Error("a line with another message has the count")
	}
	lines := strings.Count(log.String(), "\n")
	_, text = answer(context.Canceled)
	if strings.Contains(text, "log") || strings.Count(log.String(), "\n") != lines {
		t.Errorf("a canceled request: %s", text)
	}
	a.lines.of["a request could not be served now"].began = time.Now().Add(-linesEvery)
	answer(away)
	if !strings.Contains(log.String(), fmt.Sprint("notShown=", 100-linesEach)) {
		t.Errorf("the count of the lines left out is missing:\n%s", log.String())
	}
}
