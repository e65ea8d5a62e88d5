package evidence

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/audit"
	"claviger/buildinfo"
	"claviger/census"
	"claviger/migrate"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

var update = flag.Bool("update", false, "rewrite testdata")

// hostile is a name that a user may have chosen.
const hostile = "<script>alert(1)</script>\u202e&\xff"

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// testKeys returns a key pair that is the same in each run.
func testKeys(seed byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	return private.Public().(ed25519.PublicKey), private //nolint:forcetypeassert // by its documentation
}

// full is a report with all parts, and with names that a user may have chosen.
func full() *Report {
	yes, no := true, false
	use := noon.Add(-time.Hour)
	last := noon.Add(-time.Minute)
	r := &Report{About: About{Made: noon, Host: "kms1", User: "claviger", Conf: "/etc/claviger",
		Build: buildinfo.Info{Version: "1.0", Commit: "abc", Date: "2026-11-01T00:00:00Z", Go: "go1.26",
			Platform: "linux/amd64"},
		Source: "kms://https@old:16000/kms", Target: "cloudera.hsmkp://file@/etc/claviger/luna.keystore"}}
	r.Plan = &migrate.Plan{Format: "claviger migrate plan 1", At: noon, Read: true, Keys: []migrate.KeyLine{},
		Checks: []migrate.Check{{Name: "source alive", Measured: hostile}}}
	r.Status = &migrate.StatusReport{Format: "claviger migrate status 1", At: noon, Runs: []migrate.Run{{
		Name: "migration-1", State: migrate.Finished, Source: "kms://https@old:16000/kms", Ended: &last,
		EDEKs: &migrate.EDEKProof{By: migrate.ByOperator}}},
		Keys: []migrate.KeyStatus{{Key: hostile, State: migrate.Done, Run: "migration-1", Why: hostile,
			Versions: []migrate.VersionMapping{{Source: hostile + "@1", Target: hostile + "@2", LastUse: &use,
				Decrypted: 7}}}, {Key: "planned", State: migrate.Planned}}}
	verdict := migrate.Verdict{Format: migrate.VerdictFormat, Name: "verdict-1", At: noon, Outcome: migrate.Needed,
		Images: []migrate.VerdictImage{{Image: "/fsimage_1", Digest: "00"}},
		ToDo:   []migrate.Step{{Do: "delete " + hostile, Command: hostile}},
		Versions: []migrate.VersionVerdict{{Version: hostile + "@1", EDEKs: 3, SnapshotOnly: 3,
			Why: hostile, Paths: []string{hostile}}}, NotReached: []string{"Ozone"}}
	record, err := json.Marshal(verdict)
	if err != nil {
		panic(err)
	}
	r.Journal = []migrate.JournalRecord{{Run: "migration-1", At: noon, Record: []byte(`{ "x":1 }`)},
		{Run: "verdicts", Item: "verdict-1", At: noon, Record: record}}
	r.Counters = []migrate.UseCounter{{Source: "kms://https@old:16000/kms", Version: hostile + "@1", Op: "decrypt",
		EDEKs: 7, Last: use}}
	r.Verification = &migrate.Verification{Format: "claviger migrate verify 1", At: noon, Same: 1, Different: 1,
		Keys: []migrate.KeyDiff{{Key: hostile, Differences: []migrate.Difference{{Field: hostile, Source: "a",
			Target: "b"}}, Remarks: []string{hostile}}}}
	r.Censuses = []Census{{Image: "/fsimage_1", SHA256: "00", Bytes: 5, Census: &census.Report{
		Versions: []census.Version{{Version: hostile + "@1", Key: hostile, Counts: census.Counts{SnapshotOnly: 3}}},
		Zones:    []census.Zone{{Path: "/" + hostile, Key: hostile, State: "live"}}, Complete: true}}}
	r.Verdict = &verdict
	r.Keys = &Keys{Token: pkcs11.TokenInfo{Label: "token", Serial: "12", Profile: pkcs11.Luna},
		Attestation: NoAttestation(pkcs11.Luna), Versions: []hsm.VersionProtection{
			{Version: hostile + "@2", Key: hostile, ID: "0102", Record: hsm.InUse, OnToken: []pkcs11.Protection{{
				Bits: 256, Local: &yes, Sensitive: &yes, Extractable: &yes, NeverExtractable: &no, Encrypt: &yes,
				Decrypt:   &no,
				Mechanism: "CKM_AES_KEY_GEN"}}},
			{Version: "gone@3", Key: "gone", OnToken: []pkcs11.Protection{}}}}
	r.Audit = []AuditHead{{Place: "the metastore", Head: audit.Head{Node: "kms1", Seq: 9, Hash: "ab", Time: "t"}}}
	return r
}

// write writes a report into a file.
func write(t *testing.T, r *Report) (path string, data []byte) {
	t.Helper()
	_, private := testKeys(1)
	var b bytes.Buffer
	if _, err := r.Write(&b, private); err != nil {
		t.Fatal(err)
	}
	return save(t, b.Bytes()), b.Bytes()
}

