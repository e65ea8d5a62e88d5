package evidence

import (
	"bytes"
	"path/filepath"
	"testing"
)

// empty is a report that lacks every part. It is small.
func empty() *Report {
	r := &Report{About: About{Made: noon, Host: "kms1"}}
	for _, p := range r.parts() {
		r.RecordMissing(p.value, "this is a test")
	}
	return r
}

// FuzzVerify verifies any bytes. Only the one report that was signed is verified.
func FuzzVerify(f *testing.F) {
	seeds, err := filepath.Glob("testdata/fuzz/FuzzVerify/*")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	public, private := testKeys(1)
	var sound bytes.Buffer
	if _, err := empty().Write(&sound, private); err != nil {
		f.Fatal(err)
	}
	f.Add(sound.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := verify(data, public)
		if err != nil {
			t.Fatal(err)
		}
		if same := bytes.Equal(data, sound.Bytes()); v.Verified != same || same != (len(v.Findings) == 0) {
			t.Errorf("%+v", v)
		}
	})
}
