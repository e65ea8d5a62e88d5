package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/secret"
)

// chainAt opens a chain in a file, and stores its head in a file beside it.
func chainAt(t testing.TB, path string, change func(*ChainConfig)) *Chain {
	t.Helper()
	f, err := OpenExclusiveFile(path, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := ChainConfig{Node: "kms1", File: f, Heads: []Heads{HeadFileOf(path)}}
	if change != nil {
		change(&cfg)
	}
	c, err := OpenChain(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func closeChain(t testing.TB, c *Chain) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func event(key string) Event {
	return Event{Status: OK, Op: DecryptEEK, Key: key, Version: key + "@1", EDEKs: 1, Provider: "hsm://x",
		Caller: claviger.Caller{
			Principal: claviger.Principal{Name: "alice@R", Short: "alice", Real: &claviger.Principal{Name: "hive/h@R",
				Short: "hive"}},
			RemoteAddr: "10.1.2.3", RequestID: "r-1",
		}}
}

func readLines(t testing.TB, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(b)))
}

// verified calls Verify. There must be one finding for each text of want, in this order, and no other finding.
func verified(t testing.TB, cfg VerifyConfig, paths []string, want ...string) *Report {
	t.Helper()
	r, err := Verify(paths, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) != len(want) {
		t.Fatalf("findings %v, want %q", r.Findings, want)
	}
	for i, f := range r.Findings {
		if !strings.Contains(f.String(), want[i]) {
			t.Errorf("finding %q, want %q", f, want[i])
		}
	}
	return r
}

func headOf(t testing.TB, path string) []Head {
	t.Helper()
	h, ok, err := HeadFileOf(path).Load(t.Context())
	if err != nil || !ok {
		t.Fatalf("head of %s: %v, %v", path, ok, err)
	}
	return []Head{h}
}

// TestRecordHasAllFields: a record has each field of its event, with text that cannot break its line.
func TestRecordHasAllFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, nil)
	e := event("k")
	e.Time = time.Date(2026, 11, 23, 14, 3, 30, 123456789, time.UTC)
	e.Caller.Token = 7
	e.Message, e.From = "forged\n{\"seq\":1}\u2028 <b>\xff", []string{"k@0"}
	c.Log(t.Context(), e)
	closeChain(t, c)
	lines := readLines(t, path)
	if len(lines) != 2 {
		t.Fatalf("%d lines, want a beginning and an event:\n%s", len(lines), lines)
	}
	r, err := ParseRecord([]byte(strings.TrimSuffix(lines[1], "\n")))
	if err != nil {
		t.Fatal(err)
	}
	r.Prev, r.Hash = "", ""
	want := Record{
		Seq: 2, Time: "2026-11-23T14:03:30.123456Z", Node: "kms1", Kind: EventRecord, Status: OK, Op: DecryptEEK,
		Key: "k", Version: "k@1", From: []string{"k@0"}, EDEKs: 1, User: "alice@R", Short: "alice",
		RealUser: "hive/h@R", Token: 7, Address: "10.1.2.3", Request: "r-1",
		Provider: "hsm://x", Message: "forged\n{\"seq\":1}\u2028 <b>\ufffd",
	}
	got, _ := json.Marshal(r)
	if wanted, _ := json.Marshal(want); string(got) != string(wanted) {
		t.Errorf("record\n%s, want\n%s", got, wanted)
	}
	report := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
	if report.Records != 2 || report.First != 1 || report.Last != 2 || report.Node != "kms1" || len(report.Notes) != 0 {
		t.Errorf("report %+v", report)
	}
}

// TestRecordStaysOnItsLine: no character of a name ends the line or reverses the rest of the line for any reader, and
// ParseRecord returns the name unchanged.
func TestRecordStaysOnItsLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, nil)
	const name = "a\n\r\t\x00\x1b[2J\x7f\u0085\u2028\u202e\u2066\u061cb 鍵 "
	c.Log(t.Context(), event(name))
	closeChain(t, c)
	lines := readLines(t, path)
	text := strings.TrimSuffix(lines[len(lines)-1], "\n")
	if i := strings.IndexFunc(text, claviger.Misleads); i >= 0 {
		t.Errorf("%q is in the line without an escape", text[i:i+3])
	}
	r, err := ParseRecord([]byte(text))
	if err != nil || r.Key != name || r.Version != name+"@1" {
		t.Errorf("key %q, %v", r.Key, err)
	}
	verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
}

