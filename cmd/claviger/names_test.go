package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/logtest"
	"claviger/kms/kmstest"
)

// oddNames are names of keys that Hadoop's KMS accepts, and claviger too. They have no capitals, since a keystore has
// none. The second and the third name differ from the first by a blank.
var oddNames = []string{
	"b", "b ", " b", "c\ncka_id  label", "c\rd", "c\x1b[2jd", "c\u202ed", "c\u0085d",
	"c\nok[op=delete_key, key=k, user=root, accesscount=1, interval=0ms] ",
}

// misleads reports whether r must not be in a line of output.
func misleads(r rune) bool { return r != '\n' && r != '\t' && claviger.Misleads(r) }

// TestNamesStayOnTheirLines: no name of a key makes, breaks or reverses a line of a log, an audit log or a table. Names
// that differ by a blank are shown differently.
func TestNamesStayOnTheirLines(t *testing.T) {
	sourceDir := t.TempDir()
	kmstest.WriteSite(t, sourceDir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(sourceDir, "old.jceks"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(sourceDir, "audit.log")})
	dir, site := kmstest.HSM(t)
	delete(site, "hadoop.kms.key.authorization.enable")
	site["claviger.audit.json.file"] = filepath.Join(dir, "audit.json")
	kmstest.WriteSite(t, dir, site)
	for _, conf := range []string{sourceDir, dir} {
		kmstest.WriteFile(t, filepath.Join(conf, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*",
			"default.key.acl.READ", "*", "default.key.acl.DECRYPT_EEK", "*"))
	}
	source := serve(t, sourceDir)
	log := &logtest.Buffer{}
	kms, end := startLogged(t, dir, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	versions := make([]string, len(oddNames))
	old := make([]string, len(oddNames))
	for i, name := range oddNames {
		versions[i], old[i] = name+"@0", name+"-old"
		makeOddKey(t, kms, name)
		makeOddKey(t, source, old[i])
	}
	list := command0or3(t, "key", "list", "--provider", kmsURI(kms))
	wantNames(t, "key list", list, oddNames...)
	if n := strings.Count(list, "\n"); n != len(oddNames) {
		t.Errorf("key list has %d lines for %d keys:\n%s", n, len(oddNames), list)
	}
	wantNames(t, "key describe", command0or3(t, "key", "describe", "b ", "--provider", kmsURI(kms)), "b ", "b @0")
	if err := end(); err != nil {
		t.Fatal(err)
	}
	wantNoForgery(t, "the log", log.String())
	objects := command0or3(t, "hsm", "list", "--conf", dir)
	wantNames(t, "hsm list", objects, versions...)
	if n := strings.Count(objects, "\n"); n != 1+len(oddNames) {
		t.Errorf("hsm list has %d lines for %d keys:\n%s", n, len(oddNames), objects)
	}
	checkAuditOfNames(t, dir)
	site[hadoopconf.SourceURI] = kmsURI(source)
	kmstest.WriteSite(t, dir, site)
	wantNames(t, "migrate plan", command0or3(t, "migrate", "plan", "--conf", dir), old...)
	// Another store has no record of these keys.
	delete(site, hadoopconf.SourceURI)
	site[hadoopconf.MetastoreURI] = "sqlite://" + filepath.Join(dir, "other.db")
	kmstest.WriteSite(t, dir, site)
	wantNames(t, "hsm adopt", command0or3(t, "hsm", "adopt", "--conf", dir), oddNames...)
}

// makeOddKey makes a key over HTTP.
func makeOddKey(t *testing.T, url, name string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"name": name})
	if err != nil {
		t.Fatal(err)
	}
	//nolint:noctx // a server of this test
	resp, err := http.Post(url+"/v1/keys?user.name=a", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("creating %q: %s", name, resp.Status)
	}
}

// wantNoForgery checks that no line of a text holds a misleading character, or comes from a name.
func wantNoForgery(t *testing.T, what, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if i := strings.IndexFunc(line, misleads); i >= 0 {
			t.Errorf("%s: %q holds %+q", what, line, line[i:min(len(line), i+3)])
		}
		for _, forged := range []string{"cka_id  label", "ok[op=delete_key"} {
			if strings.HasPrefix(line, forged) {
				t.Errorf("%s: the line %q comes from a name", what, line)
			}
		}
	}
}

// wantNames checks that a text shows some names, each on one line.
func wantNames(t *testing.T, what, text string, names ...string) {
	t.Helper()
	wantNoForgery(t, what, text)
	for _, name := range names {
		shown := claviger.Printable(name)
		if n := strings.Count(text, shown); n == 0 {
			t.Errorf("%s does not show %s:\n%s", what, shown, text)
		}
	}
}

// checkAuditOfNames checks the audit logs in a folder.
func checkAuditOfNames(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"audit.log", "audit.json"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		wantNoForgery(t, name, string(text))
		if n := strings.Count(string(text), "CREATE_KEY"); n < len(oddNames) {
			t.Errorf("%s has %d creations", name, n)
		}
	}
}

// command0or3 runs a command, and returns its output. The exit status must be 0 or exitRefused.
func command0or3(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t, args...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitRefused) {
		t.Fatalf("claviger %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
