package audit

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzVerify verifies any text as a log. If Verify has no finding, the chain can be continued.
func FuzzVerify(f *testing.F) {
	seeds, err := filepath.Glob("testdata/fuzz/FuzzVerify/*")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	path := filepath.Join(f.TempDir(), "audit.json")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Verify([]string{path}, VerifyConfig{})
		if err != nil {
			t.Fatal(err)
		}
		end, err := tailOf(path)
		if len(r.Findings) == 0 && (err != nil || end.seq != r.Last || end.torn != 0) {
			t.Errorf("verified %+v, but its end is %+v, %v", r, end, err)
		}
	})
}
