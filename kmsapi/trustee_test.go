package kmsapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/provider/memory"
)

// TestTrusteeOps walks a key through deletion, undeletion and purge as a client of
// the Key Trustee KMS does, errors in Hadoop's form.
func TestTrusteeOps(t *testing.T) {
	primary := memory.New(memory.Config{SoftDelete: true})
	defer func() { _ = primary.Close() }()
	const key = "a/b c"
	make := func() {
		t.Helper()
		if _, err := primary.Create(t.Context(), provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128}); err != nil {
			t.Fatal(err)
		}
	}
	make()
	policy, warnings := authz.Parse(append([]authz.Property{
		{Name: "keytrustee.kms.acl.UNDELETE", Value: "alice"}, {Name: "keytrustee.kms.acl.PURGE", Value: "alice"},
	}, openRules...))
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	log := &trail{}
	addr := start(t, stack{Primary: primary, Policy: policy, KeyAuthorization: true, Trail: log})
	ask := func(user, method, path string) (int, string) {
		t.Helper()
		glue := "?"
		if strings.Contains(path, "?") {
			glue = "&"
		}
		a := exchange(t, addr, method, fmt.Appendf(nil, "%s /kms/v1/%s%suser.name=%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path, glue, user))
		return a.status, string(a.body)
	}
	const at, op = "trustee/key/a%2Fb%20c", "?trusteeOp="
	missing := "No deleted key " + key + " in memory:"
	for _, tt := range []struct {
		what, user, method, path string
		status                   int
		says                     string
	}{
		{"not deleted", "alice", http.MethodPost, at + op + "undelete", 500, missing},
		{"not deleted", "alice", http.MethodPost, at + op + "purge", 500, missing},
		{"delete", "alice", http.MethodDelete, "key/a%2Fb%20c", 200, ""},
		{"no op", "alice", http.MethodPost, at, 400, "Parameter 'trusteeOp' cannot be null"},
		{"other op", "alice", http.MethodPost, at + op + "UNDELETE", 400, "it must be undelete, undeleteVersion, purge, purgeVersion or migrate"},
		{"no source", "alice", http.MethodPost, at + op + "migrate", 400, "this server has no source to take keys over from"},
		{"by DELETE", "alice", http.MethodDelete, at + op + "undelete", 405, "WebApplicationException"},
		{"may not", "bob", http.MethodPost, at + op + "undelete", 403, "User:bob not allowed to do 'UNDELETE_KEY' on '" + key + "'"},
		{"may not", "bob", http.MethodPost, at + op + "purge", 403, "User:bob not allowed to do 'PURGE_KEY' on '" + key + "'"},
		{"may not", "bob", http.MethodGet, "trustee/keys/deleted", 403, "User:bob not allowed to do 'GET_DELETED_KEYS'"},
		{"no version", "alice", http.MethodPost, at + op + "undeleteVersion", 400, "Parameter 'version' cannot be null"},
		{"no version", "alice", http.MethodPost, at + op + "purgeVersion&version=", 400, "Parameter 'version' cannot be null"},
		{"another's version", "alice", http.MethodPost, at + op + "undeleteVersion&version=other@0", 500, missing + " has the version other@0; the newest versions of those that are there are " + key + "@"},
		{"another's version", "alice", http.MethodPost, at + op + "purgeVersion&version=a%2Fb%20c@none", 500, missing + " has the version " + key + "@none; the newest"},
		{"all of one", "alice", http.MethodPost, at + op + "purgeVersion&version=a%2Fb%20c@none&all=true", 400, "Parameter 'all' must be true, and goes with trusteeOp=purge alone"},
		{"not all", "alice", http.MethodPost, at + op + "purge&all=false", 400, "Parameter 'all' must be true"},
		{"may not", "bob", http.MethodPost, at + op + "undeleteVersion&version=x", 403, "'UNDELETE_KEY'"},
		{"may not", "bob", http.MethodPost, at + op + "purgeVersion&version=x", 403, "'PURGE_KEY'"},
		{"undelete", "alice", http.MethodPost, at + op + "undelete", 200, ""},
		{"described", "alice", http.MethodGet, at, 200, `[{"name":"a/b c","provider":"memory:","cipher":"AES/CTR/NoPadding","length":128,"description":null,"attributes":{},"created":`},
		{"is back", "alice", http.MethodGet, "key/a%2Fb%20c/_metadata", 200, `"name":"a/b c"`},
		{"delete again", "alice", http.MethodDelete, "key/a%2Fb%20c", 200, ""},
	} {
		status, body := ask(tt.user, tt.method, tt.path)
		if status != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %s %s: %d %s, want %d %s", tt.what, tt.method, tt.path, status, body, tt.status, tt.says)
		}
		if status >= 400 && !strings.Contains(body, `"RemoteException"`) {
			t.Errorf("%s: not in Hadoop's form: %s", tt.what, body)
		}
	}
	make()
	if status, body := ask("alice", http.MethodPost, at+op+"undelete"); status != 500 || !strings.Contains(body, "Key "+key+" already exists in memory:; the deleted key") {
		t.Errorf("undelete where the name is taken: %d %s", status, body)
	}
	status, body := ask("alice", http.MethodGet, "trustee/keys/deleted")
	var list []kmswire.DeletedKey
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != 200 || len(list) != 1 || list[0].Name != key || len(list[0].Versions) != 1 {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	if ago := time.Since(time.UnixMilli(list[0].Deleted)); ago < 0 || ago > time.Minute {
		t.Errorf("deleted %v ago", ago)
	}
	if status, body := ask("alice", http.MethodPost, at+op+"purge"); status != 200 {
		t.Errorf("purge: %d %s", status, body)
	}
	if status, body := ask("alice", http.MethodGet, "trustee/keys/deleted"); status != 200 || strings.TrimSpace(body) != "[]" {
		t.Errorf("after the purge: %d %s", status, body)
	}
	if n := primary.Objects(); n != 1 {
		t.Errorf("%d versions are left, want the new key's", n)
	}
	purged := false
	for _, e := range log.all() {
		purged = purged || e.Op == audit.PurgeKey && e.Status == audit.OK && e.Key == key && e.Caller.Short == "alice"
	}
	if !purged {
		t.Errorf("no audit line of the purge: %+v", log.all())
	}
	// Of several keys none is purged that was not meant.
	ask("alice", http.MethodDelete, "key/a%2Fb%20c")
	make()
	ask("alice", http.MethodDelete, "key/a%2Fb%20c")
	if status, body := ask("alice", http.MethodPost, at+op+"purge"); status != 400 || !strings.Contains(body, "2 deleted keys have the name 'a/b c'") || !strings.Contains(body, "trusteeOp=purge&all=true") {
		t.Errorf("purge of two: %d %s", status, body)
	}
	if n := primary.Objects(); n != 2 {
		t.Errorf("%d versions are left, want both", n)
	}
	if status, body := ask("alice", http.MethodPost, at+op+"purge&all=true"); status != 200 || primary.Objects() != 0 {
		t.Errorf("purge of all: %d %s, %d versions are left", status, body, primary.Objects())
	}
}

// takenOver is the source of a migration with the key a/b.
type takenOver struct{}

func (takenOver) SourceMetadata(_ context.Context, key string) (*claviger.Metadata, error) {
	if key != "a/b" {
		return nil, claviger.E("test", claviger.KeyNotFound, key, nil)
	}
	return &claviger.Metadata{Name: key}, nil
}

func (takenOver) RunKey(_ context.Context, key string) ([]string, error) {
	return []string{key + "@1", key + "@2"}, nil
}

// TestMigrateOp: a key is taken over for who has the right MIGRATE.
func TestMigrateOp(t *testing.T) {
	primary := memory.New(memory.Config{})
	defer func() { _ = primary.Close() }()
	policy, _ := authz.Parse([]authz.Property{{Name: "default.key.acl.MIGRATE", Value: "alice"}})
	addr := start(t, stack{Primary: primary, Policy: policy, Migrator: takenOver{}})
	for _, tt := range []struct {
		user, key string
		status    int
		says      string
	}{
		{"alice", "a%2Fb", 200, `{"name":"a/b","versions":["a/b@1","a/b@2"]}`},
		{"bob", "a%2Fb", 403, "User [bob] is not authorized to perform [MIGRATE] on key with ACL name [a/b]!!"},
		{"bob", "none", 403, "User [bob] is not authorized to perform [MIGRATE] on key with ACL name [none]!!"},
		{"alice", "none", 500, "The source of the migration has no key none"},
	} {
		a := exchange(t, addr, http.MethodPost, fmt.Appendf(nil, "POST /kms/v1/trustee/key/%s?trusteeOp=migrate&user.name=%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", tt.key, tt.user))
		if a.status != tt.status || !strings.Contains(string(a.body), tt.says) {
			t.Errorf("%s migrates %s: %d %s, want %d %s", tt.user, tt.key, a.status, a.body, tt.status, tt.says)
		}
	}
}
