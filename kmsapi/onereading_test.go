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

// keystoreServer is a server on a real keystore. Only alice may read keys.
type keystoreServer struct {
	t      *testing.T
	addr   string
	client *http.Client
}

func newKeystoreServer(t *testing.T) *keystoreServer {
	t.Helper()
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
	t.Cleanup(client.CloseIdleConnections)
	return &keystoreServer{t, addr, client}
}

func (l *keystoreServer) do(method, path, user, body string) (int, []byte) {
	t := l.t
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.addr+"/kms/v1/"+path+"user.name="+user,
		strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, nil
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := l.client.Do(req)
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

// TestNoMaterialWhileKeysAreMade: mallory, a user without rights, requests the current version of
// a key on many connections while alice creates it. Each answer says that the key does not exist,
// or refuses; none has material.
func TestNoMaterialWhileKeysAreMade(t *testing.T) {
	l := newKeystoreServer(t)
	// With so many requests, some run at the moment of a creation. If the server checked the rules
	// before it, and read the key after it, mallory would see about one key in three.
	const keys, polls = 14, 48
	var mu sync.Mutex
	now := "key0"
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range polls {
		path := "key/%s/_currentversion?"
		if i == 0 {
			path = "key/%s/_versions?"
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
				status, body := l.do(http.MethodGet, fmt.Sprintf(path, name), "mallory", "")
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
		if status, text := l.do(http.MethodPost, "keys?", "alice", string(body)); status != http.StatusCreated {
			t.Errorf("creation of %s: %d %s", name, status, text)
		}
	}
	if status, text := l.do(http.MethodGet, "key/key0/_currentversion?", "alice", ""); status != http.StatusOK ||
		!strings.Contains(string(text), "material") {
		t.Errorf("alice is not shown her key: %d %s", status, text)
	}
	close(stop)
	wg.Wait()
}
