package nodes

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

// behindProxy returns a site that reaches its metastore through a proxy.
func (s *site) behindProxy(t *testing.T, more hadoop.Conf) (*site, *pgtest.Proxy) {
	t.Helper()
	u, err := url.Parse(s.store)
	if err != nil {
		t.Fatal(err)
	}
	proxy := pgtest.NewProxy(t, u.Host)
	u.Host = proxy.Addr
	other := &site{conf: t.TempDir(), hsm: s.hsm, store: u.String()}
	other.write(t, more)
	return other, proxy
}

// TestDeletedKeyIsRefusedByOtherNodes: one node deletes a key. Another node whose notifications hang refuses the key
// within seconds. A node that is cut off from PostgreSQL refuses the key when its lease ends, and uses the keys that it
// knows until then.
func TestDeletedKeyIsRefusedByOtherNodes(t *testing.T) {
	ctx := t.Context()
	const lease = 5 * time.Second
	// Without soft deletion the key is destroyed in the HSM, and each node refuses it at once.
	soft := hadoop.Conf{"claviger.delete.soft": "true"}
	s := newSite(t, soft)
	apart, proxy := s.behindProxy(t, hadoop.Conf{"claviger.metastore.lease": "5s"}.With(soft))
	node2 := apart.start(t)
	here, there := s.start(t).client(t), node2.client(t)
	edeks := map[string][]claviger.EDEK{}
	for _, key := range []string{"listen", "cut", "stays"} {
		if _, err := here.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		e, err := here.Generate(ctx, key, 1)
		if err != nil {
			t.Fatal(err)
		}
		edeks[key] = e
		if err := opens(t, there, key, e); err != nil {
			t.Fatal(err)
		}
	}
	proxy.HangListening()
	if err := here.Delete(ctx, "listen"); err != nil {
		t.Fatal(err)
	}
	const bound = 10 * time.Second // without notifications, a node reads the changes often enough for this
	wantRefusedWithin(t, there, "listen", edeks["listen"], bound)

	cut := time.Now()
	proxy.Hang()
	if err := here.Delete(ctx, "cut"); err != nil {
		t.Fatal(err)
	}
	served := opens(t, there, "stays", edeks["stays"])
	ready, why := node2.ready(t, "decrypt")
	switch {
	case time.Since(cut) > lease/2: // half of the lease may have passed when the node was cut off
		t.Log("the machine was too busy: the test did not check which keys are served within the lease")
	case served != nil:
		t.Errorf("within its lease a node that is cut off serves nothing: %v", served)
	case !ready:
		t.Errorf("within its lease a node that is cut off is not ready for decrypts: %s", why)
	}
	wantRefusedWithin(t, there, "cut", edeks["cut"], lease+2*time.Second)
	for _, what := range []string{"generate", "write"} {
		if ready, _ := node2.ready(t, what); ready {
			t.Errorf("a node that is cut off is ready to %s", what)
		}
	}
	if ready, _ := node2.ready(t, "decrypt"); ready {
		t.Error("after its lease a node that is cut off is ready for decrypts")
	}

	proxy.Pass()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := opens(t, there, "stays", edeks["stays"])
		if err == nil {
			break
		}
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("the node does not come back: %v", err)
		}
	}
	if err := opens(t, there, "cut", edeks["cut"]); err == nil {
		t.Error("a deleted key is open again")
	}
	for _, what := range []string{"decrypt", "generate", "write"} {
		begun := time.Now()
		ready, why := node2.ready(t, what)
		for ; !ready && time.Since(begun) < 30*time.Second; ready, why = node2.ready(t, what) {
			time.Sleep(200 * time.Millisecond)
		}
		if !ready {
			t.Errorf("a node that reaches the metastore again is not ready to %s: %s", what, why)
		}
	}
}

// wantRefusedWithin is called right after the deletion of a key. It fails the test unless a node refuses to open EDEKs
// of the key within a time.
func wantRefusedWithin(t *testing.T, at *kmsclient.Provider, key string, e []claviger.EDEK, bound time.Duration) {
	t.Helper()
	deleted := time.Now()
	for time.Since(deleted) < 4*bound {
		asked := time.Now()
		if err := opens(t, at, key, e); err != nil {
			t.Logf("%s is refused %v after its deletion: %v", key, time.Since(deleted).Round(time.Millisecond), err)
			return
		}
		if late := asked.Sub(deleted); late > bound {
			t.Errorf("%s is opened %v after its deletion, the bound is %v", key, late, bound)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// opens returns nil if a node decrypts EDEKs of a key.
func opens(t *testing.T, at *kmsclient.Provider, key string, e []claviger.EDEK) error {
	t.Helper()
	deks, err := at.Unwrap(t.Context(), key, "", e)
	for _, d := range deks {
		d.Wipe()
	}
	return err
}

// ready returns whether a node is ready for a purpose, and the text of the answer.
func (n *node) ready(t *testing.T, what string) (bool, string) {
	t.Helper()
	at := strings.TrimSuffix(n.url, "/kms") + "/readyz?for=" + what
	resp, err := http.Get(at) //nolint:noctx,gosec // of a node of this test
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode == http.StatusOK, string(body)
}
