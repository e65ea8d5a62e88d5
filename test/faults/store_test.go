package faults

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// ready returns the status and the text of /readyz for a purpose.
func ready(t *testing.T, k *hadoop.KMS, purpose string) (status int, text string) {
	t.Helper()
	//nolint:noctx,gosec // of a server of this test
	resp, err := http.Get(strings.TrimSuffix(k.URL, "/kms") + "/readyz?for=" + purpose)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

// TestStoreWrittenOver: somebody copies an old copy of the metastore over the file of a running server. The server
// notices it within seconds, refuses changes, and decrypts EDEKs of versions in memory. When the server has ended,
// the copy is unchanged. The next start names the key that the copy lacks.
func TestStoreWrittenOver(t *testing.T) {
	s := newSite(t)
	k := s.serve()
	s.create(k, "k1")
	if out, status := s.run("metastore", "backup", "--conf", s.conf, "--out", s.path("copy.db")); status != 0 {
		t.Fatal(out)
	}
	s.create(k, "k2")
	edek := generated(t, k, "k2")
	if answer := send(t, k, http.MethodPost, edek.path, edek.body); !strings.HasPrefix(answer, "200") {
		t.Fatal(answer)
	}
	awaitCheckpoint(t, s.path("conf/claviger.db-wal"))
	copied, err := os.ReadFile(s.path("copy.db"))
	if err == nil {
		err = os.WriteFile(s.path("conf/claviger.db"), copied, 0o600) // like cp
	}
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		status, text := ready(t, k, "write")
		if status == http.StatusServiceUnavailable &&
			strings.Contains(text, "was written over in place by another program") {
			break
		}
		if time.Since(began) > 5*time.Second {
			t.Fatalf("the server does not notice it: %s", text)
		}
	}
	for what, answer := range map[string]string{
		"create": send(t, k, http.MethodPost, "keys", []byte(`{"name":"k3"}`)),
		"roll":   send(t, k, http.MethodPost, "key/k1", []byte(`{}`)),
		"delete": send(t, k, http.MethodDelete, "key/k1", nil),
	} {
		if !strings.HasPrefix(answer, "503") || !strings.Contains(answer, "written over") {
			t.Errorf("%s: %s", what, answer)
		}
	}
	shown(t, s.plain(send(t, k, http.MethodPost, "keys", []byte(`{"name":"k3"}`))))
	if answer := send(t, k, http.MethodPost, edek.path, edek.body); !strings.HasPrefix(answer, "200") {
		t.Errorf("a version in memory: %s", answer)
	}
	if code := k.Stop(); code != 0 {
		t.Logf("the server ended with %d", code)
	}
	if now, err := os.ReadFile(s.path("conf/claviger.db")); err != nil || !bytes.Equal(now, copied) {
		t.Errorf("the copy was changed (%v)", err)
	}
	k = s.serve()
	if names := send(t, k, http.MethodGet, "keys/names", nil); !strings.Contains(names, `"k1"`) ||
		strings.Contains(names, `"k2"`) {
		t.Error(names)
	}
	if answer := send(t, k, http.MethodPost, edek.path, edek.body); !strings.HasPrefix(answer, "503") {
		t.Errorf("a version that the copy lacks: %s", answer)
	}
}

// awaitCheckpoint waits until the server has moved its last change from the -wal into the metastore's file. Before
// that, a checkpoint could write to the file while the test writes to it: then the file is damaged, and no server can
// use it.
func awaitCheckpoint(t *testing.T, wal string) {
	t.Helper()
	// The server stores the state of the metastore's file just after it has emptied the -wal. So the -wal must be found
	// empty several times in a row.
	empty := 0
	for began := time.Now(); empty < 10; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the server does not empty its -wal")
		}
		empty++
		if info, err := os.Stat(wal); err != nil || info.Size() > 0 {
			empty = 0
		}
	}
}

// decrypt is a request that decrypts an EDEK.
type decrypt struct {
	path string
	body []byte
}

// generated generates an EDEK.
func generated(t *testing.T, k *hadoop.KMS, key string) decrypt {
	t.Helper()
	_, text, _ := strings.Cut(send(t, k, http.MethodGet, "key/"+key+"/_eek?eek_op=generate&num_keys=1", nil), "\n")
	var list []struct {
		VersionName string `json:"versionName"`
		IV          string `json:"iv"`
		Encrypted   struct {
			Material string `json:"material"`
		} `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
		t.Fatalf("%v in %s", err, text)
	}
	body, err := json.Marshal(map[string]string{"name": key, "iv": list[0].IV, "material": list[0].Encrypted.Material})
	if err != nil {
		t.Fatal(err)
	}
	return decrypt{"keyversion/" + list[0].VersionName + "/_eek?eek_op=decrypt", body}
}

// TestVersionLost: the token has lost a key version. The server answers 503 for it, and is not ready for changes,
// which alerts an operator. It serves other keys.
func TestVersionLost(t *testing.T) {
	s := newSite(t)
	k := s.serve()
	s.create(k, "k1")
	objects := func() []string {
		list, err := filepath.Glob(s.path("token/tokens/*/*.object"))
		if err != nil || len(list) == 0 {
			t.Fatalf("%q, %v", list, err)
		}
		return list
	}
	before := objects()
	s.create(k, "k2")
	for _, path := range objects() {
		if !slices.Contains(before, path) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.create(k, "k3")
	edek := generated(t, k, "k1")
	answer := send(t, k, http.MethodGet, "key/k2/_eek?eek_op=generate&num_keys=1", nil)
	if !strings.HasPrefix(answer, "503") {
		t.Errorf("an EDEK of a lost version: %s", answer)
	}
	for purpose, want := range map[string]int{"write": 503, "generate": 200, "decrypt": 200} {
		if status, text := ready(t, k, purpose); status != want || want == 503 && !strings.Contains(text, "k2@0") {
			t.Errorf("%s: %d, want %d: %s", purpose, status, want, text)
		}
	}
	if answer := send(t, k, http.MethodPost, edek.path, edek.body); !strings.HasPrefix(answer, "200") {
		t.Errorf("another key: %s", answer)
	}
}
