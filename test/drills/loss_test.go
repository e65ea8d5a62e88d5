package drills

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"claviger"
	"claviger/provider/kmsclient"
)

// TestHSMRestoredFromItsCopy plays the loss of an HSM: docs/hsm/failing.md until the HSM is back, and
// docs/hsm/binding.md for the keys that are younger than its copy.
func TestHSMRestoredFromItsCopy(t *testing.T) {
	n, tok, _ := hsmNode(t, nil)
	n.start()
	c := client(t, kmsclient.Options{}, n.uriOf())
	l := use(t, c, "zone")
	old := seal(t, c, "zone")
	tokens, saved := filepath.Join(filepath.Dir(tok.PINFile), "tokens"), filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(saved, os.DirFS(tokens)); err != nil {
		t.Fatal(err)
	}
	l.step("the HSM was copied by its own tools")
	if err := create(t.Context(), c, "late"); err != nil {
		t.Fatal(err)
	}
	late := seal(t, c, "late")
	l.step("key late is younger than the copy")
	l.stop()

	if err := os.RemoveAll(tokens); err != nil {
		t.Fatal(err)
	}
	n.isReady("decrypt", http.StatusServiceUnavailable)
	if err := old.opens(t.Context(), c); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("without the HSM: %v", err)
	}
	t.Log("the HSM is lost: requests get 503, /readyz?for=decrypt is red")

	n.end()
	if err := os.CopyFS(tokens, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.isReady("decrypt", http.StatusOK)
	n.isReady("write", http.StatusServiceUnavailable)
	c = client(t, kmsclient.Options{}, n.uriOf())
	if err := old.opens(t.Context(), c); err != nil {
		t.Errorf("a key of the copy: %v", err)
	}
	if err := late.opens(t.Context(), c); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a key that is younger than the copy: %v", err)
	}
	t.Log("the HSM was restored from its copy: files of zone open, files of late get 503, /readyz?for=write is red")
	if out := command(t, 3, "metastore", "verify", "--conf", n.dir); !strings.Contains(out, "MISSING") ||
		!strings.Contains(out, "late@0") {
		t.Errorf("metastore verify does not name late@0: %s", out)
	}

	n.end()
	out := command(t, 3, "hsm", "adopt", "--conf", n.dir, "--rebind")
	digest := regexp.MustCompile(`--confirm ([0-9a-f]+)`).FindStringSubmatch(out)
	if digest == nil || !strings.Contains(out, "LOST") {
		t.Fatalf("hsm adopt --rebind: %s", out)
	}
	command(t, 0, "hsm", "adopt", "--conf", n.dir, "--rebind", "--confirm", digest[1])
	n.start()
	n.isReady("write", http.StatusOK)
	c = client(t, kmsclient.Options{}, n.uriOf())
	l = use(t, c, "new")
	l.step("late was given up, by two persons: nothing is red")
	if err := old.opens(t.Context(), c); err != nil {
		t.Errorf("a key of the copy, at the end: %v", err)
	}
}
