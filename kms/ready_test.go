package kms

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/kms/kmstest"
)

// TestReadiness: each part that a server needs has a check. Rules that cannot be read are
// reported, and do not take the server out of service.
func TestReadiness(t *testing.T) {
	source := "jceks://file@" + filepath.Join(t.TempDir(), "old.keystore")
	kms, dir := onHSM(t, map[string]string{hadoopconf.SourceURI: source})
	status, r := kmstest.Readyz(t, kms)
	var names []string
	for _, c := range r.Checks {
		names = append(names, c.Name)
		if !c.OK && c.Name != "certificates" { // the certificate of the test expires in a few days
			t.Errorf("%s: %s", c.Name, c.Error)
		}
	}
	want := []string{"HSM takes new keys", "acls", "any keys in the HSM", "audit", "audit head", "audit streams",
		"certificates", "classes of requests", "clock", "configuration", "connections", "current keys in the HSM",
		"delegation tokens", "encryptions", "files with secrets", "groups", "keys in the HSM",
		"keys unknown to the metastore", "metastore", "metastore takes changes", "names at the sources", "provider",
		"results of the HSM", "rolls at the sources", "searches of the HSM", "shared tokens and secrets",
		"source " + source, "sources of migrations", "started", "token and metastore fit", "uses of sources",
		"version names of two keys", "waits for sources"}
	if slices.Sort(names); status != http.StatusOK || !r.Ready || !slices.Equal(names, want) {
		t.Errorf("%d, ready %t, with the checks %q, want %q", status, r.Ready, names, want)
	}

	page, err := os.ReadFile("../docs/monitoring/checks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Checks {
		name, _, _ := strings.Cut(c.Name, " "+source) // the page says URI
		row := regexp.MustCompile("(?m)^- `.*`?" + regexp.QuoteMeta(name) +
			"( URI)?`.* \\((.*?)\\): ").FindSubmatch(page)
		if row == nil {
			t.Errorf("docs/monitoring/checks.md lacks %s", c.Name)
		} else if informational := strings.HasPrefix(string(row[2]), "information"); informational != c.Informational {
			t.Errorf("docs/monitoring/checks.md says of %s: %s", c.Name, row[2])
		}
	}

	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), "<configuration><property>")
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		status, r = kmstest.Readyz(t, kms)
		acls := r.Checks[slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "acls" })]
		if !acls.OK {
			if status != http.StatusOK || !r.Ready || !acls.Informational || !strings.Contains(acls.Error,
				"kms-acls.xml") {
				t.Errorf("%d, ready %t, %+v", status, r.Ready, acls)
			}
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("a broken kms-acls.xml is not reported")
		}
	}
}

// TestReadinessOfASource: for a source, /readyz reports the result of the last request to it.
func TestReadinessOfASource(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.READ", "*"))
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir,
		"kms.keystore"),
		"hadoop.kms.http.host": "127.0.0.1"})
	old, end := serveToEnd(t, dir)
	source := "kms://" + strings.Replace(old, "://", "@", 1)
	kms, _ := onHSM(t, map[string]string{hadoopconf.SourceURI: source})
	said := func() kmstest.Check {
		t.Helper()
		_, r := kmstest.Readyz(t, kms)
		return r.Checks[slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "source "+source })]
	}
	if status, body := kmstest.Get(t, kms, "/kms/v1/keyversion/one@0", "a"); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	if c := said(); !c.OK || c.By != "request" {
		t.Errorf("after a request that the source answered: %+v", c)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if status, body := kmstest.Get(t, kms, "/kms/v1/keyversion/two@0", "a"); status != http.StatusServiceUnavailable {
		t.Fatalf("%d %s", status, body)
	}
	if c := said(); c.OK || c.By != "request" || !strings.Contains(c.Error, "connection refused") {
		t.Errorf("after a request that failed at the source: %+v", c)
	}
}

