package audit

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// TestLinksOfRecords: Verify compares each record with the record before it, and the chain with its heads.
func TestLinksOfRecords(t *testing.T) {
	one, sum := sealed(digest{}, Record{Seq: 1})
	two, last := sealed(sum, Record{Seq: 2})
	other, _ := sealed(sum, Record{Seq: 2, Node: "kms2"})
	again, _ := sealed(digest{}, Record{Seq: 1, Time: "later"})
	wrongFirst, _ := sealed(sum, Record{Seq: 1})
	noPrevious, _ := sealed(digest{}, Record{Seq: 2})
	const begins = "has the previous hash"
	for name, test := range map[string]struct {
		text        string
		heads       []Head
		found, note string
	}{
		"chain": {one + two, []Head{{Node: "kms1", Seq: 2, Hash: last.String()}}, "", ""},
		"another node": {one + other, nil,
			`record 2 is of node "kms2", the earlier records are of "kms1"`, ""},
		"another chain":         {one + two + again, nil, "another chain begins here; records between record 2", ""},
		"record 1, a previous":  {wrongFirst, nil, "record 1 " + begins + " " + sum.String(), ""},
		"record 2, no previous": {noPrevious, nil, "record 2 " + begins, ""},
		"later record 1":        {one + two + wrongFirst, nil, "record 1 comes after record 2", ""},
		"later, no previous":    {one + two + noPrevious, nil, "record 2 comes after record 2", ""},
		"later part":            {two, nil, "", "the chain continues here after record 1"},
		"head of another node": {one + two, []Head{{Node: "kms2", Seq: 2, Hash: last.String()}},
			`the stored head is of node "kms2", the files are of "kms1"`, ""},
		"head before the files": {two, []Head{{Node: "kms1", Seq: 1, Hash: sum.String(), Time: "noon"}}, "",
			"record 1, which the head of noon names, is before the files"},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			if test.found != "" {
				want = []string{test.found}
			}
			r := verified(t, VerifyConfig{Heads: test.heads}, []string{writeText(t, test.text)}, want...)
			var notes strings.Builder
			for _, n := range r.Notes {
				notes.WriteString(n.String() + "\n")
			}
			if !strings.Contains(notes.String(), test.note) || test.note == "" && notes.Len() > 0 {
				t.Errorf("notes %q, want %q", notes.String(), test.note)
			}
		})
	}
}

// TestReadFails: next returns an error of reading, even in a line that is too long.
func TestReadFails(t *testing.T) {
	fails := errors.New("the disk is broken")
	for _, length := range []int{0, 10, 2 * maxRecord} {
		in := newLines(io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{'x'}, length)), iotest.ErrReader(fails)))
		if line, whole, err := in.next(); !errors.Is(err, fails) || whole {
			t.Errorf("after %d bytes: %.20q, whole %t, %v", length, line, whole, err)
		}
	}
}

// TestLogFileCloses: Close of a logFile closes the file.
func TestLogFileCloses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed again: %v", err)
	}
}
