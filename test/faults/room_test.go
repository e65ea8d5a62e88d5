package faults

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTokenFull: the disk of SoftHSM's tokens is full. The server refuses to create keys, is not ready for changes
// after the first refusal, and still uses the existing keys. When there is room again, it is ready, without a
// creation.
func TestTokenFull(t *testing.T) {
	s := newSite(t)
	tokens := s.path("token/tokens")
	moved := s.path("moved")
	if err := os.Rename(tokens, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", tokens, "tmpfs", 0, "size=512k"); err != nil {
		t.Skipf("no file system of a small size can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(tokens, syscall.MNT_DETACH) })
	if err := os.CopyFS(tokens, os.DirFS(moved)); err != nil {
		t.Fatal(err)
	}
	k := s.serve()
	s.create(k, "k1")
	edek := generated(t, k, "k1")
	if status, text := ready(t, k, "write"); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	filler := filepath.Join(tokens, "filler")
	f, err := os.Create(filler) //nolint:gosec // of this test
	if err != nil {
		t.Fatal(err)
	}
	for err = error(nil); err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	_ = f.Close()
	for range 2 {
		if answer := send(t, k, http.MethodPost, "keys", []byte(`{"name":"k2"}`)); !strings.HasPrefix(answer, "503") {
			t.Errorf("a key on a full disk: %s", answer)
		}
	}
	status, text := ready(t, k, "write")
	if status != http.StatusServiceUnavailable || !strings.Contains(text, "refused to make an object") {
		t.Errorf("%d: %s", status, text)
	}
	for _, purpose := range []string{"decrypt", "generate"} {
		if status, text := ready(t, k, purpose); status != http.StatusOK {
			t.Errorf("%s: %d %s", purpose, status, text)
		}
	}
	if answer := send(t, k, http.MethodPost, edek.path, edek.body); !strings.HasPrefix(answer, "200") {
		t.Errorf("an existing key: %s", answer)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if status, text = ready(t, k, "write"); status == http.StatusOK {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the server does not become ready: %s", text)
		}
	}
	s.create(k, "k2")
}
