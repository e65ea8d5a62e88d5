package kms

import (
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
)

// onHSM runs a KMS on a SoftHSM token, with additional properties. It returns the address and
// the configuration folder.
func onHSM(t *testing.T, props map[string]string) (kms, dir string) {
	t.Helper()
	dir = t.TempDir()
	tok := softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	authority := certtest.New(t, dir)
	kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.type", "pem",
		"ssl.server.keystore.location", authority.Issue("server", "127.0.0.1")))
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*",
		"default.key.acl.GENERATE_EEK", "*", "default.key.acl.DECRYPT_EEK", "*"))
	all := map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: "sqlite://" +
			filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log"),
	}
	maps.Copy(all, props)
	kmstest.WriteSite(t, dir, all)
	return serve(t, dir), dir
}

// TestMetrics: the metrics of a server on an HSM after a batch.
func TestMetrics(t *testing.T) {
	kms, _ := onHSM(t, map[string]string{"claviger.audit.json.stdout": "true"})
	resp, err := http.Post(kms+"/v1/keys?user.name=a", "application/json",
		strings.NewReader(`{"name":"k"}`)) //nolint:noctx // the server runs in this test
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if status, body := kmstest.Get(t, kms, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=300",
		"a"); resp.StatusCode != http.StatusCreated || status != http.StatusOK {
		t.Fatalf("%d %d %s", resp.StatusCode, status, body)
	}
	if status, body := kmstest.Get(t, kms, "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=a", "a"); status != http.StatusOK {
		t.Fatalf("a delegation token: %d %s", status, body)
	}
	_, text := kmstest.Get(t, kms, "/metrics", "")
	for _, want := range []string{
		// before their first event
		`claviger_kms_slot_refused_total{class="key management"} 0`,
		`claviger_kms_refused_total{reason="impersonation"} 0`,
		`claviger_hsm_call_seconds_count{result="ok"}`, `claviger_hsm_call_blocks_bucket{le="512"}`,
		"claviger_hsm_call_callers_count", "claviger_hsm_wait_seconds_count",
		"claviger_hsm_sessions_in_use", "claviger_hsm_sessions_max", "claviger_edek_queue_ready",
		"claviger_http_connections",
		`claviger_kms_request_seconds_bucket{op="generate_eek",status="200",le="0.0001"}`,
		`claviger_kms_request_seconds_bucket{op="generate_eek",status="200",le="10"}`,
		`claviger_hsm_function_seconds_count{function="C_GenerateKey",result="CKR_OK"} 1`,
		`claviger_hsm_function_seconds_count{function="C_Encrypt",result="CKR_OK"}`,
		`claviger_kms_edeks_total{op="generate_eek"} 300`, "claviger_delegation_tokens 1\n",
		"claviger_audit_replaced_total 0\n",
		`claviger_build_info{commit="`,
		`claviger_certificate_expiry_seconds{name="ssl.server.keystore.location",subject="`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