// TestStrangersReadNoNames: for an address that claviger.console.details does not name,
// /readyz and /metrics show what a balancer and an alarm need, and no name of a key, file or
// host.
func TestStrangersReadNoNames(t *testing.T) {
	source := "jceks://file@" + filepath.Join(t.TempDir(), "old.keystore")
	kms, dir := onHSM(t, map[string]string{hadoopconf.SourceURI: source,
		"claviger.console.details": "10.9.8.7, 2001:db8::/32"})
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), "<configuration><property>")
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		status, r := kmstest.Readyz(t, kms)
		acls := r.Checks[slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "acls" })]
		if slices.ContainsFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "source 1" }) &&
			status == http.StatusOK && !acls.OK {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d %+v", status, r)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/readyz?for=write", "/metrics"} {
		_, text := kmstest.Get(t, kms, path, "")
		for _, name := range []string{dir, source, "file@", "CN="} {
			if strings.Contains(text, name) {
				t.Errorf("%s names %q to a stranger: %s", path, name, text)
			}
		}
	}
}

// TestReadinessOfAKeystoreSource: when a source's keystore file is damaged, /readyz reports
// it, although requests are still answered from the copy in memory.
func TestReadinessOfAKeystoreSource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "old.keystore")
	source := "jceks://file@" + file
	kms, _ := onHSM(t, map[string]string{hadoopconf.SourceURI: source})
	for spoilt, began := false, time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if status, body := kmstest.Get(t, kms, "/kms/v1/keyversion/k@0", "a"); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		_, r := kmstest.Readyz(t, kms)
		c := r.Checks[slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "source "+source })]
		switch {
		case !spoilt && !c.OK:
			t.Fatalf("%+v", c)
		case !spoilt:
			kmstest.WriteFile(t, file, "no keystore")
			spoilt = true
		case !c.OK:
			if !strings.Contains(c.Error, file) {
				t.Errorf("%+v", c)
			}
			return
		case time.Since(began) > 30*time.Second:
			t.Fatal("a damaged keystore is not reported")
		}
	}
}

// TestReadinessWithoutDatabase: while PostgreSQL is down, decrypts still work. /readyz is green
// for the purpose decrypt, and red for the purposes that need PostgreSQL.
func TestReadinessWithoutDatabase(t *testing.T) {
	server := pgtest.Start(t)
	kms, _ := onHSM(t, map[string]string{hadoopconf.MetastoreURI: server.Database(t)})
	post := func(path, body string) int {
		t.Helper()
		resp, err := http.Post(kms+"/v1/"+path+"user.name=a", "application/json",
			strings.NewReader(body)) //nolint:noctx // the server runs in this test
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if status := post("keys?", `{"name":"k"}`); status != http.StatusCreated {
		t.Fatal(status)
	}
	status, body := kmstest.Get(t, kms, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "a")
	var made []struct {
		IV        string
		Encrypted struct{ Material string } `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(body), &made); err != nil || len(made) != 1 {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	decrypts := func() int {
		return post("keyversion/k@0/_eek?eek_op=decrypt&",
			`{"name":"k","iv":"`+made[0].IV+`","material":"`+made[0].Encrypted.Material+`"}`)
	}
	become := func(when string, want map[string]int) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			got := map[string]int{}
			for purpose := range want {
				got[purpose], _ = kmstest.Get(t, kms, "/readyz?for="+purpose, "")
			}
			if maps.Equal(got, want) {
				break
			}
			if time.Since(began) > 60*time.Second {
				t.Fatalf("%s: %v, want %v", when, got, want)
			}
		}
		if status := decrypts(); status != http.StatusOK {
			t.Errorf("%s, a decrypt: %d", when, status)
		}
	}
	become("with PostgreSQL", map[string]int{"decrypt": 200, "generate": 200, "write": 200})
	// The notice of the creation may arrive late, and makes the node forget the key. Without PostgreSQL
	// the node serves only keys that it has used since then.
	for began := time.Now(); time.Since(began) < 6*time.Second; time.Sleep(100 * time.Millisecond) {
		if status := decrypts(); status != http.StatusOK {
			t.Fatalf("a decrypt: %d", status)
		}
	}
	server.Stop(t)
	without := map[string]int{"decrypt": 200, "generate": 503, "write": 503}
	become("without it", without)
	// Wait until the result of an earlier request is not reused any more.
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		_, r := kmstest.Readyz(t, kms)
		if !r.Checks[slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "metastore" })].OK {
			break
		}
		if time.Since(began) > 60*time.Second {
			t.Fatal("the check of the metastore does not fail")
		}
	}
	for purpose, want := range without {
		if got, body := kmstest.Get(t, kms, "/readyz?for="+purpose, ""); got != want {
			t.Errorf("without PostgreSQL, for %s: %d, want %d: %s", purpose, got, want, body)
		}
	}
	if status := post("keys?", `{"name":"other"}`); status != http.StatusServiceUnavailable {
		t.Errorf("a key without PostgreSQL: %d", status)
	}
	server.Start(t)
	become("with it again", map[string]int{"decrypt": 200, "generate": 200, "write": 200})
}

// TestReadinessAfterARestartWithoutDatabase: a node that has used no version since its start
// decrypts nothing while PostgreSQL does not answer. Then /readyz is red for balancers of decrypts.
func TestReadinessAfterARestartWithoutDatabase(t *testing.T) {
	dir, site := kmstest.HSM(t)
	server := pgtest.Start(t)
	site[hadoopconf.MetastoreURI] = server.Database(t)
	kmstest.WriteSite(t, dir, site)
	post := func(url, body string) int {
		t.Helper()
		resp, err := http.Post(url+"user.name=a", "application/json",
			strings.NewReader(body)) //nolint:noctx // the server runs in this test
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	url, end := serveToEnd(t, dir)
	if status := post(url+"/v1/keys?", `{"name":"k"}`); status != http.StatusCreated {
		t.Fatal(status)
	}
	kms := strings.TrimSuffix(url, "/kms")
	status, body := kmstest.Get(t, kms, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "a")
	var made []struct {
		IV        string
		Encrypted struct{ Material string } `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(body), &made); err != nil || len(made) != 1 {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	url = serve(t, dir)
	kms = strings.TrimSuffix(url, "/kms")
	become := func(when string, want int) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
			probed, body := kmstest.Get(t, kms, "/readyz?for=decrypt", "")
			opened := post(url+"/v1/keyversion/k@0/_eek?eek_op=decrypt&",
				`{"name":"k","iv":"`+made[0].IV+`","material":"`+made[0].Encrypted.Material+`"}`)
			if probed == want && opened == want {
				return
			}
			if time.Since(began) > 60*time.Second {
				t.Fatalf("%s: /readyz?for=decrypt %d, a decrypt %d, want %d: %s", when, probed, opened, want, body)
			}
		}
	}
	server.Stop(t)
	become("without PostgreSQL", http.StatusServiceUnavailable)
	server.Start(t)
	become("with it again", http.StatusOK)
}

