package main

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/migrate/shred"
	"claviger/trustee"
)

// TestKTKMSWithoutItsFolder: the folder of a running KT KMS is moved. The KMS changes no key, is not ready to change or
// generate, and still decrypts. The folder of a running KMS cannot be shredded.
func TestKTKMSWithoutItsFolder(t *testing.T) {
	a, b := twoHosts(t)
	a.start()
	b.start()
	a.awaitEqual("the first copy")
	dir := t.TempDir()
	var trust []byte
	for _, h := range []*host{a, b} {
		pem, err := os.ReadFile(filepath.Join(h.dir, trustee.TLSCert))
		if err != nil {
			t.Fatal(err)
		}
		trust = append(trust, pem...)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "trust.pem"), string(trust))
	const kts = "cloudera.trustee.keyprovider."
	kmstest.WriteFile(t, filepath.Join(dir, "kts-site.xml"),
		kmstest.SiteXML(kts+"hostname-ACTIVE", a.addr, kts+"hostname-PASSIVE", b.addr, kts+"org", "ORG",
			kts+"auth", "walrus", kts+"keylength", "2048"))
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	folder := filepath.Join(dir, ".keytrustee")
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:    "keytrustee://file@" + folder,
		"claviger.ssl.truststore": filepath.Join(dir, "trust.pem"),
		"hadoop.kms.http.host":    "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log"),
	})
	kms := serve(t, dir)
	create := func(name string) int {
		t.Helper()
		//nolint:noctx // of a server of this test
		resp, err := http.Post(kms+"/v1/keys?user.name=a", "application/json", strings.NewReader(`{"name":"`+name+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	ready := func(purpose string, want int) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(100 * time.Millisecond) { // a probe result is kept for a second
			status, body := kmstest.Get(t, kms, "/readyz?for="+purpose, "")
			if status == want {
				return
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("ready for %s: %d, want %d: %s", purpose, status, want, body)
			}
		}
	}
	if status := create("first"); status != http.StatusCreated {
		t.Fatal(status)
	}
	if _, err := shred.Folder(folder); err == nil || !strings.Contains(err.Error(), "is in use by a Key Trustee KMS") {
		t.Errorf("shredding the folder of a KMS that runs: %v", err)
	}
	const private = "private key in its folder"
	_, r := kmstest.Readyz(t, kms)
	if at := slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == private }); at < 0 ||
		!r.Checks[at].OK {
		t.Fatalf("the checks are %+v", r.Checks)
	}
	if err := os.Rename(folder, folder+".away"); err != nil {
		t.Fatal(err)
	}
	if status := create("late"); status != http.StatusServiceUnavailable {
		t.Errorf("a key without the folder: %d", status)
	}
	ready("write", http.StatusServiceUnavailable)
	ready("generate", http.StatusServiceUnavailable)
	ready("decrypt", http.StatusOK)
	if err := os.Rename(folder+".away", folder); err != nil {
		t.Fatal(err)
	}
	if status := create("late"); status != http.StatusCreated {
		t.Errorf("a key once the folder is back: %d", status)
	}
}
