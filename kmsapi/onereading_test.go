package kmsapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/authz"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/provider/jceks"
)

// TestNoMaterialWhileKeysAreMade: a user without rights requests the current version of a key on many connections while
// alice creates it, on a real keystore. Each answer says that there is no such key, or refuses; none holds material.
func TestNoMaterialWhileKeysAreMade(t *testing.T) {
	primary, err := jceks.Open(t.Context(), "jceks://file@"+filepath.Join(t.TempDir(), "kms.keystore"), provider.Env{
		Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = primary.Close() })
	policy, warnings := authz.Parse([]authz.Property{{Name: "default.key.acl.MANAGEMENT", Value: "alice"},
		{Name: "default.key.acl.READ", Value: "alice"}})
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	addr := start(t, stack{Primary: primary, Policy: policy, KeyAuthorization: true,
		Limits: kmsapi.Limits{MaxKeys: 10, MaxBatch: 10, MaxBody: 1 << 16}})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	do := func(method, path, user, body string) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+"/kms/v1/"+path+"user.name="+user,
			strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return 0, nil
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			if t.Context().Err() == nil {
				t.Error(err)
			}
			return 0, nil
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, text
	}
	// So many that some are always between two readings: where the rules are asked of one and
	// the answer is taken from another, mallory is shown one key in three.
	const keys, polls = 14, 48
	var mu sync.Mutex
	now := "key0"
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range polls {
		ask := "key/%s/_currentversion?"
		if i == 0 {
			ask = "key/%s/_versions?"
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				name := now
				mu.Unlock()
				status, body := do(http.MethodGet, fmt.Sprintf(ask, name), "mallory", "")
				if status == http.StatusOK && strings.Contains(string(body), "material") {
					t.Errorf("mallory was shown a version of %s", name)
					return
				}
			}
		})
	}
	for i := 0; i < keys && !t.Failed(); i++ {
		name := fmt.Sprintf("key%d", i)
		mu.Lock()
		now = name
		mu.Unlock()
		body, _ := json.Marshal(map[string]any{"name": name, "length": 128})
		if status, text := do(http.MethodPost, "keys?", "alice", string(body)); status != http.StatusCreated {
			t.Errorf("creation of %s: %d %s", name, status, text)
		}
	}
	if status, text := do(http.MethodGet, "key/key0/_currentversion?", "alice", ""); status != http.StatusOK ||
		!strings.Contains(string(text), "material") {
		t.Errorf("alice is not shown her key: %d %s", status, text)
	}
	close(stop)
	wg.Wait()
}