// TestHashIsAsDocumented computes the hashes of a file as docs/audit.md describes.
func TestHashIsAsDocumented(t *testing.T) {
	for _, key := range []secret.Bytes{nil, secret.Bytes("0123456789abcdef0123456789abcdef")} {
		path := filepath.Join(t.TempDir(), "audit.json")
		c := chainAt(t, path, func(cfg *ChainConfig) { cfg.Key = key })
		c.Log(t.Context(), event("k"))
		closeChain(t, c)
		prev := strings.Repeat("0", 64)
		for i, line := range readLines(t, path) {
			at := strings.LastIndex(line, `,"hash":"`)
			raw, err := hex.DecodeString(prev)
			if err != nil {
				t.Fatal(err)
			}
			hashed := append(raw, line[:at]...)
			sum := fmt.Sprintf("%x", sha256.Sum256(hashed))
			if key != nil {
				mac := hmac.New(sha256.New, key)
				_, _ = mac.Write(hashed)
				sum = hex.EncodeToString(mac.Sum(nil))
			}
			if want := line[:at] + `,"hash":"` + sum + "\"}\n"; line != want ||
				!strings.HasPrefix(line, fmt.Sprintf(`{"seq":%d,"prev":"%s",`, i+1, prev)) {
				t.Errorf("line %q, want %q", line, want)
			}
			prev = sum
		}
	}
}

