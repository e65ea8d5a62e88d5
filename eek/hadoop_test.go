package eek_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"claviger"
	"claviger/eek"
	"claviger/secret"
)

// TestHadoopEDEKs opens, wraps and re-encrypts EDEKs that Hadoop's own classes made. testdata/README.md says how they
// were made.
func TestHadoopEDEKs(t *testing.T) {
	text, err := os.ReadFile("testdata/hadoop-3.4.2-edeks.txt")
	if err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		if s == "-" {
			return nil
		}
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := &keys{material: map[string][]byte{}}
	var edeks []claviger.EDEK
	var deks []secret.Bytes
	renewed := map[string][2][]claviger.EDEK{} // old and new EDEKs by new version
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "key":
			k.material[f[1]] = unhex(f[2])
		case len(f) == 5 && f[0] == "edek":
			edeks = append(edeks, claviger.EDEK{Version: f[1], IV: unhex(f[2]), Material: unhex(f[3])})
			deks = append(deks, unhex(f[4]))
		case len(f) == 6 && f[0] == "reencrypted":
			iv, pair := unhex(f[3]), renewed[f[2]]
			pair[0] = append(pair[0], claviger.EDEK{Version: f[1], IV: iv, Material: unhex(f[4])})
			pair[1] = append(pair[1], claviger.EDEK{Version: f[2], IV: iv, Material: unhex(f[5])})
			renewed[f[2]] = pair
		default:
			t.Fatalf("line %q", line)
		}
	}
	if len(k.material) != 6 || len(edeks) != 3*(20+5*11) || len(renewed) != 3 {
		t.Fatalf("%d versions, %d EDEKs, %d re-encryptions", len(k.material), len(edeks), len(renewed))
	}

	// One batch with all EDEKs, of three keys.
	got, err := eek.Unwrap(t.Context(), k, edeks)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range edeks {
		if !got[i].Equal(deks[i]) {
			t.Errorf("EDEK %x of %s with IV %x opens to %x, in Hadoop to %x", e.Material, e.Version, e.IV,
				[]byte(got[i]),
				[]byte(deks[i]))
		}
	}
	for i, e := range edeks {
		w, err := eek.Wrap(t.Context(), k, e.Version, [][]byte{e.IV}, deks[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(w[0].Material, e.Material) {
			t.Errorf("DEK %x under %s with IV %x is wrapped to %x, in Hadoop to %x", []byte(deks[i]), e.Version, e.IV,
				w[0].Material, e.Material)
		}
	}
	for version, pair := range renewed {
		if len(pair[0]) != 20 {
			t.Errorf("%d re-encryptions to %s", len(pair[0]), version)
		}
		now, err := eek.Reencrypt(t.Context(), k, k, version, pair[0])
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range pair[1] {
			if now[i].Version != version || !bytes.Equal(now[i].IV, want.IV) || !bytes.Equal(now[i].Material,
				want.Material) {
				t.Errorf("re-encrypted to %+v, in Hadoop to %+v", now[i], want)
			}
		}
	}
}
