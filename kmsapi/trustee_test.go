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

// The key of a trusteeServer, its path, and the parameter of the operations.
const (
	trusteeKey  = "a/b c"
	trusteePath = "trustee/key/a%2Fb%20c"
	trusteeOp   = "?trusteeOp="
)

// trusteeServer is a server with one key, whose provider keeps deleted keys.
type trusteeServer struct {
	t       *testing.T
	primary *memory.Provider
	log     *trail
	addr    string
}

func newTrusteeServer(t *testing.T) *trusteeServer {
	t.Helper()
	l := &trusteeServer{t: t, primary: memory.New(memory.Config{SoftDelete: true}), log: &trail{}}
	t.Cleanup(func() { _ = l.primary.Close() })
	l.make()
	policy, warnings := authz.Parse(append([]authz.Property{
		{Name: "keytrustee.kms.acl.UNDELETE", Value: "alice"}, {Name: "keytrustee.kms.acl.PURGE", Value: "alice"},
	}, openRules...))
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	l.addr = start(t, stack{Primary: l.primary, Policy: policy, KeyAuthorization: true, Trail: l.log})
	return l
}

func (l *trusteeServer) make() {
	l.t.Helper()
	spec := provider.Spec{Name: trusteeKey, Cipher: claviger.DefaultCipher, BitLength: 128}
	if _, err := l.primary.Create(l.t.Context(), spec); err != nil {
		l.t.Fatal(err)
	}
}

