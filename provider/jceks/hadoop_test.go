package jceks

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

const hadoopPassword = "secretpw"

// hadoopRun returns a function that runs commands of testdata/java/HadoopKeys.java, which uses Hadoop's own
// JavaKeyStoreProvider. One JVM serves all tests, because starting JVMs took half of the time of this package.
// CLAVIGER_HADOOP_JARS names the folder of Hadoop's jars; scripts/hadoop-jars prints one. Without it the test is
// skipped, or fails if CLAVIGER_REQUIRE_HADOOP is 1.
func hadoopRun(t *testing.T) func(path string, commands ...string) (string, error) {
	t.Helper()
	jars := os.Getenv("CLAVIGER_HADOOP_JARS")
	if _, err := exec.LookPath("java"); jars == "" || err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_HADOOP") == "1" {
			t.Fatalf("CLAVIGER_HADOOP_JARS is %q, java: %v", jars, err)
		}
		t.Skip("CLAVIGER_HADOOP_JARS does not name a folder with Hadoop's jars, which this test needs")
	}
	h, err := hadoopKeys()
	if err != nil {
		t.Fatal(err)
	}
	return h.run
}

// hadoopProcess is a JVM that runs HadoopKeys. One goroutine at a time may use it.
type hadoopProcess struct {
	stdin   io.Writer
	answers *bufio.Reader
	stderr  strings.Builder // to be read after the JVM has ended
	wait    func() error
}

// hadoopKeys compiles HadoopKeys and starts it. The JVM ends when the test binary ends and so closes its standard
// input.
var hadoopKeys = sync.OnceValues(func() (*hadoopProcess, error) {
	jars := os.Getenv("CLAVIGER_HADOOP_JARS")
	dir, err := os.MkdirTemp("", "hadoopkeys")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // the JVM has loaded its only class before the first answer
	config := filepath.Join(dir, "log4j.properties")
	if err := os.WriteFile(config, []byte("log4j.rootLogger=OFF\n"), 0o600); err != nil {
		return nil, err
	}
	ctx := context.Background() // all tests share the JVM
	out, err := exec.CommandContext(ctx, "javac", "-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-cp", jars+"/*",
		"-d", dir, "testdata/java/HadoopKeys.java").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("javac: %w\n%s", err, out)
	}
	h := &hadoopProcess{}
	cmd := exec.CommandContext(ctx, "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8",
		"-Dlog4j.configuration=file:"+config, "-cp", jars+"/*:"+dir, "HadoopKeys")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", passwordEnv+"="+hadoopPassword)
	cmd.Stderr, h.wait = &h.stderr, cmd.Wait
	if h.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.answers = bufio.NewReader(stdout)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, err = h.run(filepath.Join(dir, "none"))
	return h, err
})

// run runs commands on the keystore at path, and returns their output and the error that ended them.
func (h *hadoopProcess) run(path string, commands ...string) (string, error) {
	var words []string
	for _, w := range append([]string{"jceks://file@" + path}, commands...) {
		words = append(words, base64.StdEncoding.EncodeToString([]byte(w)))
	}
	if _, err := io.WriteString(h.stdin, strings.Join(words, " ")+"\n"); err != nil {
		return "", err
	}
	line, err := h.answers.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the JVM ended: %w\n%s", h.wait(), h.stderr.String())
	}
	status, encoded, _ := strings.Cut(strings.TrimSpace(line), " ")
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err == nil && status != "ok" {
		err = errors.New("an exception in Hadoop")
	}
	return string(text), err
}

// exchange is a keystore file that Hadoop and an open provider change in turn.
type exchange struct {
	t    *testing.T
	path string
	run  func(path string, commands ...string) (string, error)
	p    *Provider
}

func newExchange(t *testing.T) *exchange {
	t.Helper()
	run := hadoopRun(t)
	path := filepath.Join(t.TempDir(), "kms.keystore")
	return &exchange{t, path, run, openFile(t, path, hadoopPassword)}
}

// hadoop runs commands in Hadoop, and returns their output.
func (e *exchange) hadoop(commands ...string) string {
	e.t.Helper()
	out, err := e.run(e.path, commands...)
	if err != nil {
		e.t.Fatalf("Hadoop, %q: %v\n%s", commands, err, out)
	}
	return out
}

// wantEqual demands that Hadoop and the provider read the same. Hadoop's list of keys lacks at@1, so its name is given.
func (e *exchange) wantEqual() {
	e.t.Helper()
	if got, want := e.hadoop("name=at@1", "dump"), dump(e.t, e.p, "at@1"); got != want {
		e.t.Fatalf("Hadoop reads\n%s\nwe read\n%s", got, want)
	}
}

