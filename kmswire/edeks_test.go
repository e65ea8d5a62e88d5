package kmswire

import (
	"fmt"
	"testing"

	"claviger"
)

// FuzzEDEKs compares the texts of EDEKs with a plain writer. The versions in a list change.
func FuzzEDEKs(f *testing.F) {
	f.Fuzz(func(t *testing.T, key, one, other string, iv, material []byte) {
		plain := func(name []byte, e *claviger.EDEK) string {
			return fmt.Sprintf(`{"versionName":%s,"iv":"%s","encryptedKeyVersion":{"versionName":"EEK","name":%s,`+
				`"material":"%s"}}`, appendString(nil, e.Version), urlSafe.EncodeToString(e.IV), name,
				urlSafe.EncodeToString(e.Material))
		}
		w := NewEDEKWriter(key)
		sent := &claviger.EDEK{Version: one}
		for _, version := range []string{one, other, one} {
			e := &claviger.EDEK{Version: version, IV: iv, Material: material}
			named := plain(appendString(nil, key), e)
			reencrypted := named
			if version == one {
				reencrypted = plain([]byte("null"), e)
			}
			if got := string(AppendEDEK(nil, &key, e)); got != named {
				t.Fatalf("one: %s, want %s", got, named)
			}
			size := w.Size(e) // before the version of the last EDEK is replaced
			if got := string(w.Append(nil, e)); got != named || size != len(got) || w.Size(e) != len(got) {
				t.Fatalf("%s of %d bytes, want %s", got, size, named)
			}
			if got := string(w.AppendReencrypted(nil, sent, e)); got != reencrypted ||
				w.SizeReencrypted(sent, e) != len(got) {
				t.Fatalf("%s of %d bytes, want %s", got, w.SizeReencrypted(sent, e), reencrypted)
			}
		}
	})
}
