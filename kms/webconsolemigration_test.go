package kms

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// TestConsoleMigration: the page Migration shows the run, what still asks the source by key and version, and each
// reason against the end. It is for administrators who may list keys.
func TestConsoleMigration(t *testing.T) {
	dir := t.TempDir()
	uri := "jceks://file@" + filepath.Join(dir, "old.keystore")
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.ALL", "*"))
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: uri, "hadoop.kms.http.host": "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false", "claviger.audit.file": filepath.Join(dir, "audit.log")})
	url, end := serveToEnd(t, dir)
	old := &consoleSite{t: t, dir: dir, kms: url}
	old.makeKey("a", `{"name":"alpha"}`)
	old.makeKey("a", `{"name":"beta"}`)
	_, body := kmstest.Get(t, strings.TrimSuffix(url, "/kms"), "/kms/v1/key/alpha/_eek?eek_op=generate&num_keys=1", "a")
	var made []struct {
		IV        string
		Encrypted struct{ Material string } `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(body), &made); err != nil || len(made) != 1 {
		t.Fatalf("%s: %v", body, err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}

	s := startConsole(t, map[string]string{hadoopconf.SourceURI: uri, hadoopconf.InitiateMigration: "true",
		"claviger.console.details": "10.9.8.7", "hadoop.security.authorization": "true",
		"hadoop.kms.http.administrators": "root,mallory"}, "hadoop.kms.acl.GET_KEYS", "root,alice")
	root, alice, mallory := s.as("root"), s.as("alice"), s.as("mallory")
	s.get(root, "/migration").wants(t, http.StatusOK, "<b>complete</b>", "alpha@0", "beta@0",
		"Last use of any version: -", "there is no verdict", "Not yet", uri, "Here: <b>2 keys</b>")
	s.rest(http.MethodPost, "/v1/keyversion/alpha@0/_eek?eek_op=decrypt", "alice",
		`{"name":"alpha","iv":"`+made[0].IV+`","material":"`+made[0].Encrypted.Material+`"}`, http.StatusOK)
	s.until(root, "/migration?needed=used", "alpha@0 was used at")
	s.get(root, "/migration?needed=used").wants(t, http.StatusOK, "1 to 1 of 1", "something still needs it", "!beta@0",
		"answers")
	s.get(root, "/keys?key=alpha").wants(t, http.StatusOK, "taken over from "+uri+" by a migration")
	s.get(alice, "/migration").wants(t, http.StatusForbidden, "It is for administrators", "!alpha@0")
	s.get(mallory, "/migration").wants(t, http.StatusForbidden, "You may not list keys", "!alpha@0")
}
