package kmsapi_test

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"claviger"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/provider/memory"
)

// callerRecorder is a provider that records the caller of each lookup.
type callerRecorder struct {
	*memory.Provider
	mu   sync.Mutex
	from map[string]string // the caller, by the name of the key or version
}

func (n *callerRecorder) record(ctx context.Context, about string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.from[about] = provider.CallerOf(ctx)
}

func (n *callerRecorder) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	n.record(ctx, names[0])
	return n.Provider.Metadata(ctx, names...)
}

func (n *callerRecorder) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	n.record(ctx, key)
	return n.Provider.Current(ctx, key)
}

func (n *callerRecorder) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	n.record(ctx, version)
	return n.Provider.Version(ctx, version)
}

// TestProvidersKnowTheCaller: a provider gets the name of the user whose request it serves, so
// that it can limit the work for one user.
func TestProvidersKnowTheCaller(t *testing.T) {
	primary := &callerRecorder{memory.New(memory.Config{}), sync.Mutex{}, map[string]string{}}
	t.Cleanup(func() { _ = primary.Close() })
	addr := start(t, stack{Primary: primary, Limits: kmsapi.Limits{MaxKeys: 10, MaxBatch: 10, MaxBody: 1 << 16}})
	for about, path := range map[string]string{
		"a": "key/a/_metadata", "b": "key/b/_currentversion", "c": "key/c/_versions", "d@1": "keyversion/d@1",
		"e": "keys/metadata?key=e", "f": "key/f/_eek?eek_op=generate&num_keys=1",
	} {
		sep := "?"
		if about == "e" || about == "f" {
			sep = "&"
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
			"http://"+addr+"/kms/v1/"+path+sep+"user.name=user-"+about[:1], nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		primary.mu.Lock()
		from, ok := primary.from[about]
		primary.mu.Unlock()
		if !ok || from != "user-"+about[:1] {
			t.Errorf("%s: looked up %t, for %q", path, ok, from)
		}
	}
}
