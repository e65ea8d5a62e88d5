package kms

import (
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/logtest"
	"claviger/kms/kmstest"
)

// TestImpliedWithoutHSM: with a jceks:// provider, EDEKs are made as before, and the log says that the property does
// nothing.
func TestImpliedWithoutHSM(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"claviger.audit.file":  filepath.Join(dir, "audit.log"), "claviger.hsm.generate": "implied",
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false",
	})
	var log logtest.Buffer
	url, end := serveLogged(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	resp, err := http.Post(url+"/v1/keys?user.name=a", "application/json",
		strings.NewReader(`{"name":"k"}`)) //nolint:noctx // the server runs in this test
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if status, body := kmstest.Get(t, url, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=2",
		"a"); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "the first provider is not an HSM, so EDEKs are not implied") {
		t.Errorf("the log is %s", log.String())
	}
}
