package jceks

import (
	"os"
	"testing"
)

// crashStates are the states in which a crash can leave the files of our write. after is true if the new state counts.
var crashStates = []struct {
	name  string
	after bool
	make  func(t *testing.T, path string, before, after []byte)
}{
	{"temporary file half written", false, func(t *testing.T, path string, before, after []byte) {
		put(t, path, before)
		put(t, hiddenFile(path, ".tmp-killed"), after[:len(after)/2])
	}},
	{"temporary file written", false, func(t *testing.T, path string, before, after []byte) {
		put(t, path, before)
		put(t, hiddenFile(path, ".tmp-killed"), after)
	}},
	{"backup made", false, func(t *testing.T, path string, before, after []byte) {
		put(t, path, before)
		put(t, hiddenFile(path, ".tmp-killed"), after)
		if err := os.Link(path, path+"_OLD"); err != nil {
			t.Fatal(err)
		}
	}},
	{"new state in place", true, func(t *testing.T, path string, before, after []byte) {
		put(t, path, after)
		put(t, path+"_OLD", before)
	}},
	{"done", true, func(t *testing.T, path string, _, after []byte) { put(t, path, after) }},
}

func put(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
