package evidence

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/imagetest"
	"claviger/kms"
	"claviger/kms/edeks"
	"claviger/kms/kmstest"
	"claviger/migrate"
	"claviger/migrate/evidence"
	"claviger/pkcs11/worker"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/provider/jceks"
	"claviger/terminal"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(m.Run())
}

// lab is a site that has migrated a key from a Java keystore into an HSM.
type lab struct {
	dir      string
	key      string // file of the private key that signs
	public   string
	material []byte // of the key at the source
	o        Options
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, props := kmstest.HSM(t)
	source := "jceks://file@" + filepath.Join(dir, "old.jceks")
	props[hadoopconf.SourceURI] = source
	props["claviger.audit.json.file"] = filepath.Join(dir, "audit.json")
	kmstest.WriteSite(t, dir, props)
	l := &lab{dir: dir, key: filepath.Join(dir, "report.key")}
	l.public, l.material = l.key+".pub", makeSource(t, source)
	if _, err := evidence.MakeKey(l.key); err != nil {
		t.Fatal(err)
	}
	l.o = Options{Out: filepath.Join(dir, "report.zip"), Key: l.key}
	l.o.Workers, l.o.Quiet = 1, true
	l.open(t, hsm.Make, func(svc *kms.Service, _ *migrate.Engine) {
		trail, err := svc.OpenAudit(t.Context(), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		e, err := svc.Engine(t.Context(), migrate.Config{Audit: trail, Caller: kms.OwnCaller()})
		if err == nil {
			_, err = e.Run(t.Context())
		}
		if err = errors.Join(err, trail.Close()); err != nil {
			t.Fatal(err)
		}
	})
	return l
}

// makeSource makes a keystore with the key finance of two versions, and returns the material of the first.
func makeSource(t *testing.T, uri string) []byte {
	t.Helper()
	p, err := jceks.Open(t.Context(), uri, provider.Env{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = p.Create(t.Context(), provider.Spec{Name: "finance", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err == nil {
		_, err = p.Roll(t.Context(), "finance", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Version(t.Context(), "finance@0")
	if err = errors.Join(err, p.Close()); err != nil || len(v.Material) != 16 {
		t.Fatal(v, err)
	}
	return v.Material
}

// open opens the KMS, calls work, and closes the KMS.
func (l *lab) open(t *testing.T, access hsm.Access, work func(*kms.Service, *migrate.Engine)) {
	t.Helper()
	svc, err := kms.Open(t.Context(), l.dir, "test", access, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	e, err := svc.Engine(t.Context(), migrate.Config{})
	if err != nil {
		t.Fatal(err)
	}
	work(svc, e)
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
}

// report makes a report, and returns what the command shows.
func (l *lab) report(t *testing.T) (text string, err error) {
	t.Helper()
	var b bytes.Buffer
	l.open(t, hsm.Journal, func(svc *kms.Service, e *migrate.Engine) {
		err = l.o.Report(t.Context(), svc, e, l.dir, terminal.To(&b), io.Discard)
	})
	return b.String(), err
}

// members returns the content of the report's members.
func (l *lab) members(t *testing.T) map[string]string {
	t.Helper()
	z, err := zip.OpenReader(l.o.Out)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	all := map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[f.Name] = string(text)
	}
	return all
}

// image writes an image whose zone of finance has a file with this EDEK, and was re-encrypted after the migration.
func (l *lab) image(t *testing.T, edek string) string {
	t.Helper()
	now := uint64(time.Now().Add(time.Second).UnixMilli()) //nolint:gosec // after 1970
	tree := &imagetest.Tree{Nodes: []imagetest.Node{
		{ID: imagetest.Root, Folder: true, Children: []uint64{20000}},
		{ID: 20000, Name: "zone", Folder: true, Zone: "finance", Children: []uint64{20001},
			Reencrypted: imagetest.Reencrypted{Version: "finance@2", Submitted: now, Completed: now + 1}},
		{ID: 20001, Name: "file", EDEK: edek},
	}}
	data, _ := tree.Bytes()
	kmstest.WriteFile(t, filepath.Join(l.dir, "hdfs-site.xml"), "<configuration/>")
	file := filepath.Join(l.dir, "fsimage_"+edek)
	kmstest.WriteFile(t, file, string(data))
	//nolint:gosec // Hadoop's digest of images
	kmstest.WriteFile(t, file+".md5", fmt.Sprintf("%x *%s\n", md5.Sum(data), filepath.Base(file)))
	return file
}

// verified demands that the report is verified, and returns the result.
func (l *lab) verified(t *testing.T) *evidence.Verification {
	t.Helper()
	key, err := evidence.ReadPublicKey(l.public)
	if err != nil {
		t.Fatal(err)
	}
	v, err := evidence.Verify(l.o.Out, key)
	if err != nil || !v.Verified {
		t.Fatalf("%+v, %v", v, err)
	}
	return v
}

// TestReports makes reports of one site.
func TestReports(t *testing.T) {
	l := newLab(t)
	sound := l.o
	for _, c := range []struct {
		name string
		test func(*testing.T, *lab)
	}{{"refusals", testRefusals}, {"report", testReport}, {"flags", testFlags}, {"command", testCommand},
		{"failures", testFailures}, {"no source", testWithoutSource}} {
		t.Run(c.name, func(t *testing.T) {
			l.o = sound
			c.test(t, l)
		})
	}
}

// testReport: a report of a real migration shows the versions in the HSM and how it protects them, the source, the
// verdict and the head of the audit log. It has no secret.
func testReport(t *testing.T, l *lab) {
	t.Helper()
	if err := os.Remove(l.o.Out); err != nil {
		t.Fatal(err)
	}
	text, err := l.report(t)
	if err != nil {
		t.Fatal(err)
	}
	const none = "no image was given (--image or --namenode), and no earlier verdict (--verdict)"
	for _, want := range []string{"report.zip is written: ", "has    the attributes of each new key version in the HSM",
		"lacks  the verdict: whether EDEKs of HDFS still need the source: " + none} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
	if v := l.verified(t); v.Verdict != "" || len(v.Lacks) != 2 || v.Lacks[0].Why != none {
		t.Errorf("%+v", v)
	}
	l.checkMembers(t)

	l.o.Images, l.o.Overwrite = []string{l.image(t, "finance@2")}, true
	if _, err := l.report(t); err != nil {
		t.Fatal(err)
	}
	if v := l.verified(t); v.Verdict != migrate.Granted || len(v.Lacks) != 0 {
		t.Errorf("%+v\n%s", v, l.members(t)["verdict.json"])
	}
	l.o.Images = []string{l.image(t, "finance@1")}
	if _, err := l.report(t); err != nil {
		t.Fatal(err)
	}
	all := l.members(t)
	if v := l.verified(t); v.Verdict != migrate.Needed || !strings.Contains(all["index.html"], "finance@1") ||
		strings.Count(all["index.html"], "<td>verdict-") != 3 || !strings.Contains(all["census.json"], `"/zone"`) {
		t.Errorf("%+v\n%s", v, all["index.html"])
	}
}

// checkMembers checks what the members say of the migration, and that they have no secret.
func (l *lab) checkMembers(t *testing.T) {
	t.Helper()
	all := l.members(t)
	for member, wants := range map[string][]string{
		"keys.json": {`"finance@2"`, `"local": true`, `"alwaysSensitive": true`, `"neverExtractable": true`,
			`"extractable": false`, "No vendor attestation", `"keyGenMechanism": "CKM_AES_KEY_GEN"`},
		"audit.json":   {`"seq": `, "audit.json.head", `"the metastore"`},
		"status.json":  {`"target": "finance@2"`, `"source": "finance@1"`},
		"journal.json": {`"targetVersions": [`},
		"verify.json":  {`"same": 1`},
		"plan.json":    {`"complete": true`},
		"index.html":   {"CKM_AES_KEY_GEN", "This file has no verdict", "This file has no census"},
	} {
		for _, want := range wants {
			if !strings.Contains(all[member], want) {
				t.Errorf("%s lacks %q:\n%s", member, want, all[member])
			}
		}
	}
	l.checkSecrets(t, all)
	info, err := os.Stat(l.o.Out)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// checkSecrets demands that no member has the PIN, the key that signs, or material of a key in any usual form.
func (l *lab) checkSecrets(t *testing.T, all map[string]string) {
	t.Helper()
	signing, err := os.ReadFile(l.key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(signing)
	token, _, err := hsm.TokenConfig("cloudera.hsmkp://file@" + filepath.Join(l.dir, "luna.keystore"))
	if err != nil {
		t.Fatal(err)
	}
	pin, err := token.PIN()
	if err != nil || len(pin) < 4 {
		t.Fatal(err)
	}
	secrets := []string{string(pin), string(signing)}
	for _, raw := range [][]byte{l.material, block.Bytes[len(block.Bytes)-32:]} {
		secrets = append(secrets, string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
			base64.StdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw))
	}
	for member, text := range all {
		for i, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has secret %d", member, i)
			}
		}
	}
}

// testRefusals: a report is not written over a file, or by a key that others can read, or with a verdict that the
// journal does not have. Nothing is left behind.
func testRefusals(t *testing.T, l *lab) {
	t.Helper()
	kmstest.WriteFile(t, l.o.Out, "mine")
	verdict := filepath.Join(l.dir, "verdict.json")
	l.open(t, hsm.Journal, func(_ *kms.Service, e *migrate.Engine) {
		o := edeks.VerdictOptions{Images: []string{l.image(t, "finance@2")}, Workers: 1, Quiet: true}
		v, err := o.Verdict(t.Context(), l.dir, l.dir, e, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		kmstest.WriteFile(t, verdict, string(text))
		kmstest.WriteFile(t, verdict+".edited", strings.Replace(string(text), "finance@1", "finance@7", 1))
	})
	kmstest.WriteFile(t, verdict+".plan", `{"format": "claviger migrate plan 1"}`)
	kmstest.WriteFile(t, filepath.Join(l.dir, "cut"), "HDFSIMG1")
	kmstest.WriteFile(t, filepath.Join(l.dir, "open.key"), "x")
	if err := os.Chmod(filepath.Join(l.dir, "open.key"), 0o640); err != nil { //nolint:gosec // the test is about it
		t.Fatal(err)
	}
	sound, fresh := l.o, filepath.Join(l.dir, "report2.zip")
	refused := map[string]func(*Options){
		"it is not a report, and --overwrite": func(*Options) {},
		"replaces only a report":              func(o *Options) { o.Overwrite = true },
		"the file of --key, too":              func(o *Options) { o.Out, o.Overwrite = o.Key, true },
		"does not write to standard output":   func(o *Options) { o.Out = "-" },
		"is the public key":                   func(o *Options) { o.Key = l.public },
		"chmod go=":                           func(o *Options) { o.Key = filepath.Join(l.dir, "open.key") },
		"no such file":                        func(o *Options) { o.Key = filepath.Join(l.dir, "no.key") },
		"is not a key in PEM":                 func(o *Options) { o.Key = verdict },
		"--out: ":                             func(o *Options) { o.Out = filepath.Join(l.dir, "no", "report.zip") },
		"damaged or cut off": func(o *Options) {
			o.Images, o.Out = []string{filepath.Join(l.dir, "cut")}, fresh
		},
		"the journal has another verdict": func(o *Options) {
			o.VerdictFile, o.Out = verdict+".edited", fresh
		},
		"it is not the output of claviger mi": func(o *Options) { o.VerdictFile, o.Out = verdict+".plan", fresh },
		"exclude each other":                  func(o *Options) { o.VerdictFile, o.Images = verdict, []string{"x"} },
	}
	l.open(t, hsm.Journal, func(svc *kms.Service, e *migrate.Engine) {
		for want, change := range refused {
			o := sound
			change(&o)
			err := o.Report(t.Context(), svc, e, l.dir, terminal.To(io.Discard), io.Discard)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want %q: %v", want, err)
			}
		}
	})
	if text, err := os.ReadFile(sound.Out); err != nil || string(text) != "mine" {
		t.Errorf("the file was changed: %q, %v", text, err)
	}
	l.o = sound
	if err := os.Remove(l.o.Out); err != nil {
		t.Fatal(err)
	}
	l.o.VerdictFile = verdict
	if _, err := l.report(t); err != nil {
		t.Fatal(err)
	}
	if _, err := l.report(t); err == nil || !strings.Contains(err.Error(), "--overwrite replaces it") {
		t.Errorf("a report exists: %v", err)
	}
	l.o.Overwrite = true
	if _, err := l.report(t); err != nil {
		t.Fatal(err)
	}
	if v := l.verified(t); v.Verdict != migrate.Granted || len(v.Lacks) != 1 {
		t.Errorf("%+v", v)
	}
	if left, err := filepath.Glob(filepath.Join(l.dir, ".report*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// testWithoutSource: a report after the end of a migration says why it has no plan and no comparison. It has also the
// version to which a key was rolled since.
func testWithoutSource(t *testing.T, l *lab) {
	t.Helper()
	l.o.Overwrite = true
	l.open(t, hsm.Make, func(svc *kms.Service, _ *migrate.Engine) {
		if _, err := svc.Primary.Roll(t.Context(), "finance", nil); err != nil {
			t.Fatal(err)
		}
	})
	site := filepath.Join(l.dir, "kms-site.xml")
	text, err := os.ReadFile(site)
	if err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, site, strings.Replace(string(text), hadoopconf.SourceURI, "claviger.none", 1))
	if _, err := l.report(t); err != nil {
		t.Fatal(err)
	}
	if text := l.members(t)["keys.json"]; strings.Count(text, `"local": true`) != 2 ||
		!strings.Contains(text, `"version": "finance@3"`) {
		t.Errorf("keys.json has not both versions:\n%s", text)
	}
	v := l.verified(t)
	if len(v.Lacks) != 4 || v.Source != "" || v.Lacks[0].Member != "plan.json" ||
		!strings.Contains(v.Lacks[0].Why, "nothing to migrate") {
		t.Errorf("%+v", v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.open(t, hsm.Journal, func(svc *kms.Service, e *migrate.Engine) {
		err := l.o.Report(ctx, svc, e, l.dir, terminal.To(io.Discard), io.Discard)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	})
}

// testCommand: the exit statuses of the command, and the refusal without a public key.
func testCommand(t *testing.T, l *lab) {
	t.Helper()
	out := terminal.To(io.Discard)
	if err := verify(l.o.Out, l.public, out); err != nil {
		t.Error(err)
	}
	err := verify(l.o.Out, "", out)
	if usage := (*terminal.UsageError)(nil); !errors.As(err, &usage) || !strings.Contains(err.Error(),
		"The file names the key "+l.verified(t).Key) {
		t.Errorf("without a public key: %v", err)
	}
	if err := verify(l.o.Out, l.key, out); err == nil || !strings.Contains(err.Error(), "is a private key") {
		t.Errorf("with the private key: %v", err)
	}
	if err := verify(filepath.Join(l.dir, "none.zip"), l.public, out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	data, err := os.ReadFile(l.o.Out)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	kmstest.WriteFile(t, l.o.Out, string(data))
	if refused := (*claviger.RefusedError)(nil); !errors.As(verify(l.o.Out, l.public, out), &refused) {
		t.Error("a changed file is not refused")
	}
}