// TestNotReady: a node that cannot audit reports the reason, is out of service for operations
// that must be audited, and makes no key. Users can still read.
func TestNotReady(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": "/dev/full",
	})
	kms, end := serveToEnd(t, dir)
	kmstest.Get(t, kms, "/kms/v1/keys/names", "a") // leaves a line that cannot be written
	var status int
	var r kmstest.Readiness
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(100 * time.Millisecond) {
		if status, r = kmstest.Readyz(t, kms); status != http.StatusOK {
			break
		}
	}
	i := slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "audit" })
	if i < 0 || status != http.StatusServiceUnavailable || r.Ready || r.Checks[i].OK || r.Checks[i].Informational ||
		!strings.Contains(r.Checks[i].Error, "no space left") {
		t.Errorf("%d, %+v", status, r)
	}
	for purpose, want := range map[string]int{"write": http.StatusServiceUnavailable, "generate": http.StatusOK,
		"decrypt": http.StatusOK} {
		if status, body := kmstest.Get(t, kms, "/readyz?for="+purpose, ""); status != want {
			t.Errorf("for %s: %d %s", purpose, status, body)
		}
	}
	resp, err := http.Post(kms+"/v1/keys?user.name=a", "application/json",
		strings.NewReader(`{"name":"k"}`)) //nolint:noctx // the server runs in this test
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a key was made without an audit record: %d", resp.StatusCode)
	}
	if status, names := kmstest.Get(t, kms, "/kms/v1/keys/names", "a"); status != http.StatusOK ||
		strings.TrimSpace(names) != "[]" {
		t.Errorf("reading: %d %s", status, names)
	}
	if err := end(); err == nil || !strings.Contains(err.Error(), "/dev/full: no space left") {
		t.Errorf("the end does not report a lost audit line: %v", err)
	}
}
