package kmsapi_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"claviger/kmsapi"
)

// TestNewVersionsByUser: a user who makes and deletes many keys is refused after a number of
// versions. Other users, and operations that make no version, are not refused, and refused creations do not count.
func TestNewVersionsByUser(t *testing.T) {
	var refused atomic.Int64
	addr := withKey(t, stack{
		Limits:  kmsapi.Limits{MaxKeys: 1000, MaxBatch: 1000, MaxBody: 1 << 20, MaxNewVersions: 5},
		Refused: func(reason string) { refused.Add(int64(map[string]int{"new_versions": 1}[reason])) },
	})
	create := func(user, name string) answer {
		return send(t, addr, "POST", "/kms/v1/keys?user.name="+user, fmt.Sprintf(`{"name":"%s","length":128}`, name))
	}
	for range 6 { // they are refused, and so do not count
		if a := create("mallory", "k"); a.status != 500 {
			t.Fatalf("a key that exists: %d %s", a.status, a.body)
		}
		if a := send(t, addr, "POST", "/kms/v1/key/none?user.name=mallory", "{}"); a.status != 500 {
			t.Fatalf("a roll of a key that does not exist: %d %s", a.status, a.body)
		}
	}
	for i := range 4 {
		if a := create("mallory", fmt.Sprint("m", i)); a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if a := send(t, addr, "DELETE", fmt.Sprintf("/kms/v1/key/m%d?user.name=mallory", i), ""); a.status != 200 {
			t.Fatalf("delete: %d %s", a.status, a.body)
		}
	}
	const roll = "/kms/v1/key/k?user.name="
	if a := send(t, addr, "POST", roll+"mallory", "{}"); a.status != 200 {
		t.Fatalf("roll: %d %s", a.status, a.body)
	}
	for _, a := range []answer{create("mallory", "m9"), send(t, addr, "POST", roll+"mallory", "{}")} {
		if class, message := a.thrown(t); a.status != 503 || class != "org.apache.hadoop.ipc.StandbyException" {
			t.Errorf("beyond the limit: %d %s %s", a.status, class, message)
		}
	}
	if n := refused.Load(); n != 2 {
		t.Errorf("%d requests are counted as refused", n)
	}
	if a := create("alice", "a"); a.status != 201 {
		t.Errorf("another user: %d %s", a.status, a.body)
	}
	const generate = "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1&user.name=mallory"
	if a := send(t, addr, "GET", generate, ""); a.status != 200 {
		t.Errorf("an operation that makes no version: %d %s", a.status, a.body)
	}
}
