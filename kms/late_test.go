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

	p11 "github.com/miekg/pkcs11"

	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/kms/kmstest"
)

// faultyHSM is kmstest.HSM with a library that makes faults. The properties are in the folder's kms-site.xml.
func faultyHSM(t *testing.T, worker bool, props map[string]string) (string, *faultmodule.Module) {
	t.Helper()
	dir, site := kmstest.HSM(t)
	file := filepath.Join(dir, "luna.keystore")
	keystore, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	module := regexp.MustCompile("(?m)^module = (.*)$").FindSubmatch(keystore)
	fault := faultmodule.New(t, string(module[1]))
	text := strings.Replace(string(keystore), string(module[1]), fault.Path, 1)
	text += map[bool]string{false: "worker = no\n", true: "worker = yes\n"}[worker]
	kmstest.WriteFile(t, file, text)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	maps.Copy(site, props)
	kmstest.WriteSite(t, dir, site)
	return dir, fault
}

func (s *starting) post(path, body string) (status int) {
	s.t.Helper()
	resp, err := http.Post(s.kms+"/v1/"+path+"user.name=a", "application/json", //nolint:noctx // the server runs here
		strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// edek makes an EDEK of key k, and returns the body of a request to decrypt it.
func (s *starting) edek() string {
	s.t.Helper()
	status, body := kmstest.Get(s.t, s.kms, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "a")
	var made []struct {
		IV        string
		Encrypted struct{ Material string } `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(body), &made); err != nil || len(made) != 1 {
		s.t.Fatalf("%d %s: %v", status, body, err)
	}
	return `{"name":"k","iv":"` + made[0].IV + `","material":"` + made[0].Encrypted.Material + `"}`
}

const decryptPath = "keyversion/k@0/_eek?eek_op=decrypt&"

// TestStartsWithoutHSM: a server whose HSM does not answer at the start serves metadata, and refuses with 503 what
// needs the HSM. When the HSM answers, the server serves everything, and has logged in once. The same holds for a
// library that crashes in a worker.
func TestStartsWithoutHSM(t *testing.T) {
	for name, worker := range map[string]bool{"in process": false, "worker": true} {
		t.Run(name, func(t *testing.T) {
			dir, fault := faultyHSM(t, worker, nil)
			node := newStarting(t, dir)
			_, end := node.begin()
			node.until("it serves", func() bool { return node.listens() && node.ready() })
			if status := node.post("keys?", `{"name":"k"}`); status != http.StatusCreated {
				t.Fatal(status)
			}
			edek := node.edek()
			if err := end(); err != nil {
				t.Fatal(err)
			}

			order := faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR, Times: faultmodule.Always}
			if worker {
				order.Action = faultmodule.Abort
			}
			fault.Order(faultmodule.Initialize, order)
			ready := filepath.Join(dir, "ready")
			if err := os.Remove(ready); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			log, end := node.begin()
			node.until("it begins without the HSM", func() bool {
				_, err := os.Stat(ready)
				return err == nil
			})
			withoutHSM(t, node, edek)
			before := fault.Calls(faultmodule.Login)
			fault.Heal()
			healed := time.Now()
			node.until("it decrypts", func() bool { return node.post(decryptPath, edek) == http.StatusOK })
			served := time.Since(healed)
			node.until("it is ready", node.ready)
			t.Logf("decrypts after %v, ready after %v", served, time.Since(healed))
			if n := fault.Calls(faultmodule.Login) - before; n != 1 {
				t.Errorf("%d logins, want 1", n)
			}
			if status := node.post("key/k?", "{}"); status != http.StatusOK {
				t.Errorf("a roll: %d", status)
			}
			for text, times := range map[string]int{"the server runs without its HSM": 1, "the HSM answers": 1} {
				if n := strings.Count(log.String(), text); n != times {
					t.Errorf("the log says %d times that %s:\n%s", n, text, log)
				}
			}
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// withoutHSM checks the answers of a server that has no HSM yet.
func withoutHSM(t *testing.T, node *starting, edek string) {
	t.Helper()
	for path, want := range map[string]int{
		"/healthz": 200, "/metrics": 200, "/readyz": 503, "/kms/v1/keys/names": 200, "/kms/v1/key/k/_metadata": 200,
		"/kms/v1/keys/metadata?key=k": 200, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1": 503,
	} {
		if status, body := kmstest.Get(t, node.kms, path, "a"); status != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for path, body := range map[string]string{decryptPath: edek, "keys?": `{"name":"new"}`, "key/k?": "{}"} {
		if status := node.post(path, body); status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d", path, status)
		}
	}
	_, r := kmstest.Readyz(t, node.kms)
	i := slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "provider" })
	if i < 0 || r.Checks[i].OK || !strings.Contains(r.Checks[i].Error, "the server goes on trying: ") {
		t.Errorf("the check of the provider: %+v", r.Checks)
	}
}

// TestMigrationWaitsForHSM: a server that migrates at its start, without its HSM, serves no request before the HSM has
// answered and the migration is done.
func TestMigrationWaitsForHSM(t *testing.T) {
	source := "jceks://file@" + filepath.Join(t.TempDir(), "old.keystore")
	dir, fault := faultyHSM(t, false, map[string]string{hadoopconf.SourceURI: source})
	node := newStarting(t, dir)
	_, end := node.begin()
	node.until("it serves", func() bool { return node.listens() && node.ready() })
	if err := end(); err != nil {
		t.Fatal(err)
	}
	site, err := os.ReadFile(filepath.Join(dir, "kms-site.xml"))
	if err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "kms-site.xml"), strings.Replace(string(site), "<configuration>",
		"<configuration><property><name>"+hadoopconf.InitiateMigration+"</name><value>true</value></property>", 1))
	fault.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR,
		Times: faultmodule.Always})
	waits := func() bool {
		if !node.listens() {
			return false
		}
		_, body := kmstest.Get(t, node.kms, "/readyz", "")
		return strings.Contains(body, "waits for the HSM")
	}
	_, end = node.begin()
	node.until("it waits", waits)
	if err := end(); err != nil {
		t.Errorf("stopped while it waited: %v", err)
	}
	_, end = node.begin()
	node.until("it waits", waits)
	if status, body := kmstest.Get(t, node.kms, "/kms/v1/keys/names", "a"); status != http.StatusServiceUnavailable {
		t.Errorf("a request before the migration: %d %s", status, body)
	}
	fault.Heal()
	node.until("it is ready", node.ready)
	if err := end(); err != nil {
		t.Error(err)
	}
}
