package keyring

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// recordedRing makes the requests of the recording.
type recordedRing struct {
	*testRing
	t    *testing.T
	edek claviger.EDEK // the last one that was made under the key ka
}

func (l *recordedRing) names(c claviger.Caller) error {
	_, err := l.Names(l.t.Context(), c)
	return err
}

func (l *recordedRing) create(key string, attributes map[string]string) func(claviger.Caller) error {
	return func(c claviger.Caller) error {
		_, err := l.Create(l.t.Context(), c, provider.Spec{Name: key, Attributes: attributes})
		return err
	}
}

func (l *recordedRing) createWithMaterial(c claviger.Caller) error {
	_, err := l.Create(l.t.Context(), c, provider.Spec{Name: "kall", BitLength: 128, Material: make(secret.Bytes, 16)})
	return err
}

func (l *recordedRing) roll(material secret.Bytes) func(claviger.Caller) error {
	return func(c claviger.Caller) error { _, err := l.Roll(l.t.Context(), c, "ka", material); return err }
}

func (l *recordedRing) remove(key string) func(claviger.Caller) error {
	return func(c claviger.Caller) error { return l.Delete(l.t.Context(), c, key) }
}

func (l *recordedRing) metadata(key string) func(claviger.Caller) error {
	return func(c claviger.Caller) error {
		m, err := l.Metadata(l.t.Context(), c, key)
		if err == nil && (m == nil) != (key == "nokey") {
			return fmt.Errorf("metadata %v", m)
		}
		return err
	}
}

func (l *recordedRing) keysMetadata(c claviger.Caller) error {
	_, err := l.KeysMetadata(l.t.Context(), c, []string{"ka", "kb"})
	return err
}

func (l *recordedRing) version(name string) func(claviger.Caller) error {
	return func(c claviger.Caller) error {
		v, err := l.Version(l.t.Context(), c, name)
		if v != nil {
			return fmt.Errorf("version %v was shown", v)
		}
		return err
	}
}

func (l *recordedRing) versions(key string) func(claviger.Caller) error {
	return func(c claviger.Caller) error { _, err := l.Versions(l.t.Context(), c, key); return err }
}

func (l *recordedRing) current(c claviger.Caller) error {
	_, err := l.Current(l.t.Context(), c, "ka")
	return err
}

func (l *recordedRing) generate(key string) func(claviger.Caller) error {
	return func(c claviger.Caller) error {
		es, err := l.Generate(l.t.Context(), c, key, 1)
		if err == nil && key == "ka" {
			l.edek = es[0]
		}
		return err
	}
}

func (l *recordedRing) decrypt(version string) func(claviger.Caller) error {
	return func(c claviger.Caller) error {
		e := l.edek
		e.Version = version
		_, err := l.Decrypt(l.t.Context(), c, "ka", true, e)
		return err
	}
}

func (l *recordedRing) reencrypt(c claviger.Caller) error {
	_, err := l.Reencrypt(l.t.Context(), c, "ka", true, l.edek)
	return err
}

func (l *recordedRing) batch(n int) func(claviger.Caller) error {
	return func(c claviger.Caller) error {
		_, err := l.ReencryptBatch(l.t.Context(), c, "ka", []claviger.EDEK{l.edek}[:n])
		return err
	}
}

func (l *recordedRing) invalidate(key string) func(claviger.Caller) error {
	return func(c claviger.Caller) error { return l.Invalidate(l.t.Context(), c, key) }
}

func keyText(user, op, acl string) string {
	return fmt.Sprintf("User [%s] is not authorized to perform [%s] on key with ACL name [%s]!!", user, op, acl)
}

const noError = claviger.Kind(-1)

// recordedStep is one request of the recording.
type recordedStep struct {
	name string // of the request in the recording
	user string
	do   func(claviger.Caller) error
	kind claviger.Kind
	text string // of the error; "" is not compared
	held bool   // the real KMS held the audit line back, for aggregation
}

