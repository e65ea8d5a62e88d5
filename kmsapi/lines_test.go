package kmsapi

import (
	"fmt"
	"testing"
	"time"
)

// TestLinesByUser: one user can neither fill the log nor suppress the lines of others.
func TestLinesByUser(t *testing.T) {
	var l lines
	count := func(user string, n int) (shown int) {
		for range n {
			if _, ok := l.due(user); ok {
				shown++
			}
		}
		return shown
	}
	if n := count("mallory", 10_000); n != linesEach {
		t.Errorf("%d lines of one user", n)
	}
	if notShown, ok := l.due("alice"); !ok || notShown != 10_000-linesEach {
		t.Errorf("another user's line: %v, %d not shown", ok, notShown)
	}
	all := linesEach + 1
	for i := range 100 {
		all += count(fmt.Sprint("user", i), linesEach)
	}
	if all != linesAll {
		t.Errorf("%d lines of all users", all)
	}
	l.began = time.Now().Add(-linesEvery)
	if n := count("mallory", 1); n != 1 {
		t.Error("no line a minute later")
	}
}
