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
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
)

// oddNames are names of keys that Hadoop's KMS takes, and ours too; a keystore's have no
// upper case. The second and the
// third of the first three differ from the first by a blank.
var oddNames = []string{
	"b", "b ", " b", "c\ncka_id  label", "c\rd", "c\x1b[2jd", "c\u202ed", "c\u0085d",
	"c\nok[op=delete_key, key=k, user=root, accesscount=1, interval=0ms] ",
}

// misleads reports whether r may not stand in a line of output.
func misleads(r rune) bool { return r != '\n' && r != '\t' && claviger.Misleads(r) }

// TestNamesStayOnTheirLines: no line of a log, an audit log or a table is made, torn or
// turned around by a key's name, and names that differ by a blank are told apart.
func TestNamesStayOnTheirLines(t *testing.T) {
	dir, sourceDir := t.TempDir(), t.TempDir()
	tok := softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	acls := kmstest.SiteXML("default.key.acl.MANAGEMENT", "*", "default.key.acl.READ", "*",
		"default.key.acl.DECRYPT_EEK", "*")
	sites := map[string]string{hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(sourceDir, "old.jceks"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(sourceDir, "audit.log")}
	kmstest.WriteFile(t, filepath.Join(sourceDir, "kms-acls.xml"), acls)
	kmstest.WriteSite(t, sourceDir, sites)
	source := serve(t, sourceDir)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), acls)
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: "sqlite://" +
			filepath.Join(dir, "c.db"), "hadoop.kms.http.host": "127.0.0.1",
		"claviger.audit.file": filepath.Join(dir, "audit.log"), "claviger.audit.json.file": filepath.Join(dir,
			"audit.json"),
	})
	log := &logtest.Buffer{}
	kms, end := serveLogged(t, dir, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	for _, at := range []string{kms, source} {
		for _, name := range oddNames {
			if at == source {
				name += "-old"
			}
			body, err := json.Marshal(map[string]string{"name": name})
			if err != nil {
				t.Fatal(err)
			}
			//nolint:noctx // of a server of this test
			resp, err := http.Post(at+"/v1/keys?user.name=a", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				t.Fatalf("creating %q: %s", name, resp.Status)
			}
		}
	}
	uri := "kms://" + strings.Replace(kms, "://", "@", 1)
	list := tell(t, "key", "list", "--provider", uri)
	check := func(what, text string) {
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
	rows := func(what, text string, names ...string) {
		t.Helper()
		check(what, text)
		for _, name := range names {
			shown := claviger.Printable(name)
			if n := strings.Count(text, shown); n == 0 {
				t.Errorf("%s does not show %s:\n%s", what, shown, text)
			}
		}
	}
	versions := make([]string, len(oddNames))
	old := make([]string, len(oddNames))
	for i, name := range oddNames {
		versions[i], old[i] = name+"@0", name+"-old"
	}
	rows("key list", list, oddNames...)
	if n := strings.Count(list, "\n"); n != len(oddNames) {
		t.Errorf("key list has %d lines for %d keys:\n%s", n, len(oddNames), list)
	}
	rows("key describe", tell(t, "key", "describe", "b ", "--provider", uri), "b ", "b @0")
	if err := end(); err != nil {
		t.Fatal(err)
	}
	check("the log", log.String())
	objects := tell(t, "hsm", "list", "--conf", dir)
	rows("hsm list", objects, versions...)
	if n := strings.Count(objects, "\n"); n != 1+len(oddNames) {
		t.Errorf("hsm list has %d lines for %d keys:\n%s", n, len(oddNames), objects)
	}
	for _, name := range []string{"audit.log", "audit.json"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		check(name, string(text))
		if n := strings.Count(string(text), "CREATE_KEY"); n < len(oddNames) {
			t.Errorf("%s has %d creations", name, n)
		}
	}
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: "sqlite://" +
			filepath.Join(dir, "c.db"), "claviger.audit.file": filepath.Join(dir, "audit.log"),
		hadoopconf.SourceURI: "kms://" + strings.Replace(source, "://", "@", 1),
	})
	rows("migrate plan", tell(t, "migrate", "plan", "--conf", dir), old...)
	// Another store knows none of these keys.
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI: "sqlite://" +
			filepath.Join(dir, "other.db"), "claviger.audit.file": filepath.Join(dir, "audit.log")})
	rows("hsm adopt", tell(t, "hsm", "adopt", "--conf", dir), oddNames...)
}

// tell runs a command, and returns what it writes. That it reports a finding by its exit
// status is no matter here.
func tell(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t, args...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitRefused) {
		t.Fatalf("claviger %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
