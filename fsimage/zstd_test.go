package fsimage_test

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"claviger/internal/imagetest"
)

// TestLibzstd: Hadoop compresses by libzstd, as the command zstd does. Images with streams of that library are read,
// also with the largest window that it has.
func TestLibzstd(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip(err)
	}
	tree := sample()
	for id := uint64(20_000); id < 40_000; id++ {
		tree.Nodes = append(tree.Nodes, imagetest.Node{ID: id, Name: "part", EDEK: "orders@1"})
	}
	plain, sections := tree.Bytes()
	want, err := readAll(plain, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"-1", "-3", "-19", "--ultra -22"} {
		var image bytes.Buffer
		w := imagetest.NewWriter(&image, imagetest.Zstd)
		add := func(name string, data []byte) {
			// From a pipe, as in Hadoop: zstd does not know the size, so the window is the level's.
			cmd := exec.Command("zstd", append(strings.Fields(level), "--no-check", "-q", "-c")...)
			cmd.Stdin = bytes.NewBuffer(data)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if name != "" {
				w.Sections = append(w.Sections, imagetest.Section{Name: name, Offset: int64(image.Len()),
					Length: int64(len(packed))})
			}
			if _, err := w.Write(packed); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range sections {
			add(s.Name, plain[s.Offset:s.Offset+s.Length])
		}
		add("", nil) // the stream that a NameNode begins after the last section
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(image.Bytes(), 2)
		if err != nil {
			t.Errorf("zstd %s: %v", level, err)
		} else if !slices.Equal(got, want) {
			t.Errorf("zstd %s: %d records, want %d", level, len(got), len(want))
		}
	}
}