// manageSteps are the requests that make, roll and delete keys.
func (l *recordedRing) manageSteps() []recordedStep {
	return []recordedStep{
		{"names", "alice", l.names, noError, "", false},
		{"create-denied", "bob", l.create("ka", nil), claviger.Denied, "User:bob not allowed to do 'CREATE_KEY' on " +
			"'ka'", false},
		{"create-unlisted-key", "alice", l.create("nope", nil), claviger.KeyDenied,
			"User [alice] is not authorized to " +
				"create key !!", false},
		{"create-no-get", "creator", l.create("ka", nil), noError, "", false},
		{"create-material-denied", "mat", l.createWithMaterial, claviger.Denied,
			"User:mat not allowed to do 'CREATE_KEY' on 'kall'", false},
		{"create-kb", "alice", l.create("kb", nil), noError, "", false},
		{"create-kall", "alice", l.create("kall", nil), noError, "", false},
		{"create-with-acl-name", "alice", l.create("other", map[string]string{"key.acl.name": "ka"}), noError, "",
			false},
		{"metadata-acl-name", "alice", l.metadata("other"), noError, "", false},
		{"roll-no-get", "creator", l.roll(nil), noError, "", false},
		{"roll-denied-op", "bob", l.roll(nil), claviger.Denied, "User:bob not allowed to do 'ROLL_NEW_VERSION' on 'ka'",
			false},
		{"roll-denied-key", "roller", l.roll(nil), claviger.KeyDenied, keyText("roller", "MANAGEMENT", "ka"), false},
		{"roll-material-denied", "creator", l.roll(make(secret.Bytes, 16)), claviger.Denied,
			"User:creator not allowed to do 'ROLL_NEW_VERSION' on 'ka'", false},
		{"delete-denied-op", "bob", l.remove("ka"), claviger.Denied, "User:bob not allowed to do 'DELETE_KEY' on 'ka'",
			false},
		{"delete-denied-key", "deleter", l.remove("ka"), claviger.KeyDenied, keyText("deleter", "MANAGEMENT", "ka"),
			false},
		{"delete-missing-deleter", "deleter", l.remove("nokey"), claviger.KeyNotFound, "", false},
	}
}

// readSteps are the requests that read keys and versions.
func (l *recordedRing) readSteps() []recordedStep {
	return []recordedStep{
		{"names-denied", "bob", l.names,
			claviger.Denied, "User:bob not allowed to do 'GET_KEYS'", false},
		{"metadata-denied-op", "bob", l.metadata("ka"), claviger.Denied,
			"User:bob not allowed to do 'GET_METADATA' on " +
				"'ka'", false},
		{"metadata-denied-key", "reader", l.metadata("ka"), claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"metadata-whitelist", "hdfs", l.metadata("ka"), noError, "", false},
		{"metadata-missing", "reader", l.metadata("nokey"), noError, "", false},
		{"keys-metadata-denied", "reader", l.keysMetadata, claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"keyversion-denied-op", "bob", l.version("ka@0"), claviger.Denied,
			"User:bob not allowed to do 'GET_KEY_VERSION'", false},
		{"keyversion-denied-key", "reader", l.version("ka@0"), claviger.KeyDenied, keyText("reader", "READ", "ka"),
			false},
		{"keyversion-missing", "reader", l.version("ka@9"), noError, "", false},
		{"currentversion-denied-op", "bob", l.current, claviger.Denied,
			"User:bob not allowed to do 'GET_CURRENT_KEY' on 'ka'", false},
		{"currentversion-denied-key", "reader", l.current, claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"versions-denied-key", "reader", l.versions("ka"), claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"versions-missing", "reader", l.versions("nokey"), noError, "", false},
	}
}