func save(t *testing.T, data []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "report.zip")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReport: a report is verified by the public key, and its result says what the file says. A part that was not made
// is named, with the reason.
func TestReport(t *testing.T) {
	public, _ := testKeys(1)
	path, _ := write(t, full())
	v, err := Verify(path, public)
	if err != nil || !v.Verified || len(v.Findings) > 0 || v.Verdict != migrate.Needed || len(v.Members) != 11 ||
		len(v.Lacks) != 0 || v.Host != "kms1" || !v.Made.Equal(noon) || v.Key != fingerprint(public) {
		t.Fatalf("%+v, %v", v, err)
	}
	r := full()
	r.Plan, r.Censuses, r.Verdict, r.Keys = nil, nil, nil, nil
	for _, field := range []any{&r.Plan, &r.Censuses, &r.Verdict, &r.Keys} {
		r.RecordMissing(field, "it was "+hostile)
	}
	path, data := write(t, r)
	v, err = Verify(path, public)
	if err != nil || !v.Verified || v.Verdict != "" || len(v.Lacks) != 4 {
		t.Fatalf("%+v, %v", v, err)
	}
	var text strings.Builder
	v.Text(&text)
	page := string(content(filesOf(t, data), pageName))
	for in, want := range map[string]string{text.String(): "verdict     there is none in this file",
		page: "<p>This file has no verdict. It does not show whether data still needs the source of the keys.</p>\n" +
			"<p>This file has no census of EDEKs.</p>"} {
		if !strings.Contains(in, want) {
			t.Errorf("want %q in\n%s", want, in)
		}
	}
	r = full()
	r.Audit = nil
	if _, err := r.Write(io.Discard, ed25519.NewKeyFromSeed(make([]byte, 32))); err == nil ||
		!strings.Contains(err.Error(), "nothing says why the report lacks audit.json") {
		t.Errorf("a part is missing without a reason: %v", err)
	}
}

// filesOf returns the members of an untouched file.
func filesOf(t *testing.T, data []byte) []file {
	t.Helper()
	files, faults := unpack(data)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return slices.Clone(files)
}

// TestPage: the page shows each part in words, and no name becomes a tag, a script or a text that runs backwards. The
// page of the present format never changes, because Verify makes each page again.
func TestPage(t *testing.T) {
	_, data := write(t, full())
	page := string(content(filesOf(t, data), pageName))
	for _, bad := range []string{"<script", "javascript:", "\u202e", "http://", "src=", "href="} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, want := range []string{"at 2026-11-30T12:00:00Z on the host kms1", "The source is not retirable.",
		"by the operator&#39;s word that no EDEK needs the source (--edeks-done). That was not measured.",
		`<td class="no">yes</td>`, "not reported", "No vendor attestation", "not on the\ntoken", "Ozone"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	golden := filepath.Join("testdata", "page.html")
	if *update {
		if err := os.WriteFile(golden, []byte(page), 0o644); err != nil { //nolint:gosec // no secret
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || string(want) != page {
		t.Errorf("the page differs from %s (%v): reports of earlier builds would not be verified any more; give the "+
			"changed page a new format", golden, err)
	}
}

// TestEarlierReport: a report that an earlier build wrote is still verified. testdata/report.zip is never written again
// for the present format; -update writes the file only if it does not exist.
func TestEarlierReport(t *testing.T) {
	public, _ := testKeys(1)
	const file = "testdata/report.zip"
	if _, err := os.Stat(file); *update && errors.Is(err, fs.ErrNotExist) {
		_, data := write(t, full())
		if err := os.WriteFile(file, data, 0o644); err != nil { //nolint:gosec // no secret
			t.Fatal(err)
		}
	}
	if v, err := Verify(file, public); err != nil || !v.Verified || len(v.Members) != 11 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestStandardForm: other programs can read the file, and make the same digests and the same signature.
func TestStandardForm(t *testing.T) {
	public, _ := testKeys(1)
	_, data := write(t, full())
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var manifest, signature []byte
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		switch f.Name {
		case "manifest.json":
			manifest = text
		case "manifest.sig":
			signature = text
		default:
			if !strings.Contains(string(manifest), fmt.Sprintf(`"name": %q,
      "sha256": %q,
      "bytes": %d`, f.Name, digest(text), len(text))) {
				t.Errorf("the manifest does not name %s:\n%s", f.Name, manifest)
			}
		}
	}
	if !ed25519.Verify(public, manifest, signature) {
		t.Error("the signature is not that of the manifest")
	}
}

// TestShownAccepted: the page, and the text of the verification, show what the operator has accepted, and EDEKs that
// nobody can decrypt.
func TestShownAccepted(t *testing.T) {
	public, _ := testKeys(1)
	r := full()
	r.Verdict.Accepted, r.Verdict.Lost = []string{"image " + hostile}, []string{"1 EDEKs are lost"}
	r.Status.Runs[0].EDEKs = &migrate.EDEKProof{By: migrate.ByVerdict, Verdict: "verdict-1",
		Accepted: []string{"zone /z"}}
	record, err := json.Marshal(migrate.Verdict{Outcome: migrate.Granted, Accepted: []string{"a rollback"}})
	if err != nil {
		t.Fatal(err)
	}
	r.Journal[1].Record = record
	path, data := write(t, r)
	page := string(content(filesOf(t, data), pageName))
	v, err := Verify(path, public)
	if err != nil || !v.Verified || len(v.Accepted) != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	var text strings.Builder
	v.Text(&text)
	for want, in := range map[string]string{"<p>Accepted by the operator, without a measurement: image &lt;s": page,
		"<p>Warning: 1 EDEKs are lost.</p>": page, "verdict-1; accepted by the operator: zone /z": page,
		"<td>granted; accepted by the operator: a rollback</td>": page, "\naccepted    ": text.String()} {
		if !strings.Contains(in, want) {
			t.Errorf("want %q in\n%s", want, in)
		}
	}
	if strings.Contains(page+text.String(), "\u202e") {
		t.Error("a text runs backwards")
	}
}

// TestUnused: the page says for how long the source had not been used when the migration was ended.
func TestUnused(t *testing.T) {
	r := full()
	run := &r.Status.Runs[0]
	since := run.Ended.Add(-time.Second)
	run.NotUsedSince = &since
	_, data := write(t, r)
	page := string(content(filesOf(t, data), pageName))
	if !strings.Contains(page, "no use of the source in the 1s before") {
		t.Error(page)
	}
}
