package nodes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/secret"
	"claviger/test/hadoop"
)

// TestLostByAFailover: a standby that lacks an acknowledged key and an acknowledged roll takes over. No node,
// neither a running nor a starting one, answers "not found" for the lost key and version, or makes a new key in
// their place. After an operator accepts the loss, they are adopted from the HSM while the nodes serve, and each
// node decrypts their EDEKs.
func TestLostByAFailover(t *testing.T) {
	ctx := t.Context()
	primary := pgtest.StartReplicated(t)
	primary.Database(t)
	standby := primary.Standby(t)
	s := &site{conf: t.TempDir(), hsm: hadoop.NewHSM(t),
		store: fmt.Sprintf("postgresql://%s@%s,%s/test1?sslmode=disable", pgtest.Superuser, primary.Addr, standby.Addr)}
	s.write(t, hadoop.Conf{"claviger.delete.soft": "true"})
	first, second := s.start(t), s.start(t)
	one, two := first.client(t), second.client(t)
	create := func(key string) {
		t.Helper()
		if _, err := one.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
	}
	sealed, opened := map[string][]claviger.EDEK{}, map[string]secret.Bytes{}
	seal := func(key string) { t.Helper(); sealed[key], opened[key] = sealedBy(t, one, key) }
	create("old")
	create("rolled")
	seal("old")
	standby.CatchUp(t, primary)
	standby.Stop(t)
	create("new")
	if _, err := one.Roll(ctx, "rolled", nil); err != nil {
		t.Fatal(err)
	}
	seal("new")
	seal("rolled")
	waitUntilRecorded(t, s, "new", "rolled")
	primary.Kill(t)
	standby.Start(t)
	standby.Promote(t)

	elsewhere := func(what string, n *kmsclient.Provider) { t.Helper(); closedAt(t, what, n, sealed) }
	for begun := time.Now(); opens(t, two, "old", sealed["old"]) != nil; time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > 30*time.Second {
			t.Fatal("the standby is not used")
		}
	}
	elsewhere("a node that runs", two)
	third := s.start(t)
	if ready, why := third.ready(t, "write"); ready || !strings.Contains(why, "lacks changes") {
		t.Errorf("readiness of a node that starts: %t %s", ready, why)
	}
	elsewhere("a node that starts", third.client(t))
	if ready, why := second.ready(t, "write"); ready || !strings.Contains(why, "lacks changes") {
		t.Errorf("readiness: %t %s", ready, why)
	}
	if ready, why := second.ready(t, "decrypt"); !ready {
		t.Errorf("an existing key is not served: %s", why)
	}

	acceptLoss(t, s)
	// Now the store lacks nothing that it knows of, and only the token shows the loss. The nodes still run.
	nodes := map[string]*node{"a node that runs": second, "a node that was started after the failover": third}
	for what, n := range nodes {
		writesAgain(t, what, n)
	}
	nodes["a node that starts after the loss was accepted"] = s.start(t)
	clients := map[string]*kmsclient.Provider{}
	for what, n := range nodes {
		clients[what] = n.client(t)
		elsewhere(what+", the loss accepted", clients[what])
		listsKept(t, what, clients[what])
	}
	var found struct{ Digest string }
	if out := hadoop.Claviger(t, s.hsm.Env, "hsm", "adopt", "--conf", s.conf, "--all", "--dry-run", "-o",
		"json"); json.Unmarshal([]byte(out), &found) != nil || found.Digest == "" {
		t.Fatalf("adoptable versions: %s", out)
	}
	hadoop.Claviger(t, s.hsm.Env, "hsm", "adopt", "--conf", s.conf, "--all", "--confirm", found.Digest)
	for what, n := range clients {
		adoptedAt(t, what, n, sealed, opened)
	}
	if v, err := two.Roll(ctx, "rolled", nil); err != nil || v.Name != "rolled@2" {
		t.Errorf("the next version: %+v, %v", v, err)
	}
}

// sealedBy makes an EDEK of a key at a node, and decrypts it.
func sealedBy(t *testing.T, n *kmsclient.Provider, key string) ([]claviger.EDEK, secret.Bytes) {
	t.Helper()
	e, err := n.Generate(t.Context(), key, 1)
	if err != nil {
		t.Fatal(err)
	}
	dek, err := n.Unwrap(t.Context(), key, "", e)
	if err != nil {
		t.Fatal(err)
	}
	return e, dek[0]
}