func (e *exchange) roll(key string) {
	e.t.Helper()
	if _, err := e.p.Roll(e.t.Context(), key, nil); err != nil {
		e.t.Fatal(err)
	}
}

// create makes keys of all kinds.
func (e *exchange) create() {
	e.t.Helper()
	description := "Größe <&> \u2028 \"鍵\""
	long := strings.Repeat("long ", 1000)
	for _, s := range []provider.Spec{
		{Name: "plain", Cipher: claviger.DefaultCipher, BitLength: 128},
		{Name: "full", Cipher: "AES/CBC/NoPadding", BitLength: 256, Description: &description,
			Attributes: map[string]string{"key.acl.name": "x", "ü": "<&>"}},
		{Name: "long", Cipher: claviger.DefaultCipher, BitLength: 192, Description: &long},
		{Name: "at@1", Cipher: claviger.DefaultCipher, BitLength: 128},
		{Name: "späť/a b", Cipher: claviger.DefaultCipher, BitLength: 128, Material: secret.Bytes("0123456789abcdef")},
	} {
		if _, err := e.p.Create(e.t.Context(), s); err != nil {
			e.t.Fatal(err)
		}
	}
}

// TestHadoopExchange changes one file in turn with Hadoop and with a provider that stays open. Each must read the
// changes of the other.
func TestHadoopExchange(t *testing.T) {
	e := newExchange(t)
	p, path := e.p, e.path
	e.create()
	p.iterations = 0 // as outside of tests
	e.roll("full")
	e.wantEqual()

	// After Hadoop's write there are checksums beside the file. The provider's next write must not leave them stale.
	material := strings.Repeat("ab", 16)
	e.hadoop("roll=plain:"+material, "create=theirs:AES/CTR/NoPadding:"+material)
	if !exists(hiddenFile(path, ".crc")) {
		t.Error("Hadoop wrote no checksums, so this test checks less than it should")
	}
	e.wantEqual()
	got, err := p.Version(t.Context(), "plain@1")
	if err != nil || hex.EncodeToString(got.Material) != material {
		t.Errorf("Hadoop's version: %v", err)
	}
	stale, err := os.ReadFile(hiddenFile(path, ".crc"))
	if err != nil {
		t.Fatal(err)
	}
	e.roll("theirs")
	if err := p.Delete(t.Context(), "long"); err != nil {
		t.Fatal(err)
	}
	e.wantEqual()
	e.hadoop("delete=plain", "roll=theirs:"+material, "roll=full:"+strings.Repeat("cd", 32))
	e.wantEqual()
	if m, err := p.Metadata(t.Context(), "plain", "theirs"); err != nil || m[0] != nil || m[1].Versions != 3 {
		t.Errorf("after Hadoop's changes: %+v, %v", m, err)
	}

	// Hadoop refuses a file with stale checksums, so the provider must remove them.
	if err := os.WriteFile(hiddenFile(path, ".crc"), stale, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := e.run(path, "dump"); err == nil || !strings.Contains(out, "ChecksumException") &&
		!strings.Contains(out, "FileNotFoundException") {
		t.Errorf("Hadoop accepts a file with stale checksums: %v\n%s", err, out)
	}
	e.roll("theirs")
	e.wantEqual()
}

// TestHadoopReadsImported checks that Hadoop reads and rolls an imported key whose versions do not begin at 0.
func TestHadoopReadsImported(t *testing.T) {
	run := hadoopRun(t)
	path := filepath.Join(t.TempDir(), "kms.keystore")
	p := openFile(t, path, hadoopPassword)
	m := claviger.Metadata{Name: "imported", Cipher: claviger.DefaultCipher, BitLength: 128, Versions: 3}
	versions, err := p.Import(t.Context(), m, 2, m.Versions, nil)
	if err != nil {
		t.Fatal(err)
	}
	if versions[0].Name != "imported@3" || versions[1].Name != "imported@4" {
		t.Errorf("imported as %q and %q", versions[0].Name, versions[1].Name)
	}
	material := strings.Repeat("ef", 16)
	out, err := run(path, "roll=imported:"+material, "dump")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range []string{
		"\n  imported@3 " + hex.EncodeToString(versions[0].Material) + "\n",
		"\n  imported@4 " + hex.EncodeToString(versions[1].Material) + "\n", "\n  imported@5 " + material + "\n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("Hadoop does not read %q of\n%s", line, out)
		}
	}
	cur, err := p.Current(t.Context(), "imported")
	if err != nil || cur.Name != "imported@5" {
		t.Errorf("the current version is %q, %v", cur.Name, err)
	}
}

