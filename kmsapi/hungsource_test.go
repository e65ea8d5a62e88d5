package kmsapi_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/provider/memory"
)

// hung is a source that does not answer.
type hung struct {
	*memory.Provider
	requests chan string // the key of each request
}

func (h hung) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	select {
	case h.requests <- names[0]:
	default:
	}
	<-ctx.Done()
	return nil, claviger.E("hung", claviger.Unavailable, names[0], context.Cause(ctx))
}

// SourceMetadata and RunKey make it a source to migrate from.
func (h hung) SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	_, err := h.Metadata(ctx, key)
	return nil, err
}

func (h hung) RunKey(context.Context, string) ([]string, error) { return nil, nil }

func makeKeys(t *testing.T, p provider.Writer, names ...string) {
	t.Helper()
	for _, name := range names {
		spec := provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
		if _, err := p.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
}

// servedMeanwhile checks that requests that need no source are served.
func servedMeanwhile(t *testing.T, addr, one, batch string) {
	t.Helper()
	for _, c := range []struct {
		method, target, body string
		status               int
	}{
		{"POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", one, 200},
		{"POST", "/kms/v1/key/k/_reencryptbatch", batch, 200},
		{"POST", "/kms/v1/key/k/_invalidatecache", "", 200},
		// For a user without the right, no request is sent to the source.
		{"POST", "/kms/v1/trustee/key/yy?trusteeOp=migrate&user.name=stranger", "", 403},
	} {
		if a := send(t, addr, c.method, c.target, c.body); a.status != c.status {
			t.Errorf("%s %s while the source hangs: %d %s", c.method, c.target, a.status, a.body)
		}
	}
}

// TestHungSourceHoldsNoSlots: each class has one slot. Requests that wait for a source that does
// not answer do not block requests that need no source.
func TestHungSourceHoldsNoSlots(t *testing.T) {
	primary := memory.New(memory.Config{SequentialIDs: true})
	t.Cleanup(func() { _ = primary.Close() })
	source := hung{memory.New(memory.Config{URI: "kms://http@old:9600/kms"}), make(chan string, 100)}
	t.Cleanup(func() { _ = source.Close() })
	policy, warnings := authz.Parse(append([]authz.Property{{Name: "whitelist.key.acl.MIGRATE", Value: "mover"}},
		openRules...))
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	makeKeys(t, primary, "k", "k2", "k3", "k4")
	addr := start(t, stack{
		Primary: primary, KeyAuthorization: true, Policy: policy, Migrator: source,
		Sources: []keyring.Source{{Provider: source, Reencryption: true}}, SourceTimeout: 3 * time.Second,
		Reencryption: true,
		Admission: kmsapi.Admission{Decrypts: 1, Generates: 1, Batches: 1, Management: 1,
			Wait: 200 * time.Millisecond},
	})
	e := oneEDEK(t, addr)
	one := fmt.Sprintf(`{"name":"k","iv":"%s","material":"%s"}`, e.IV, e.Inner.Material)
	batchOf := func(version string) string {
		return fmt.Sprintf(`[{"versionName":"%s","iv":"%s","encryptedKeyVersion":{"versionName":"EEK",`+
			`"material":"%s"}}]`, version, e.IV, e.Inner.Material)
	}
	var requests sync.WaitGroup
	waits := func(what, method, target, body string) {
		requests.Go(func() {
			begun := time.Now()
			a := send(t, addr, method, target, body)
			// After this answer clients try the next node. Only the log has the reason.
			class, message := a.thrown(t)
			if a.status != http.StatusServiceUnavailable || class != "org.apache.hadoop.ipc.StandbyException" ||
				a.header("Retry-After") == "" ||
				!strings.Contains(message, "source") || strings.Contains(message, "old:9600") ||
				strings.Contains(message, "keyring") {
				t.Errorf("%s that needs a source that hangs: %d %s %q", what, a.status, class, message)
			}
			if took := time.Since(begun); took < 500*time.Millisecond {
				t.Errorf("%s did not wait for the source: %d %s after %v", what, a.status, a.body, took)
			}
		})
		select {
		case <-source.requests:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s did not reach the source", what)
		}
	}
	waits("a decrypt", "POST", "/kms/v1/keyversion/k@7/_eek?eek_op=decrypt", one)
	// Each has another name: requests for one name share a request to the source.
	waits("a re-encryption", "POST", "/kms/v1/keyversion/k3@7/_eek?eek_op=reencrypt", strings.Replace(one, `"k"`,
		`"k3"`, 1))
	waits("a version", "GET", "/kms/v1/keyversion/k4@7", "")
	waits("a batch", "POST", "/kms/v1/key/k2/_reencryptbatch", batchOf("k2@7"))
	waits("a creation", "POST", "/kms/v1/keys", `{"name":"fresh","length":128}`)
	waits("a migration", "POST", "/kms/v1/trustee/key/zz?trusteeOp=migrate&user.name=mover", "")
	begun := time.Now()
	servedMeanwhile(t, addr, one, batchOf("k@0"))
	if took := time.Since(begun); took > 2900*time.Millisecond {
		t.Logf("the machine was too busy (%v) to show whether all of this was served meanwhile", took)
	}
	requests.Wait()
	for len(source.requests) > 0 {
		if name := <-source.requests; name == "yy" {
			t.Error("the source got a request of a user without the right")
		}
	}
	// The answer names the requested key.
	a := send(t, addr, "POST", "/kms/v1/keys", `{"name":"fresh2","length":128}`)
	if class, message := a.thrown(t); a.status != http.StatusServiceUnavailable ||
		!strings.Contains(class, "StandbyException") ||
		strings.Contains(message, "old:9600") || !strings.Contains(message, "fresh2") {
		t.Errorf("a creation while the source hangs: %d %s %s", a.status, class, message)
	}
}
