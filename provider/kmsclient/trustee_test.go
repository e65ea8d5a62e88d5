package kmsclient_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/kmsclient"
)

// TestTrusteeKinds checks the kinds of the errors of operations on deleted keys. The error of a refusal must name the
// ACL that would allow the operation.
func TestTrusteeKinds(t *testing.T) {
	server, _ := serveOurs(t, false)
	p := open(t, "kms://"+strings.Replace(server.URL, "://", "@", 1)+"/kms", kmsclient.Options{User: "alice"})
	ctx := t.Context()
	const key = "a/b c+d"
	if _, err := p.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	wantError := func(call string, err error, kind claviger.Kind, text string) {
		t.Helper()
		if !claviger.Is(err, kind) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want kind %v and %q", call, err, kind, text)
		}
	}
	_, err := p.DeletedKeys(ctx)
	wantError("DeletedKeys", err, claviger.Denied, "keytrustee.kms.acl.PURGE")
	wantError("Undelete", p.Undelete(ctx, key, ""), claviger.Denied,
		"(keytrustee.kms.acl.UNDELETE in that KMS's kms-acls.xml must admit alice)")
	wantError("Purge", p.Purge(ctx, key, ""), claviger.Denied, "(keytrustee.kms.acl.PURGE in")
	wantError("Undelete of no name", p.Undelete(ctx, "", ""), claviger.KeyNotFound, "")

	if list, err := p.Describe(ctx, key); err != nil || len(list) != 1 || list[0].Name != key ||
		len(list[0].Versions) != 1 || list[0].Length != 128 {
		t.Errorf("Describe: %+v, %v", list, err)
	}
	_, err = p.Describe(ctx, "none")
	wantError("Describe of none", err, claviger.KeyNotFound, "Key none not found")
	_, err = p.Migrate(ctx, key)
	wantError("Migrate without a source", err, claviger.Unsupported, "this server has no source")

	soft, keys := serveSoft(t)
	p = open(t, "kms://"+strings.Replace(soft.URL, "://", "@", 1)+"/kms", kmsclient.Options{User: "alice"})
	spec := provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128}
	wantError("Undelete of none", p.Undelete(ctx, key, ""), claviger.KeyNotFound, "No deleted key "+key)
	wantError("Purge of none", p.Purge(ctx, key, ""), claviger.KeyNotFound, "No deleted key "+key)
	if _, err := p.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	if list, err := p.DeletedKeys(ctx); err != nil || len(list) != 1 || list[0].Name != key ||
		len(list[0].Versions) != 1 || list[0].Deleted == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := p.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	wantError("Undelete", p.Undelete(ctx, key, ""), claviger.KeyExists, "already exists")
	if err := p.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	if err := p.Undelete(ctx, key, ""); err != nil {
		t.Errorf("Undelete: %v", err)
	}
	if err := p.Purge(ctx, key, ""); err != nil {
		t.Errorf("Purge: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	wantError("after Close", p.Purge(ctx, key, ""), claviger.Closed, "")
	if n := keys.Objects(); n != 1 {
		t.Errorf("%d versions at the KMS, want 1 of the undeleted key", n)
	}
}

// TestDescribeAtHadoop checks Describe at Hadoop's own KMS. It does not have the path, and answers as Jersey does.
func TestDescribeAtHadoop(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions { // the login
			http.SetCookie(w, &http.Cookie{Name: "hadoop.auth", Value: "u=alice&p=alice&t=simple&e=4102444800000&s=x",
				Quoted: true})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w,
			`{"RemoteException":{"message":"null for uri: http://%s%s","exception":"NotFoundException",`+
				`"javaClassName":"com.sun.jersey.api.NotFoundException"}}`, r.Host, r.URL.Path)
	}))
	defer server.Close()
	p := open(t, "kms://"+strings.Replace(server.URL, "://", "@", 1)+"/kms", kmsclient.Options{User: "alice"})
	if _, err := p.Describe(t.Context(), "k"); !claviger.Is(err, claviger.Unsupported) {
		t.Errorf("%v, want kind unsupported", err)
	}
}