// TestHadoopAfterCrash checks that Hadoop reads the keystore in every state in which a crash can leave our write. It
// must see all keys of the old state or of the new one.
func TestHadoopAfterCrash(t *testing.T) {
	run := hadoopRun(t)
	dir := t.TempDir()
	made := filepath.Join(dir, "made")
	p := openFile(t, made, hadoopPassword)
	create := func(name string) []byte {
		t.Helper()
		if _, err := p.Create(context.Background(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(made)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	before := create("first")
	after := create("second")
	var commands []string
	for _, tc := range crashStates {
		path := filepath.Join(t.TempDir(), "kms.keystore")
		tc.make(t, path, before, after)
		commands = append(commands, "use=jceks://file@"+path, "dump")
	}
	out, err := run(made, commands...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dumps := strings.Split(out, "use=")[1:]
	if len(dumps) != len(crashStates) {
		t.Fatalf("%d dumps, want %d:\n%s", len(dumps), len(crashStates), out)
	}
	for i, tc := range crashStates {
		if second := strings.Contains(dumps[i], "\nsecond "); !strings.Contains(dumps[i], "\nfirst ") ||
			second != tc.after {
			t.Errorf("%s: want the keys of the new state: %v; Hadoop reads\n%s", tc.name, tc.after, dumps[i])
		}
	}
}

// TestHadoopKeytool checks that keystores that keytool made open or are refused as in Hadoop.
func TestHadoopKeytool(t *testing.T) {
	run := hadoopRun(t)
	dir := t.TempDir()
	keytool := func(args ...string) string {
		t.Helper()
		args = append(args, "-storepass", hadoopPassword, "-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC")
		out, err := exec.CommandContext(t.Context(), "keytool", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("keytool %q: %v\n%s", args, err, out)
		}
		return string(out)
	}

	secretKey := filepath.Join(dir, "secret.jceks")
	keytool("-genseckey", "-alias", "aes", "-keyalg", "AES", "-keysize", "256", "-storetype", "JCEKS", "-keystore",
		secretKey, "-keypass", hadoopPassword)
	p := openFile(t, secretKey, hadoopPassword)
	if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("keys %q, %v", keys, err)
	}
	if _, err := p.Metadata(t.Context(), "aes"); !claviger.Is(err, claviger.Internal) ||
		!strings.Contains(err.Error(), "as keytool makes one") {
		t.Errorf("metadata of keytool's key: %v", err)
	}
	if out, err := run(secretKey, "dump"); err == nil || !strings.Contains(out, "Can't cast key for aes") {
		t.Errorf("Hadoop's metadata of keytool's key: %v, %s", err, out)
	}

	pkcs12 := filepath.Join(dir, "default.p12")
	keytool("-genseckey", "-alias", "aes", "-keyalg", "AES", "-keysize", "256", "-keystore", pkcs12)
	if _, err := open(t.Context(), "jceks://file@"+pkcs12, env(hadoopPassword)); err == nil ||
		!strings.Contains(err.Error(), "PKCS#12") {
		t.Errorf("keytool's default: %v", err)
	}
	if out, err := run(pkcs12, "dump"); err == nil {
		t.Errorf("Hadoop opens a PKCS#12 file: %s", out)
	}

	// Java's JCEKS opens a JKS file, and writes it as a JCEKS file.
	jks := filepath.Join(dir, "pair.jks")
	keytool("-genkeypair", "-alias", "rsa", "-keyalg", "RSA", "-dname", "CN=x", "-storetype", "JKS", "-keystore", jks,
		"-keypass", hadoopPassword)
	p = openFile(t, jks, hadoopPassword)
	if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("keys of a JKS file: %q, %v", keys, err)
	}
	if _, err := p.Create(t.Context(), provider.Spec{Name: "rsa", Cipher: claviger.DefaultCipher,
		BitLength: 128}); !claviger.Is(err, claviger.KeyExists) {
		t.Errorf("a key over the private key: %v", err)
	}
	mustCreate(t, p, "ours")
	if out, err := run(jks, "create=theirs:AES/CTR/NoPadding:"+strings.Repeat("ab", 16)); err != nil {
		t.Fatalf("Hadoop, after our change of a JKS file: %v\n%s", err, out)
	}
	if keys, err := p.Keys(t.Context()); err != nil || strings.Join(keys, " ") != "ours theirs" {
		t.Errorf("keys %q, %v", keys, err)
	}
	// The private key still exists, and opens with its password.
	keytool("-certreq", "-alias", "rsa", "-storetype", "JCEKS", "-keystore", jks, "-keypass", hadoopPassword)
}