// TestTampering: Verify finds each kind of change to a log.
func TestTampering(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.json")
	c := chainAt(t, path, nil)
	for i := range 8 {
		c.Log(t.Context(), event(fmt.Sprint("k", i)))
	}
	closeChain(t, c)
	whole := readLines(t, path) // 9 records
	heads := headOf(t, path)
	reseal := func(line string) string { // as an attacker who knows the format can do
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		r.User = "mallory@R"
		prev, _ := parseDigest(r.Prev)
		b, _ := newSealer(nil).seal(nil, r.Seq, prev, encodeBody(r))
		return string(b)
	}
	for name, test := range map[string]struct {
		change func(l []string) []string
		want   []string
	}{
		"no change": {func(l []string) []string { return l }, nil},
		"one removed": {func(l []string) []string { return slices.Delete(l, 4, 5) },
			[]string{":5: record 5 is missing before this record"}},
		"three removed": {func(l []string) []string { return slices.Delete(l, 2, 5) },
			[]string{":3: records 3 to 5 are missing before this record"}},
		"first removed": {func(l []string) []string { return l[1:] }, nil}, // it may be in an earlier file: only a note
		"tail removed": {func(l []string) []string { return l[:6] }, []string{"records 7 to 9 are missing " +
			"at the end"}},
		"begin changed": {func(l []string) []string {
			l[0] = strings.Replace(l[0], `"start"`, `"begin"`, 1)
			return l
		}, []string{":1: record 1 was changed: its hash"}},
		"changed": {func(l []string) []string { l[3] = strings.Replace(l[3], "alice", "mallo", 1); return l },
			[]string{":4: record 4 was changed"}},
		"time changed": {func(l []string) []string {
			l[3] = strings.Replace(l[3], `"time":"2`, `"time":"3`, 1)
			return l
		}, []string{":4: record 4 was changed"}},
		"resealed": {func(l []string) []string { l[3] = reseal(l[3]); return l },
			[]string{":5: record 5 does not follow the previous record"}},
		"last resealed": {func(l []string) []string { l[8] = reseal(l[8]); return l },
			[]string{":9: record 9 is not the record that the head of"}},
		"swapped": {func(l []string) []string { l[3], l[4] = l[4], l[3]; return l },
			[]string{"record 4 is missing", "record 4 comes after record 5", "record 5 is missing"}},
		"repeated": {func(l []string) []string { return slices.Insert(l, 5, l[4]) },
			[]string{":6: record 5 comes after record 5"}},
		"foreign line": {func(l []string) []string { return slices.Insert(l, 5, "hello\n") },
			[]string{":6: the line does not end with a hash"}},
		"two foreign lines": {func(l []string) []string { return slices.Insert(l, 5, "hello\n", "and more\n") },
			[]string{":6: the line does not end with a hash", ":7: the line does not end with a hash"}},
		"cut line": {func(l []string) []string { l[8] = l[8][:50]; return l },
			[]string{":9: the line does not end with a hash", "record 9 is missing at the end"}},
		"number changed": {func(l []string) []string {
			l[8] = strings.Replace(l[8], `"seq":9`, `"seq":10`, 1)
			return l
		}, []string{"record 9 is missing", "record 10 was changed"}},
		"all removed": {func(l []string) []string { return nil },
			[]string{"there is no record", "records 1 to 9 are missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			lines := test.change(slices.Clone(whole))
			p := filepath.Join(t.TempDir(), "audit.json")
			if err := os.WriteFile(p, []byte(strings.Join(lines, "")), 0o600); err != nil {
				t.Fatal(err)
			}
			verified(t, VerifyConfig{Heads: heads}, []string{p}, test.want...)
		})
	}
	if _, err := Verify([]string{filepath.Join(dir, "none")}, VerifyConfig{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestKeyed: a log that was made with a key is verified with this key only, and a log without a key is refused if a key
// is given.
func TestKeyed(t *testing.T) {
	dir := t.TempDir()
	plain, keyed := filepath.Join(dir, "plain"), filepath.Join(dir, "keyed")
	key := secret.Bytes("0123456789abcdef0123456789abcdef")
	for path, k := range map[string]secret.Bytes{plain: nil, keyed: key} {
		c := chainAt(t, path, func(cfg *ChainConfig) { cfg.Key = k })
		closeChain(t, c)
	}
	verified(t, VerifyConfig{Key: key}, []string{keyed})
	verified(t, VerifyConfig{}, []string{keyed}, "made with a key")
	verified(t, VerifyConfig{Key: key}, []string{plain}, "made without a key")
	verified(t, VerifyConfig{Key: secret.Bytes("another key, another key, another")}, []string{keyed},
		"the key is wrong")
}

// TestChainContinues after a restart, a rotation by File, a rotation by logrotate, and the removal of the file.
func TestChainContinues(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.json")
	c := chainAt(t, path, nil)
	c.Log(t.Context(), event("one"))
	closeChain(t, c)

	c = chainAt(t, path, nil) // a restart
	c.Log(t.Context(), event("two"))
	if err := c.Begin(t.Context(), Event{Op: DeleteKey}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+"-1"); err != nil { // logrotate
		t.Fatal(err)
	}
	if err := c.Reopen(); err != nil {
		t.Fatal(err)
	}
	c.Log(t.Context(), event("three"))
	closeChain(t, c)
	if lines := readLines(t, path); len(lines) != 2 || !strings.Contains(lines[0], `"kind":"begin"`) ||
		!strings.Contains(lines[0], `"reason":"file"`) {
		t.Errorf("the new file has %q, want a begin record and an event", lines)
	}

	c = chainAt(t, path, func(cfg *ChainConfig) { cfg.File.rotation = Rotation{Size: 1} })
	c.cfg.File.mu.Lock()
	c.cfg.File.checked = time.Time{} // a second has passed
	c.cfg.File.mu.Unlock()
	if err := c.Begin(t.Context(), Event{Op: DeleteKey}); err != nil {
		t.Fatal(err)
	}
	closeChain(t, c)
	rotated, err := c.cfg.File.rotated()
	if err != nil || len(rotated) != 1 {
		t.Fatalf("rotated %v, %v", rotated, err)
	}
	report := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path, path + "-1", rotated[0]})
	if !slices.Equal(report.Files, []string{path + "-1", rotated[0], path}) || report.Records != 10 {
		t.Errorf("report %+v", report)
	}
	verified(t, VerifyConfig{}, []string{path + "-1", path}, "records 6 to 8 are missing")
	if r := verified(t, VerifyConfig{}, []string{rotated[0]}); len(r.Notes) != 1 ||
		!strings.Contains(r.Notes[0].What, "continues here after record 5") {
		t.Errorf("notes %v", r.Notes)
	}

	// Without the head and the current file, the chain continues after the rotated file.
	if err := os.Remove(string(HeadFileOf(path))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c = chainAt(t, path, nil)
	closeChain(t, c)
	verified(t, VerifyConfig{}, []string{path, rotated[0], path + "-1"})
}

// TestCutWhileDown: if the log is cut while the server is down, the start of the server records that, and Verify
// reports it afterwards.
func TestCutWhileDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, nil)
	for range 4 {
		c.Log(t.Context(), event("k"))
	}
	closeChain(t, c)
	whole := readLines(t, path)
	for name, test := range map[string]struct {
		left []string
		want string
	}{
		"cut":     {whole[:2], "records 3 to 5 are missing before this record"},
		"emptied": {nil, "5 records at the end of the log were missing"},
	} {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "audit.json")
			head, err := os.ReadFile(string(HeadFileOf(path)))
			if err != nil {
				t.Fatal(err)
			}
			for file, text := range map[string]string{p: strings.Join(test.left, ""),
				string(HeadFileOf(p)): string(head)} {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c := chainAt(t, p, nil)
			c.Log(t.Context(), event("later"))
			closeChain(t, c)
			var want []string
			if test.want != "" {
				want = []string{test.want}
			}
			r := verified(t, VerifyConfig{Heads: headOf(t, p)}, []string{p}, want...)
			all := fmt.Sprint(slices.Concat(r.Findings, r.Notes))
			missing := fmt.Sprintf("%d records at the end of the log were missing", 5-len(test.left))
			if !strings.Contains(all, missing) {
				t.Errorf("%s, want %q", all, missing)
			}
		})
	}
}

