package kmsapi

import (
	"fmt"
	"testing"
	"time"
)

// TestLinesByUser: one user cannot fill the log, nor keep others' lines out of it.
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
	if silent, ok := l.due("alice"); !ok || silent != 10_000-linesEach {
		t.Errorf("another user's line: %v, %d left out", ok, silent)
	}
	all := linesEach + 1
	for i := range 100 {
		all += count(fmt.Sprint("user", i), linesEach)
	}
	if all != linesAll {
		t.Errorf("%d lines of all", all)
	}
	l.began = time.Now().Add(-linesEvery)
	if n := count("mallory", 1); n != 1 {
		t.Error("no line a minute later")
	}
}