// edekSteps are the requests with EDEKs, and those that drop keys from the cache.
func (l *recordedRing) edekSteps() []recordedStep {
	return []recordedStep{
		{"generate-denied-op", "bob", l.generate("ka"), claviger.Denied,
			"User:bob not allowed to do 'GENERATE_EEK' on " +
				"'ka'", false},
		{"generate-denied-key", "alice", l.generate("ka"), claviger.KeyDenied, keyText("alice", "GENERATE_EEK", "ka"),
			false},
		{"generate-denied-key-unlisted", "hdfs", l.generate("kb"), claviger.KeyDenied, keyText("hdfs", "GENERATE_EEK",
			"kb"), false},
		{"generate-ok", "hdfs", l.generate("ka"), noError, "", false},
		{"decrypt-blacklisted", "hdfs", l.decrypt("ka@1"), claviger.Denied,
			"User:hdfs not allowed to do 'DECRYPT_EEK' " +
				"on 'ka'", false},
		{"decrypt-denied-op", "creator", l.decrypt("ka@1"), claviger.Denied, "User:creator not allowed to do " +
			"'DECRYPT_EEK' on 'ka'", false},
		{"decrypt-denied-key", "alice", l.decrypt("ka@1"), claviger.KeyDenied, keyText("alice", "DECRYPT_EEK", "ka"),
			false},
		{"decrypt-denied-key-missing-version", "alice", l.decrypt("ka@9"), claviger.VersionNotFound, "", false},
		{"decrypt-ok", "bob", l.decrypt("ka@1"), noError, "", false},
		{"reencrypt-denied-op", "bob", l.reencrypt, claviger.Denied, "User:bob not allowed to do 'REENCRYPT_EEK' on " +
			"'ka'", false},
		{"reencrypt-denied-key", "creator", l.reencrypt, claviger.KeyDenied, keyText("creator", "GENERATE_EEK", "ka"),
			false},
		{"reencryptbatch-denied-op", "bob", l.batch(1), claviger.Denied,
			"User:bob not allowed to do 'REENCRYPT_EEK_BATCH' on 'ka'", false},
		{"reencryptbatch-denied-key", "creator", l.batch(1), claviger.KeyDenied, keyText("creator", "GENERATE_EEK",
			"ka"), false},
		{"reencryptbatch-empty-denied-key", "creator", l.batch(0), noError, "", false},
		{"invalidate-denied-op", "bob", l.invalidate("ka"), claviger.Denied,
			"User:bob not allowed to do 'INVALIDATE_CACHE' on 'ka'", false},
		{"invalidate-denied-key", "roller", l.invalidate("ka"), claviger.KeyDenied, keyText("roller", "MANAGEMENT",
			"ka"), false},
		{"invalidate-deleter", "deleter", l.invalidate("ka"), claviger.KeyDenied, keyText("deleter", "MANAGEMENT",
			"ka"), false},
		{"invalidate-missing-deleter", "deleter", l.invalidate("nokey"), noError, "", false},
		{"doas-decrypt", "bob", l.decrypt("ka@1"), noError, "", true},
		{"all-generate", "alice", l.generate("kall"), noError, "", false},
	}
}

// TestRightsAsRecorded makes the requests that were made to a real Hadoop KMS with testdata/acl-kms-acls.xml, in their
// order. The audit lines must be those of the real KMS.
func TestRightsAsRecorded(t *testing.T) {
	l := &recordedRing{testRing: newTestRing(t, func(c *Config) { c.Policy = recordedRules(t) }), t: t}
	steps := slices.Concat(l.manageSteps(), l.readSteps(), l.edekSteps())
	var lines []string
	for _, s := range steps {
		err := s.do(caller(s.user))
		kind := noError
		if err != nil {
			kind = claviger.KindOf(err)
		}
		if kind != s.kind {
			t.Fatalf("%s: %v, want kind %v", s.name, err, s.kind)
		}
		if s.text != "" && text(t, err) != s.text {
			t.Errorf("%s: error %q, want %q", s.name, text(t, err), s.text)
		}
		got := l.audit.take()
		if s.held {
			if len(got) != 1 {
				t.Errorf("%s: audit lines %q, want one", s.name, got)
			}
			continue
		}
		lines = append(lines, got...)
	}
	if want := recordedLines(t); !slices.Equal(lines, want) {
		for i := range max(len(lines), len(want)) {
			if i >= len(lines) || i >= len(want) || lines[i] != want[i] {
				t.Fatalf("audit line %d differs:\ngot  %q\nwant %q", i+1, lines[min(i, len(lines)):],
					want[min(i, len(want)):])
			}
		}
	}
}

// recordedLines returns the lines of the recorded audit log that the Ring writes; the lines with ERROR are kmsapi's.
// They are without times, counts and the lines at the end that aggregation made.
func recordedLines(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("testdata/acl-kms-audit.log")
	if err != nil {
		t.Fatal(err)
	}
	counts := regexp.MustCompile(`, accessCount=\d+, interval=\d+ms`)
	aggregated := regexp.MustCompile(`interval=\d{5,}ms`)
	var lines []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")[len("2026-11-23 14:08:15,122 "):]
		if strings.HasPrefix(line, "ERROR") || aggregated.MatchString(line) {
			continue
		}
		lines = append(lines, counts.ReplaceAllString(line, ""))
	}
	if len(lines) < 50 {
		t.Fatalf("only %d lines in the recording", len(lines))
	}
	return lines
}
