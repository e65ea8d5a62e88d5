package keystore

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/secret"
)

func testFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustParse(t testing.TB, data []byte, password string) *JCEKS {
	t.Helper()
	s, err := ParseJCEKS(data, secret.Bytes(password))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReadJava reads keystores that keytool and Java wrote. testdata/README.md has the commands.
func TestReadJava(t *testing.T) {
	type want struct{ algorithm, hex string }
	for _, tc := range []struct {
		file, password string
		keys           map[string]want
	}{
		{"secretkeyspec.jceks", "changeit", map[string]want{
			"k1@0":   {"AES/CTR/NoPadding", "000102030405060708090a0b0c0d0e0f"},
			"k1@1":   {"AES/CTR/NoPadding", "101112131415161718191a1b1c1d1e1f"},
			"größe𝄞": {"AES", strings.Repeat("ff", 32)},
		}},
		{"iterations10000.jceks", "secret", map[string]want{"k": {"AES", "000102030405060708090a0b0c0d0e0f"}}},
	} {
		t.Run(tc.file, func(t *testing.T) {
			s := mustParse(t, testFile(t, tc.file), tc.password)
			if got := len(s.Aliases()); got != len(tc.keys) {
				t.Errorf("aliases %q, want %d", s.Aliases(), len(tc.keys))
			}
			for alias, w := range tc.keys {
				e := s.Entry(alias)
				if e == nil {
					t.Fatalf("no entry %q among %q", alias, s.Aliases())
				}
				got, err := e.Open(secret.Bytes(tc.password))
				if err != nil {
					t.Fatal(err)
				}
				if got.Algorithm != w.algorithm || hex.EncodeToString(got.Material) != w.hex {
					t.Errorf("entry %q: %s %x, want %v", alias, got.Algorithm, []byte(got.Material), w)
				}
				if age := time.Since(e.Created); age < 0 || age > 50*365*24*time.Hour {
					t.Errorf("entry %q: created %v", alias, e.Created)
				}
			}
		})
	}
}

// TestReadKeytool: a keystore that the JDK's keytool wrote is read, with secret and private keys.
func TestReadKeytool(t *testing.T) {
	s := mustParse(t, testFile(t, "keytool.jceks"), "changeit")
	if got, want := s.Aliases(), []string{"aes", "des3", "rsa", "trusted"}; !slices.Equal(got, want) {
		t.Fatalf("aliases %q, want %q", got, want)
	}
	aes, err := s.Entry("AES").Open(secret.Bytes("changeit"))
	if err != nil || aes.Algorithm != "AES" || len(aes.Material) != 32 {
		t.Errorf("aes: %v, %d bytes, %v", aes.Algorithm, len(aes.Material), err)
	}
	// keytool writes a DESede key as a java.security.KeyRep with an enum.
	des, err := s.Entry("des3").Open(secret.Bytes("otherpassword"))
	if err != nil || des.Algorithm != "DESede" || len(des.Material) != 24 {
		t.Errorf("des3: %v, %d bytes, %v", des.Algorithm, len(des.Material), err)
	}
	if _, err := s.Entry("des3").Open(secret.Bytes("changeit")); !errors.Is(err, ErrPassword) {
		t.Errorf("des3 with the store's password: %v, want ErrPassword", err)
	}
	if _, err := s.Entry("rsa").Open(secret.Bytes("changeit")); err == nil {
		t.Error("Open accepts a private key")
	}
	pkcs8, chain, err := s.Entry("rsa").PrivateKey(secret.Bytes("changeit"))
	if err != nil || len(chain) != 1 || len(pkcs8) < 1000 {
		t.Errorf("rsa: %d bytes, %d certificates, %v", len(pkcs8), len(chain), err)
	}
	if _, _, err := s.Entry("rsa").PrivateKey(secret.Bytes("Changeit")); !errors.Is(err, ErrPassword) {
		t.Errorf("rsa with a wrong password: %v, want ErrPassword", err)
	}
}

// TestReadHadoop reads a keystore that Hadoop's KeyShell wrote.
func TestReadHadoop(t *testing.T) {
	s := mustParse(t, testFile(t, "hadoop.jceks"), "secretpw")
	want := []string{"at@1", "at@1@0", "finance", "finance@0", "finance@1", "long", "long@0", "plain", "plain@0"}
	if got := s.Aliases(); !slices.Equal(got, want) {
		t.Fatalf("aliases %q, want %q", got, want)
	}
	for alias, text := range map[string]string{
		"finance": `"description":"Größe <&>","attributes":{`,
		"long":    `long description long description`, // needs several blocks of block data
		"at@1":    `{"cipher":"AES/CTR/NoPadding","bitLength":192,"created":1`,
	} {
		got, err := s.Entry(alias).Open(secret.Bytes("secretpw"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(got.HadoopMetadata), text) || got.Material != nil {
			t.Errorf("entry %q: %s", alias, got.HadoopMetadata)
		}
	}
}

// TestWriteAsJava checks that our entries differ from Java's only in the random salt and the encrypted content.
func TestWriteAsJava(t *testing.T) {
	for _, tc := range []struct{ file, password, alias string }{
		{"secretkeyspec.jceks", "changeit", "größe𝄞"},
		{"hadoop.jceks", "secretpw", "finance@1"},
		{"hadoop.jceks", "secretpw", "finance"},
		{"hadoop.jceks", "secretpw", "long"},
	} {
		password := secret.Bytes(tc.password)
		original := mustParse(t, testFile(t, tc.file), tc.password).Entry(tc.alias)
		got, err := original.Open(password)
		if err != nil {
			t.Fatal(err)
		}
		s := NewJCEKS()
		if got.HadoopMetadata != nil {
			err = s.SetHadoopMetadata(tc.alias, got.HadoopMetadata, password, original.Created)
		} else {
			err = s.SetKey(tc.alias, got.Algorithm, got.Material, password, original.Created)
		}
		if err != nil {
			t.Fatal(err)
		}
		rewritten := s.Entry(tc.alias)
		plain := func(e *Entry) []byte {
			params, err := parsePBEParams(e.sealed.params)
			if err != nil {
				t.Fatal(err)
			}
			if params.Iterations != DefaultIterations {
				t.Errorf("iteration count %d", params.Iterations)
			}
			b, err := params.decrypt(password, e.sealed.content)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		if a, b := plain(original), plain(rewritten); !bytes.Equal(a, b) {
			t.Errorf("%s: inner object\n%x, Java wrote\n%x", tc.alias, b, a)
		}
		blank := func(e *Entry) []byte {
			b := bytes.Replace(e.raw, e.sealed.content, bytes.Repeat([]byte{'c'}, len(e.sealed.content)), 1)
			return bytes.Replace(b, e.sealed.params, bytes.Repeat([]byte{'p'}, len(e.sealed.params)), 1)
		}
		if a, b := blank(original), blank(rewritten); !bytes.Equal(a, b) {
			t.Errorf("%s: outer object\n%x, Java wrote\n%x", tc.alias, b, a)
		}
	}
}

// TestKeepsEntries checks that a store that is read, changed and written keeps all other entries byte for byte,
// including entries of other kinds and with other passwords.
func TestKeepsEntries(t *testing.T) {
	s := mustParse(t, testFile(t, "keytool.jceks"), "changeit")
	before := s.Clone()
	if err := s.SetKey("New", "AES/CTR/NoPadding", secret.Bytes("0123456789abcdef"), secret.Bytes("changeit"),
		time.Now()); err != nil {
		t.Fatal(err)
	}
	if before.Entry("new") != nil {
		t.Error("a change of the store changed its clone")
	}
	data, err := s.Marshal(secret.Bytes("changeit"))
	if err != nil {
		t.Fatal(err)
	}
	again := mustParse(t, data, "changeit")
	for _, alias := range before.Aliases() {
		if e := again.Entry(alias); e == nil || !e.Equal(before.Entry(alias)) {
			t.Errorf("entry %q was changed", alias)
		}
	}
	got, err := again.Entry("new").Open(secret.Bytes("changeit"))
	if err != nil || string(got.Material) != "0123456789abcdef" {
		t.Errorf("the new entry: %v", err)
	}
	again.Delete("NEW")
	if len(again.Aliases()) != 4 {
		t.Errorf("aliases after the deletion: %q", again.Aliases())
	}
}

// TestPBEVectors uses test vectors of Java (testdata/README.md). The JDK has a special case for equal halves of the
// salt.
func TestPBEVectors(t *testing.T) {
	for _, tc := range []struct {
		salt       string
		iterations int
		want       string
	}{
		{"0102030405060708", 1000, "2d0b39609402541e642b35ad8360c2ee"},
		{"0102030401020304", 1000, "86cd7f027bc3bfc84ab0d9615df0b271"},
		{"0102030401020304", 1, "e79212c10b692c14eefd5217608a4b4b"},
		{"aabbccddaabbccdd", 20, "de81c74cdcbe55d59903d1b9498dd095"},
	} {
		salt, _ := hex.DecodeString(tc.salt)
		p := pbeParams{Salt: salt, Iterations: tc.iterations}
		got, err := p.encrypt(secret.Bytes("changeit"), []byte("the plain text"))
		if err != nil || hex.EncodeToString(got) != tc.want {
			t.Errorf("salt %s, %d iterations: %x, %v; Java: %s", tc.salt, tc.iterations, got, err, tc.want)
		}
		plain, err := p.decrypt(secret.Bytes("changeit"), got)
		if err != nil || string(plain) != "the plain text" {
			t.Errorf("salt %s: decrypted to %q, %v", tc.salt, plain, err)
		}
	}
}

// TestPasswordASCII: only printable ASCII is accepted as a password, as in Java.
func TestPasswordASCII(t *testing.T) {
	s := NewJCEKS()
	for _, bad := range []string{"größe", "tab\t", "\x7f"} {
		if err := s.SetKey("k", "AES", make(secret.Bytes, 16), secret.Bytes(bad), time.Now()); !errors.Is(err,
			ErrPasswordNotASCII) {
			t.Errorf("password %q: %v", bad, err)
		}
	}
	if err := CheckPassword(secret.Bytes(" ~")); err != nil {
		t.Error(err)
	}
}

// TestDamage checks the error of each kind of wrong file.
func TestDamage(t *testing.T) {
	good := testFile(t, "hadoop.jceks")
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, tc := range []struct {
		name     string
		data     []byte
		password string
		want     string
	}{
		{"wrong password", good, "Secretpw", "wrong password or damaged file"},
		{"changed byte in an entry's content", change(func(b []byte) []byte { b[len(b)-60] ^= 1; return b }),
			"secretpw",
			`damaged file: the password is right (it opens entry "at@1"), but the SHA-1 check over the whole ` +
				`file fails`},
		{"changed check", change(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), "secretpw",
			`damaged file: the password is right (it opens entry "at@1"), but the SHA-1 check over the whole ` +
				`file fails`},
		{"truncated in an entry", good[:1000], "secretpw",
			`JCEKS: byte 285: entry "long": ends too early: 2965 bytes are missing`},
		{"truncated in the checksum", good[:len(good)-1], "secretpw",
			"19 bytes after the last entry, want the 20 bytes of a SHA-1 check"},
		{"without the check", good[:len(good)-20], "secretpw", "0 bytes after the last entry"},
		{"bytes after it", append(bytes.Clone(good), 0), "secretpw", "21 bytes after the last entry"},
		{"empty", nil, "secretpw", "the file is empty, so it is not a keystore"},
		{"three bytes", good[:3], "secretpw", "the file begins with ce ce ce, not with ce ce ce ce"},
		{"JKS, truncated", []byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2}, "x", "the file ends inside the number " +
			"of entries"},
		{"PKCS#12", []byte{0x30, 3, 2, 1, 3}, "x", "this is a PKCS#12 file, which keytool makes unless"},
		{"PEM", []byte("-----BEGIN CERTIFICATE-----\n"), "x", "this is a pem file, not a JCEKS keystore"},
		{"version 1", change(func(b []byte) []byte { b[7] = 1; return b }), "secretpw", "version 1, only 2 is known"},
		{"more entries than there can be", change(func(b []byte) []byte { b[8] = 0x7f; return b }), "secretpw",
			"the file ends before its 2130706441 entries"},
		{"unknown kind", change(func(b []byte) []byte { b[15] = 9; return b }), "secretpw", "is of the unknown kind 9"},
		{"foreign class", change(func(b []byte) []byte {
			return bytes.Replace(b, []byte("javax.crypto.SealedObject"), []byte("javax.crypto.SealedObjecu"), 1)
		}),
			"secretpw", `class "javax.crypto.SealedObjecu", which is not allowed in a key entry`},
	} {
		_, err := ParseJCEKS(tc.data, secret.Bytes(tc.password))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), tc.password) && tc.password == "secretpw" {
			t.Errorf("%s: the error shows the password", tc.name)
		}
	}
}

// TestIterationLimits checks that a large iteration count of a file is refused, because it would take hours.
func TestIterationLimits(t *testing.T) {
	for _, n := range []int{0, -1, MaxIterations + 1, 1 << 40} {
		der, err := asn1.Marshal(pbeParams{Salt: make([]byte, 8), Iterations: n})
		if err != nil {
			t.Fatal(err)
		}
		e := &Entry{Alias: "k", Kind: SecretKeyEntry, sealed: sealed{params: der, content: make([]byte, 8)}}
		if _, err := e.Open(secret.Bytes("x")); err == nil || !strings.Contains(err.Error(), "iteration count") {
			t.Errorf("%d iterations: %v", n, err)
		}
	}
	s := NewJCEKS()
	s.Iterations = MinIterations - 1
	if err := s.SetKey("k", "AES", make(secret.Bytes, 16), nil, time.Now()); err == nil {
		t.Error("a key was written with fewer iterations than Java accepts")
	}
}
