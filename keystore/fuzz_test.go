package keystore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"claviger/secret"
)

// needSeeds fails a fuzz target with fewer than n seeds. The seeds are files that Java wrote. Without them, the fuzzer
// would hardly find valid input.
func needSeeds(f *testing.F, n int) {
	f.Helper()
	list, err := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name()))
	if err != nil || len(list) < n {
		f.Fatalf("%d seeds in testdata/fuzz/%s, want at least %d; %v", len(list), f.Name(), n, err)
	}
}

// FuzzJCEKS checks that a keystore that was read is the same after it was written and read again. It corrects the check
// at the end of the input, and decrypts no entry, which would be too slow.
func FuzzJCEKS(f *testing.F) {
	needSeeds(f, 4)
	password := secret.Bytes("password")
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &jceksReader{b: data}
		if _, err := r.store(); err != nil {
			return
		}
		sum := jceksDigest(password, data[:r.off])
		s, err := ParseJCEKS(append(bytes.Clone(data[:r.off]), sum[:]...), password)
		if err != nil {
			t.Fatalf("the keystore was read without its check, but not with it: %v", err)
		}
		out, err := s.Marshal(password)
		if err != nil {
			t.Fatal(err)
		}
		reread, err := ParseJCEKS(out, password)
		if err != nil {
			t.Fatal(err)
		}
		if len(reread.entries) != len(s.entries) {
			t.Fatalf("%d entries, after writing %d", len(s.entries), len(reread.entries))
		}
		for alias, e := range s.entries {
			if !e.Equal(reread.entries[alias]) {
				t.Errorf("entry %q changed", alias)
			}
		}
	})
}

// FuzzJavaSerialization checks that no input crashes the reader, and that a key that was read is the same after it was
// written and read again.
func FuzzJavaSerialization(f *testing.F) {
	needSeeds(f, 5)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, n, err := decodeSealed(data); n > len(data) {
			t.Fatalf("read %d of %d bytes, %v", n, len(data), err)
		}
		s, err := decodeSecret(data)
		if err != nil {
			return
		}
		var out []byte
		if s.HadoopMetadata != nil {
			out, err = encodeHadoopMetadata(s.HadoopMetadata)
		} else {
			out, err = encodeSecretKey(s.Algorithm, s.Material)
		}
		if err != nil {
			return // longer than our limit for writing
		}
		reread, err := decodeSecret(out)
		if err != nil || reread.Algorithm != s.Algorithm || !reread.Material.Equal(s.Material) ||
			!bytes.Equal(reread.HadoopMetadata, s.HadoopMetadata) {
			t.Errorf("%q, %q; after writing %q, %q, %v", s.Algorithm, s.HadoopMetadata, reread.Algorithm,
				reread.HadoopMetadata,
				err)
		}
	})
}

// FuzzMUTF8 checks that text that was decoded is the same after it was encoded and decoded again.
func FuzzMUTF8(f *testing.F) {
	needSeeds(f, 4)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeMUTF8(data)
		if err != nil {
			return
		}
		b, err := appendMUTF8(nil, s)
		if err != nil {
			if len(s) > maxMUTF8/2 {
				return
			}
			t.Fatalf("%q was read and cannot be written: %v", s, err)
		}
		if reread, err := decodeMUTF8(b[2:]); err != nil || reread != s {
			t.Errorf("%q became %q, %v", s, reread, err)
		}
	})
}