// acceptLoss accepts the loss of the changes, like an operator.
func acceptLoss(t *testing.T, s *site) {
	t.Helper()
	created := regexp.MustCompile(
		`(?m)^new .* created +not in the store; the token holds new@0, which the store does not know`)
	rolled := regexp.MustCompile(
		`(?m)^rolled .* rolled +in the store, newest version rolled@0; the token holds rolled@1, ` +
			`which the store does not know`)
	out := hadoop.Claviger(t, s.hsm.Env, "metastore", "accept", "--conf", s.conf, "--yes")
	if !created.MatchString(out) || !rolled.MatchString(out) {
		t.Errorf("accepted losses: %s", out)
	}
}

// closedAt fails the test unless a node knows that key new and the second version of key rolled were lost: the
// node does not answer "not found", and makes nothing in their place.
func closedAt(t *testing.T, what string, n *kmsclient.Provider, sealed map[string][]claviger.EDEK) {
	t.Helper()
	ctx := t.Context()
	refused := func(err error) bool {
		return err != nil && (strings.Contains(err.Error(), "503") ||
			strings.Contains(err.Error(), "claviger hsm adopt"))
	}
	for key, e := range sealed {
		if key == "old" {
			continue
		}
		if err := opens(t, n, key, e); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("%s, a DEK of %s: %v", what, e[0].Version, err)
		}
	}
	// Requests with the name of the key, which clients send before they write.
	_, current := n.Current(ctx, "new")
	_, metadata := n.Metadata(ctx, "new")
	_, versions := n.Versions(ctx, "new")
	_, generate := n.Generate(ctx, "new", 1)
	_, roll := n.Roll(ctx, "new", nil)
	for asked, err := range map[string]error{
		"current version": current, "metadata": metadata, "versions": versions,
		"new EDEK": generate, "roll": roll, "deletion": n.Delete(ctx, "new"),
	} {
		if err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("%s, %s of the lost key: %v", what, asked, err)
		}
	}
	if v, err := n.Create(ctx, provider.Spec{Name: "new", Cipher: claviger.DefaultCipher,
		BitLength: 128}); !refused(err) {
		t.Errorf("%s, create of the lost key: %+v, %v", what, v, err)
	}
	if v, err := n.Roll(ctx, "rolled", nil); !refused(err) {
		t.Errorf("%s, roll of the lost version: %+v, %v", what, v, err)
	}
}

// writesAgain waits until a node is ready to change keys.
func writesAgain(t *testing.T, what string, n *node) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		ready, why := n.ready(t, "write")
		if ready {
			return
		}
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("%s changes no key after the loss was accepted: %s", what, why)
		}
	}
}

// listsKept fails the test unless a node lists the keys that are left after the failover.
func listsKept(t *testing.T, what string, n *kmsclient.Provider) {
	t.Helper()
	ctx := t.Context()
	if names, err := n.Keys(ctx); err != nil || !slices.Equal(slices.Sorted(slices.Values(names)), []string{"old",
		"rolled"}) {
		t.Errorf("%s lists %v, %v", what, names, err)
	}
	if list, err := n.Metadata(ctx, "old", "new"); err != nil || list[0] == nil || list[1] != nil {
		t.Errorf("%s, one lost key among others: %+v, %v", what, list, err)
	}
}

// adoptedAt fails the test unless a node decrypts the EDEKs that were made before the failover.
func adoptedAt(t *testing.T, what string, n *kmsclient.Provider, sealed map[string][]claviger.EDEK,
	opened map[string]secret.Bytes) {
	t.Helper()
	ctx := t.Context()
	if m, err := n.Metadata(ctx, "new"); err != nil || m[0] == nil || m[0].Versions != 1 {
		t.Errorf("%s, the lost key after the adoption: %+v, %v", what, m, err)
	}
	for key, e := range sealed {
		dek, err := n.Unwrap(ctx, key, "", e)
		if err != nil || !bytes.Equal(dek[0], opened[key]) {
			t.Errorf("%s, a DEK of %s after the adoption: %v", what, e[0].Version, err)
		}
	}
	if e, err := n.Generate(ctx, "rolled", 1); err != nil || e[0].Version != "rolled@1" {
		t.Errorf("%s, a new EDEK after the adoption: %+v, %v", what, e, err)
	}
}

// waitUntilRecorded waits until a node has recorded, beside the keystore file, that it has seen the changes of keys.
func waitUntilRecorded(t *testing.T, s *site, keys ...string) {
	t.Helper()
	file := filepath.Join(filepath.Dir(strings.TrimPrefix(s.hsm.URI, "cloudera.hsmkp://file@")), "claviger.seen.json")
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(file)
		recorded := err == nil
		for _, key := range keys {
			recorded = recorded && strings.Contains(string(text), `"key":"`+key+`"`)
		}
		if recorded {
			return
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("changes that the nodes have seen: %s, %v", text, err)
		}
	}
}
