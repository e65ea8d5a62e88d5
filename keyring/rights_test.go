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

// TestRightsAsRecorded makes the requests that were made to a real Hadoop KMS
// under testdata/acl-kms-acls.xml, in their order, and demands the audit lines
// that it wrote.
func TestRightsAsRecorded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Policy = recordedRules(t) })
	ctx := t.Context()
	create := func(key string, attributes map[string]string) func(claviger.Caller) error {
		return func(c claviger.Caller) error {
			_, err := l.Create(ctx, c, provider.Spec{Name: key, Attributes: attributes})
			return err
		}
	}
	roll := func(material secret.Bytes) func(claviger.Caller) error {
		return func(c claviger.Caller) error { _, err := l.Roll(ctx, c, "ka", material); return err }
	}
	remove := func(key string) func(claviger.Caller) error {
		return func(c claviger.Caller) error { return l.Delete(ctx, c, key) }
	}
	metadata := func(key string) func(claviger.Caller) error {
		return func(c claviger.Caller) error {
			m, err := l.Metadata(ctx, c, key)
			if err == nil && (m == nil) != (key == "nokey") {
				return fmt.Errorf("metadata %v", m)
			}
			return err
		}
	}
	version := func(name string) func(claviger.Caller) error {
		return func(c claviger.Caller) error {
			v, err := l.Version(ctx, c, name)
			if v != nil {
				return fmt.Errorf("version %v was shown", v)
			}
			return err
		}
	}
	versions := func(key string) func(claviger.Caller) error {
		return func(c claviger.Caller) error { _, err := l.Versions(ctx, c, key); return err }
	}
	current := func(c claviger.Caller) error { _, err := l.Current(ctx, c, "ka"); return err }
	var edek claviger.EDEK
	generate := func(key string) func(claviger.Caller) error {
		return func(c claviger.Caller) error {
			es, err := l.Generate(ctx, c, key, 1)
			if err == nil && key == "ka" {
				edek = es[0]
			}
			return err
		}
	}
	decrypt := func(version string) func(claviger.Caller) error {
		return func(c claviger.Caller) error {
			e := edek
			e.Version = version
			_, err := l.Decrypt(ctx, c, "ka", true, e)
			return err
		}
	}
	reencrypt := func(c claviger.Caller) error { _, err := l.Reencrypt(ctx, c, "ka", true, edek); return err }
	batch := func(n int) func(claviger.Caller) error {
		return func(c claviger.Caller) error {
			_, err := l.ReencryptBatch(ctx, c, "ka", []claviger.EDEK{edek}[:n])
			return err
		}
	}
	invalidate := func(key string) func(claviger.Caller) error {
		return func(c claviger.Caller) error { return l.Invalidate(ctx, c, key) }
	}
	keyText := func(user, op, acl string) string {
		return fmt.Sprintf("User [%s] is not authorized to perform [%s] on key with ACL name [%s]!!", user, op, acl)
	}

	const ok = claviger.Kind(-1)
	steps := []struct {
		name string // of the recording
		user string
		do   func(claviger.Caller) error
		kind claviger.Kind
		text string // "" is not looked at
		held bool   // the real KMS held the line back, for aggregation
	}{
		{"names", "alice", func(c claviger.Caller) error { _, err := l.Names(ctx, c); return err }, ok, "", false},
		{"create-denied", "bob", create("ka", nil), claviger.Denied, "User:bob not allowed to do 'CREATE_KEY' on " +
			"'ka'", false},
		{"create-unlisted-key", "alice", create("nope", nil), claviger.KeyDenied, "User [alice] is not authorized to " +
			"create key !!", false},
		{"create-no-get", "creator", create("ka", nil), ok, "", false},
		{"create-material-denied", "mat", func(c claviger.Caller) error {
			_, err := l.Create(ctx, c, provider.Spec{Name: "kall", BitLength: 128, Material: make(secret.Bytes, 16)})
			return err
		}, claviger.Denied, "User:mat not allowed to do 'CREATE_KEY' on 'kall'", false},
		{"create-kb", "alice", create("kb", nil), ok, "", false},
		{"create-kall", "alice", create("kall", nil), ok, "", false},
		{"create-with-acl-name", "alice", create("other", map[string]string{"key.acl.name": "ka"}), ok, "", false},
		{"metadata-acl-name", "alice", metadata("other"), ok, "", false},
		{"roll-no-get", "creator", roll(nil), ok, "", false},
		{"roll-denied-op", "bob", roll(nil), claviger.Denied, "User:bob not allowed to do 'ROLL_NEW_VERSION' on 'ka'",
			false},
		{"roll-denied-key", "roller", roll(nil), claviger.KeyDenied, keyText("roller", "MANAGEMENT", "ka"), false},
		{"roll-material-denied", "creator", roll(make(secret.Bytes, 16)), claviger.Denied,
			"User:creator not allowed to do 'ROLL_NEW_VERSION' on 'ka'", false},
		{"delete-denied-op", "bob", remove("ka"), claviger.Denied, "User:bob not allowed to do 'DELETE_KEY' on 'ka'",
			false},
		{"delete-denied-key", "deleter", remove("ka"), claviger.KeyDenied, keyText("deleter", "MANAGEMENT", "ka"),
			false},
		{"delete-missing-deleter", "deleter", remove("nokey"), claviger.KeyNotFound, "", false},
		{"names-denied", "bob", func(c claviger.Caller) error { _, err := l.Names(ctx, c); return err },
			claviger.Denied, "User:bob not allowed to do 'GET_KEYS'", false},
		{"metadata-denied-op", "bob", metadata("ka"), claviger.Denied, "User:bob not allowed to do 'GET_METADATA' on " +
			"'ka'", false},
		{"metadata-denied-key", "reader", metadata("ka"), claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"metadata-whitelist", "hdfs", metadata("ka"), ok, "", false},
		{"metadata-missing", "reader", metadata("nokey"), ok, "", false},
		{"keys-metadata-denied", "reader", func(c claviger.Caller) error {
			_, err := l.KeysMetadata(ctx, c, []string{"ka", "kb"})
			return err
		}, claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"keyversion-denied-op", "bob", version("ka@0"), claviger.Denied,
			"User:bob not allowed to do 'GET_KEY_VERSION'", false},
		{"keyversion-denied-key", "reader", version("ka@0"), claviger.KeyDenied, keyText("reader", "READ", "ka"),
			false},
		{"keyversion-missing", "reader", version("ka@9"), ok, "", false},
		{"currentversion-denied-op", "bob", current, claviger.Denied,
			"User:bob not allowed to do 'GET_CURRENT_KEY' on 'ka'", false},
		{"currentversion-denied-key", "reader", current, claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"versions-denied-key", "reader", versions("ka"), claviger.KeyDenied, keyText("reader", "READ", "ka"), false},
		{"versions-missing", "reader", versions("nokey"), ok, "", false},
		{"generate-denied-op", "bob", generate("ka"), claviger.Denied, "User:bob not allowed to do 'GENERATE_EEK' on " +
			"'ka'", false},
		{"generate-denied-key", "alice", generate("ka"), claviger.KeyDenied, keyText("alice", "GENERATE_EEK", "ka"),
			false},
		{"generate-denied-key-unlisted", "hdfs", generate("kb"), claviger.KeyDenied, keyText("hdfs", "GENERATE_EEK",
			"kb"), false},
		{"generate-ok", "hdfs", generate("ka"), ok, "", false},
		{"decrypt-blacklisted", "hdfs", decrypt("ka@1"), claviger.Denied, "User:hdfs not allowed to do 'DECRYPT_EEK' " +
			"on 'ka'", false},
		{"decrypt-denied-op", "creator", decrypt("ka@1"), claviger.Denied, "User:creator not allowed to do " +
			"'DECRYPT_EEK' on 'ka'", false},
		{"decrypt-denied-key", "alice", decrypt("ka@1"), claviger.KeyDenied, keyText("alice", "DECRYPT_EEK", "ka"),
			false},
		{"decrypt-denied-key-missing-version", "alice", decrypt("ka@9"), claviger.VersionNotFound, "", false},
		{"decrypt-ok", "bob", decrypt("ka@1"), ok, "", false},
		{"reencrypt-denied-op", "bob", reencrypt, claviger.Denied, "User:bob not allowed to do 'REENCRYPT_EEK' on " +
			"'ka'", false},
		{"reencrypt-denied-key", "creator", reencrypt, claviger.KeyDenied, keyText("creator", "GENERATE_EEK", "ka"),
			false},
		{"reencryptbatch-denied-op", "bob", batch(1), claviger.Denied,
			"User:bob not allowed to do 'REENCRYPT_EEK_BATCH' on 'ka'", false},
		{"reencryptbatch-denied-key", "creator", batch(1), claviger.KeyDenied, keyText("creator", "GENERATE_EEK",
			"ka"), false},
		{"reencryptbatch-empty-denied-key", "creator", batch(0), ok, "", false},
		{"invalidate-denied-op", "bob", invalidate("ka"), claviger.Denied,
			"User:bob not allowed to do 'INVALIDATE_CACHE' on 'ka'", false},
		{"invalidate-denied-key", "roller", invalidate("ka"), claviger.KeyDenied, keyText("roller", "MANAGEMENT",
			"ka"), false},
		{"invalidate-deleter", "deleter", invalidate("ka"), claviger.KeyDenied, keyText("deleter", "MANAGEMENT",
			"ka"), false},
		{"invalidate-missing-deleter", "deleter", invalidate("nokey"), ok, "", false},
		{"doas-decrypt", "bob", decrypt("ka@1"), ok, "", true},
		{"all-generate", "alice", generate("kall"), ok, "", false},
	}
	var lines []string
	for _, s := range steps {
		err := s.do(caller(s.user))
		kind := ok
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

// recordedLines are the lines of the recorded audit log that are the Ring's to
// leave (ERROR is the face's), without times, counts and the lines at the end
// that aggregation made.
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
