package keystore

import (
	"encoding/asn1"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/secret"
)

// java returns a function that runs one of Java's programs. Without a JDK the test is skipped, or fails if
// CLAVIGER_REQUIRE_JAVA is 1.
func java(t *testing.T) func(program string, args ...string) string {
	t.Helper()
	for _, program := range []string{"java", "keytool"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CLAVIGER_REQUIRE_JAVA") == "1" {
				t.Fatalf("%s is not installed: %v", program, err)
			}
			t.Skipf("%s is not installed, so Java cannot read our files in this run", program)
		}
	}
	return func(program string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8",
			"JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dfile.encoding=UTF-8")
		out, err := cmd.Output()
		if err != nil {
			stderr := ""
			if e, ok := err.(*exec.ExitError); ok {
				stderr = string(e.Stderr)
			}
			t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, stderr)
		}
		return string(out)
	}
}

// TestJavaReads checks that Java reads a store that we made, and a store of keytool to which we added a key.
func TestJavaReads(t *testing.T) {
	run := java(t)
	password := secret.Bytes("ABC ~xyz")
	key := secret.Bytes("0123456789abcdef")
	const keyHex = "30313233343536373839616263646566"
	write := func(s *JCEKS, password secret.Bytes) string {
		t.Helper()
		data, err := s.Marshal(password)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "store.jceks")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}

	s := NewJCEKS()
	for _, alias := range []string{"k1@0", "größe𝄞\x00"} {
		if err := s.SetKey(alias, "AES/CTR/NoPadding", key, password, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	s.Iterations = MinIterations
	if err := s.SetKey("few", "AES", key, password, time.Now()); err != nil {
		t.Fatal(err)
	}
	got := run("java", "testdata/java/SecretStore.java", "read", write(s, password), string(password))
	want := "few AES " + keyHex + "\ngröße𝄞\x00 AES/CTR/NoPadding " + keyHex + "\nk1@0 AES/CTR/NoPadding " + keyHex +
		"\n"
	if got != want {
		t.Errorf("Java read %q, want %q", got, want)
	}

	s = mustParse(t, testFile(t, "keytool.jceks"), "changeit")
	if err := s.SetKey("added", "AES", key, secret.Bytes("changeit"), time.Now()); err != nil {
		t.Fatal(err)
	}
	got = run("keytool", "-list", "-storetype", "JCEKS", "-storepass", "changeit", "-keystore",
		write(s, secret.Bytes("changeit")))
	for _, line := range []string{"Your keystore contains 5 entries", "added, ", "SecretKeyEntry", "rsa, ",
		"PrivateKeyEntry", "trusted, ", "trustedCertEntry"} {
		if !strings.Contains(got, line) {
			t.Errorf("keytool does not print %q:\n%s", line, got)
		}
	}
}

// TestReadJavaNow reads a keystore that the installed version of Java writes.
func TestReadJavaNow(t *testing.T) {
	run := java(t)
	name := filepath.Join(t.TempDir(), "store.jceks")
	run("keytool", "-genseckey", "-alias", "Mixed", "-keyalg", "AES", "-keysize", "192", "-storetype", "JCEKS",
		"-keystore", name, "-storepass", "changeit", "-keypass", "changeit")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := mustParse(t, data, "changeit").Entry("mixed").Open(secret.Bytes("changeit"))
	if err != nil || got.Algorithm != "AES" || len(got.Material) != 24 {
		t.Errorf("%q, %d bytes, %v", got.Algorithm, len(got.Material), err)
	}
}

// TestReadOldJava reads an entry with 20 iterations, as Java before 8u151 wrote. No current Java writes such an entry,
// so the test makes it.
func TestReadOldJava(t *testing.T) {
	plain, err := encodeSecretKey("AES", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	p := pbeParams{Salt: []byte("saltsalt"), Iterations: 20}
	content, err := p.encrypt(secret.Bytes("pw"), plain)
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	e := &Entry{Alias: "old", Kind: SecretKeyEntry, sealed: sealed{params: der, content: content}}
	got, err := e.Open(secret.Bytes("pw"))
	if err != nil || string(got.Material) != "0123456789abcdef" {
		t.Errorf("%v", err)
	}
}