// TestTornByCrash: a line that a crash left unfinished is a note, and not a finding.
func TestTornByCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, nil)
	closeChain(t, c)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.WriteString(`{"seq":2,"prev":"`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, VerifyConfig{}, []string{path}, ":2: the line does not end")
	c = chainAt(t, path, nil)
	closeChain(t, c)
	r := verified(t, VerifyConfig{}, []string{path})
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0].What, "17 bytes of an unfinished record") {
		t.Errorf("notes %v", r.Notes)
	}
}

// TestFileIsNotShared: a chain refuses a file that another process uses, and a file of another kind.
func TestFileIsNotShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	chainAt(t, path, nil)
	if _, err := OpenExclusiveFile(path, Rotation{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	other := filepath.Join(t.TempDir(), "kms-audit.log")
	if err := os.WriteFile(other, []byte("2026-11-23 14:03:30,123 OK[op=GET_KEYS, user=u] \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenExclusiveFile(other, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := OpenChain(t.Context(), ChainConfig{Node: "n", File: f}); err == nil ||
		!strings.Contains(err.Error(), "move the file away") {
		t.Errorf("a file of another kind: %v", err)
	}
}

// TestManyWriters: concurrent events make one chain, and the events of each writer keep their order.
func TestManyWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, nil)
	const writers, each = 8, 400
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				e := event(fmt.Sprint("w", w))
				e.EDEKs = i + 1
				if i%100 == 0 {
					if err := c.Begin(context.Background(), e); err != nil {
						t.Error(err)
					}
				} else {
					c.Log(context.Background(), e)
				}
			}
		})
	}
	group.Wait()
	closeChain(t, c)
	if r := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path}); r.Records != writers*each+1 {
		t.Errorf("%d records", r.Records)
	}
	count := map[string]int{}
	for _, line := range readLines(t, path)[1:] {
		r, err := ParseRecord([]byte(strings.TrimSuffix(line, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		if count[r.Key]++; count[r.Key] != r.EDEKs {
			t.Fatalf("event %d of %s is in place %d", r.EDEKs, r.Key, count[r.Key])
		}
	}
}

// TestCompressed: Verify reads files that gzip has compressed, and finds records that were removed from one. A file
// that was cut is an error. For other formats, the error has the command that unpacks the file.
func TestCompressed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.json")
	c := chainAt(t, path, nil)
	for i := range 20 {
		c.Log(t.Context(), event(fmt.Sprint("k", i)))
	}
	closeChain(t, c)
	all := readLines(t, path)
	write := func(name string, lines ...string) string {
		t.Helper()
		text := []byte(strings.Join(lines, ""))
		if strings.HasSuffix(name, ".gz") {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write(text); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			text = b.Bytes()
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	first, second, last := write("1.gz", all[:8]...), write("2.gz", all[8:15]...), write("3", all[15:]...)
	if r := verified(t, VerifyConfig{}, []string{last, second, first}); r.Records != uint64(len(all)) || r.First != 1 {
		t.Errorf("%+v", r)
	}
	gap := write("gap.gz", slices.Concat(all[:3], all[4:8])...)
	verified(t, VerifyConfig{}, []string{gap, second, last}, gap+":4: record 4 is missing")
	whole, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"cut":   {string(whole[:len(whole)/2]), "cut or damaged"},
		"head":  {string(whole[:5]), "cut or damaged"},
		"begin": {string(whole[:30]), "cut or damaged"},
		"sum":   {string(whole[:len(whole)-8]) + strings.Repeat("x", 8), "cut or damaged"},
		"x.zst": {"\x28\xb5\x2f\xfd and so on", "compressed with zstd, which cannot be read here: unpack it (zstd -d "},
		"x.xz":  {"\xfd7zXZ\x00 and so on", "xz -dk "},
	} {
		file := write(name, c.text)
		if r, err := Verify([]string{file, second, last}, VerifyConfig{}); err == nil ||
			!strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if left := openFiles(t); slices.Contains(left, file) {
			t.Errorf("%s is left open", name)
		}
	}
	if left := openFiles(t); slices.Contains(left, first) || slices.Contains(left, last) {
		t.Errorf("files are left open: %q", left)
	}
	if _, err := inOrder([]string{first, last}); err != nil || slices.Contains(openFiles(t), last) {
		t.Errorf("inOrder: %v, or it has left a file open", err)
	}
}