func (l *trusteeServer) send(user, method, path string) (status int, body string) {
	l.t.Helper()
	glue := "?"
	if strings.Contains(path, "?") {
		glue = "&"
	}
	a := exchange(l.t, l.addr, method, fmt.Appendf(nil, "%s /kms/v1/%s%suser.name=%s HTTP/1.1\r\n"+
		"Host: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path, glue, user))
	return a.status, string(a.body)
}

// TestTrusteeOps deletes, undeletes and purges a key like a client of the Key Trustee KMS. Errors
// have Hadoop's form.
func TestTrusteeOps(t *testing.T) {
	l := newTrusteeServer(t)
	const key = trusteeKey
	missing := "No deleted key " + key + " in memory:"
	for _, tt := range []struct {
		what, user, method, path string
		status                   int
		says                     string
	}{
		{"not deleted", "alice", http.MethodPost, trusteePath + trusteeOp + "undelete", 500, missing},
		{"not deleted", "alice", http.MethodPost, trusteePath + trusteeOp + "purge", 500, missing},
		{"delete", "alice", http.MethodDelete, "key/a%2Fb%20c", 200, ""},
		{"no op", "alice", http.MethodPost, trusteePath, 400, "Parameter 'trusteeOp' cannot be null"},
		{"other op", "alice", http.MethodPost, trusteePath + trusteeOp + "UNDELETE", 400,
			"it must be undelete, undeleteVersion, purge, purgeVersion or migrate"},
		{"no source", "alice", http.MethodPost, trusteePath + trusteeOp + "migrate", 400,
			"this server has no source to take keys over from"},
		{"by DELETE", "alice", http.MethodDelete, trusteePath + trusteeOp + "undelete", 405, "WebApplicationException"},
		{"may not", "bob", http.MethodPost, trusteePath + trusteeOp + "undelete", 403,
			"User:bob not allowed to do 'UNDELETE_KEY' on '" + key + "'"},
		{"may not", "bob", http.MethodPost, trusteePath + trusteeOp + "purge", 403,
			"User:bob not allowed to do 'PURGE_KEY' on '" + key + "'"},
		{"may not", "bob", http.MethodGet, "trustee/keys/deleted", 403,
			"User:bob not allowed to do 'GET_DELETED_KEYS'"},
		{"no version", "alice", http.MethodPost, trusteePath + trusteeOp + "undeleteVersion", 400,
			"Parameter 'version' cannot be null"},
		{"no version", "alice", http.MethodPost, trusteePath + trusteeOp + "purgeVersion&version=", 400,
			"Parameter 'version' cannot be null"},
		{"another's version", "alice", http.MethodPost, trusteePath + trusteeOp + "undeleteVersion&version=other@0",
			500, missing + " has the version other@0; the deleted keys of that name have the newest " +
				"versions " + key + "@"},
		{"another's version", "alice", http.MethodPost, trusteePath + trusteeOp +
			"purgeVersion&version=a%2Fb%20c@none", 500, missing + " has the version " + key + "@none; the " +
			"deleted keys"},
		{"all of one", "alice", http.MethodPost, trusteePath + trusteeOp +
			"purgeVersion&version=a%2Fb%20c@none&all=true", 400,
			"Parameter 'all' must be true, and goes with trusteeOp=purge alone"},
		{"not all", "alice", http.MethodPost, trusteePath + trusteeOp + "purge&all=false", 400,
			"Parameter 'all' must be true"},
		{"may not", "bob", http.MethodPost, trusteePath + trusteeOp + "undeleteVersion&version=x", 403,
			"'UNDELETE_KEY'"},
		{"may not", "bob", http.MethodPost, trusteePath + trusteeOp + "purgeVersion&version=x", 403, "'PURGE_KEY'"},
		{"undelete", "alice", http.MethodPost, trusteePath + trusteeOp + "undelete", 200, ""},
		{"described", "alice", http.MethodGet, trusteePath, 200,
			`[{"name":"a/b c","provider":"memory:","cipher":"AES/CTR/NoPadding","length":128,` +
				`"description":null,"attributes":{},"created":`},
		{"is back", "alice", http.MethodGet, "key/a%2Fb%20c/_metadata", 200, `"name":"a/b c"`},
		{"delete again", "alice", http.MethodDelete, "key/a%2Fb%20c", 200, ""},
	} {
		status, body := l.send(tt.user, tt.method, tt.path)
		if status != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %s %s: %d %s, want %d %s", tt.what, tt.method, tt.path, status, body, tt.status, tt.says)
		}
		if status >= 400 && !strings.Contains(body, `"RemoteException"`) {
			t.Errorf("%s: not in Hadoop's form: %s", tt.what, body)
		}
	}
}

// TestPurge: a new key may get a deleted key's name. The deleted key is still listed, and can be
// purged without the new one.
func TestPurge(t *testing.T) {
	l := newTrusteeServer(t)
	const key = trusteeKey
	l.send("alice", http.MethodDelete, "key/a%2Fb%20c")
	l.make()
	if status, body := l.send("alice", http.MethodPost, trusteePath+trusteeOp+"undelete"); status != 500 ||
		!strings.Contains(body, "Key "+key+" already exists in memory:; the deleted key") {
		t.Errorf("undelete where the name is taken: %d %s", status, body)
	}
	status, body := l.send("alice", http.MethodGet, "trustee/keys/deleted")
	var list []kmswire.DeletedKey
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != 200 || len(list) != 1 ||
		list[0].Name != key || len(list[0].Versions) != 1 {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	if ago := time.Since(time.UnixMilli(list[0].Deleted)); ago < 0 || ago > time.Minute {
		t.Errorf("deleted %v ago", ago)
	}
	if status, body := l.send("alice", http.MethodPost, trusteePath+trusteeOp+"purge"); status != 200 {
		t.Errorf("purge: %d %s", status, body)
	}
	if status, body := l.send("alice", http.MethodGet, "trustee/keys/deleted"); status != 200 ||
		strings.TrimSpace(body) != "[]" {
		t.Errorf("after the purge: %d %s", status, body)
	}
	if n := l.primary.Objects(); n != 1 {
		t.Errorf("%d versions are left, want the new key's", n)
	}
	purged := false
	for _, e := range l.log.all() {
		purged = purged || e.Op == audit.PurgeKey && e.Status == audit.OK && e.Key == key && e.Caller.Short == "alice"
	}
	if !purged {
		t.Errorf("no audit line of the purge: %+v", l.log.all())
	}
}

// TestPurgeOfSeveral: if there are several deleted keys of one name, a purge needs all=true.
func TestPurgeOfSeveral(t *testing.T) {
	l := newTrusteeServer(t)
	l.send("alice", http.MethodDelete, "key/a%2Fb%20c")
	l.make()
	l.send("alice", http.MethodDelete, "key/a%2Fb%20c")
	if status, body := l.send("alice", http.MethodPost, trusteePath+trusteeOp+"purge"); status != 400 ||
		!strings.Contains(body, "2 deleted keys have the name 'a/b c'") ||
		!strings.Contains(body, "trusteeOp=purge&all=true") {
		t.Errorf("purge of two: %d %s", status, body)
	}
	if n := l.primary.Objects(); n != 2 {
		t.Errorf("%d versions are left, want both", n)
	}
	if status, body := l.send("alice", http.MethodPost, trusteePath+trusteeOp+"purge&all=true"); status != 200 ||
		l.primary.Objects() != 0 {
		t.Errorf("purge of all: %d %s, %d versions are left", status, body, l.primary.Objects())
	}
}

// takenOver is a source of a migration that has the key a/b.
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

// TestMigrateOp: only a user with the right MIGRATE can have a key taken over.
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
		a := exchange(t, addr, http.MethodPost, fmt.Appendf(nil,
			"POST /kms/v1/trustee/key/%s?trusteeOp=migrate&user.name=%s HTTP/1.1\r\nHost: "+
				"localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", tt.key, tt.user))
		if a.status != tt.status || !strings.Contains(string(a.body), tt.says) {
			t.Errorf("%s migrates %s: %d %s, want %d %s", tt.user, tt.key, a.status, a.body, tt.status, tt.says)
		}
	}
}
