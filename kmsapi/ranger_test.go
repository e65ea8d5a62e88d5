package kmsapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"claviger/audit"
	"claviger/authn"
	"claviger/authz"
	"claviger/provider/memory"
)

// TestDataKey: Ranger's _dek returns a DEK and its EDEK to a user who may both generate and
// decrypt, and to no other user.
func TestDataKey(t *testing.T) {
	policy, _ := authz.Parse([]authz.Property{
		{Name: "key.acl.k.MANAGEMENT", Value: "alice"}, {Name: "key.acl.k.GENERATE_EEK", Value: "alice,gen,shut"},
		{Name: "key.acl.k.DECRYPT_EEK", Value: "alice,dec,shut"},
		{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "shut"},
	})
	tr := &trail{}
	addr := withKey(t, stack{Primary: memory.New(memory.Config{SequentialIDs: true}), Policy: policy,
		KeyAuthorization: true, Trail: tr})
	a := send(t, addr, "GET", "/kms/v1/key/k/_dek", "")
	var both struct {
		Edek struct {
			VersionName, IV     string
			EncryptedKeyVersion struct{ Material, VersionName string }
		}
		Dek struct{ Material, VersionName, Name string }
	}
	if err := json.Unmarshal(a.body, &both); err != nil || a.status != 200 {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	body := `{"name":"k","iv":"` + both.Edek.IV + `","material":"` + both.Edek.EncryptedKeyVersion.Material + `"}`
	opened := send(t, addr, "POST", "/kms/v1/keyversion/"+both.Edek.VersionName+"/_eek?eek_op=decrypt", body)
	var dek struct{ Material string }
	if err := json.Unmarshal(opened.body, &dek); err != nil || dek.Material != both.Dek.Material ||
		len(dek.Material) < 22 || both.Dek.VersionName != "EK" || both.Dek.Name != "k" ||
		both.Edek.EncryptedKeyVersion.VersionName != "EEK" {
		t.Errorf("the EDEK opens to %d %s, _dek says %s", opened.status, opened.body, a.body)
	}
	var ops []audit.Op
	for _, e := range tr.all()[1:3] {
		ops = append(ops, e.Op)
	}
	if len(ops) != 2 || ops[0] != audit.GenerateEEK || ops[1] != audit.DecryptEEK {
		t.Errorf("audited as %v", ops)
	}
	for _, who := range []string{"gen", "dec", "shut", "mallory"} {
		a := sendAs(t, addr, "GET", "/kms/v1/key/k/_dek?user.name="+who, "")
		raw, _ := base64.RawURLEncoding.DecodeString(both.Dek.Material)
		if (a.status != 403 && a.status != 500) || bytes.Contains(a.body, raw) ||
			bytes.Contains(a.body, []byte("material")) {
			t.Errorf("%s: %d %s", who, a.status, a.body)
		}
	}
	if a := send(t, addr, "GET", "/kms/v1/key/absent/_dek", ""); a.status == 200 {
		t.Errorf("of an absent key: %s", a.body)
	}
}

// TestRangerPaths: authenticated users can read the status and the figures.
func TestRangerPaths(t *testing.T) {
	addr := withKey(t, stack{Auth: authn.Config{}})
	for _, path := range []string{"/kms/api/status", "/kms/metrics/json", "/kms/metrics/prometheus"} {
		if a := sendAs(t, addr, "GET", path, ""); a.status != 401 {
			t.Errorf("%s without a name: %d", path, a.status)
		}
		if a := send(t, addr, "DELETE", path, ""); a.status != 405 {
			t.Errorf("DELETE %s: %d", path, a.status)
		}
	}
	if a := send(t, addr, "GET", "/kms/api/status", ""); a.status != 200 ||
		a.header("Content-Type") != "application/json" || !json.Valid(a.body) ||
		!strings.Contains(string(a.body), `"status"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	send(t, addr, "GET", "/kms/v1/keys/metadata?key=k&key=l", "")
	send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=3", "")
	var records map[string]map[string]int64
	a := send(t, addr, "GET", "/kms/metrics/json", "")
	if err := json.Unmarshal(a.body, &records); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	got := records["KMS"]
	for name, want := range map[string]int64{
		"KEY_CREATE_COUNT": 1, "GET_KEYS_METADATA_COUNT": 1, "GET_KEYS_METADATA_KEYNAMES_COUNT": 2,
		"EEK_GENERATE_COUNT": 1, "EEK_DECRYPT_COUNT": 0, "UNAUTHENTICATED_CALLS_COUNT": 3, "TOTAL_CALL_COUNT": 10,
	} {
		if got[name] != want {
			t.Errorf("%s is %d, want %d", name, got[name], want)
		}
	}
	if _, ok := got["KEY_CREATE_ELAPSED_TIME"]; !ok || len(got) != 33 {
		t.Errorf("%d figures: %v", len(got), got)
	}
	a = send(t, addr, "GET", "/kms/metrics/prometheus", "")
	if text := string(a.body); !strings.Contains(text, "# TYPE kmskey_create_count counter\n"+
		"kmskey_create_count{context=\"kms\",hostname=\"") ||
		!strings.Contains(text, "# TYPE kmskey_create_elapsed_time gauge\n") {
		t.Errorf("%s", text)
	}
}

// TestUnknownPaths: the answer is a 404 in the form of Hadoop's exceptions, never a 500.
func TestUnknownPaths(t *testing.T) {
	addr := withKey(t, stack{})
	for _, path := range []string{"/kms/v1/nothing", "/kms/v2/keys", "/kms", "/kms/", "/kms/api", "/kms/api/status/x",
		"/kms/metrics", "/kms/metrics/xml", "/kms/v1/keys/names/x", "/kms/v1//keys"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			a := send(t, addr, method, path, "")
			if a.status != 404 {
				t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
				continue
			}
			if class, message := a.thrown(t); class != "com.sun.jersey.api.NotFoundException" ||
				!strings.HasPrefix(message, "null for uri: ") {
				t.Errorf("%s %s: %s %s", method, path, class, message)
			}
		}
	}
}
