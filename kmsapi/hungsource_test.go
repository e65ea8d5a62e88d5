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

// hung is a source that takes questions and answers none.
type hung struct {
	*memory.Provider
	asked chan string
}

func (h hung) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	select {
	case h.asked <- names[0]:
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

// servedMeanwhile wants requests that need no source to be answered.
func servedMeanwhile(t *testing.T, addr, one, batch string) {
	t.Helper()
	for _, c := range []struct {
		method, target, body string
		status               int
	}{
		{"POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", one, 200},
		{"POST", "/kms/v1/key/k/_reencryptbatch", batch, 200},
		{"POST", "/kms/v1/key/k/_invalidatecache", "", 200},
		// Without the right the source is not asked at all.
		{"POST", "/kms/v1/trustee/key/yy?trusteeOp=migrate&user.name=stranger", "", 403},
	} {
		if a := ask(t, addr, c.method, c.target, c.body); a.status != c.status {
			t.Errorf("%s %s while the source hangs: %d %s", c.method, c.target, a.status, a.body)
		}
	}
}

// TestHungSourceHoldsNoTurns: with one place in each class, requests that wait for a
// source that hangs keep none of those away that need no source.
func TestHungSourceHoldsNoTurns(t *testing.T) {
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
	var storm sync.WaitGroup
	waits := func(what, method, target, body string) {
		storm.Go(func() {
			begun := time.Now()
			a := ask(t, addr, method, target, body)
			// At which clients go to the next node. The reason is in the log alone.
			class, message := a.thrown(t)
			if a.status != http.StatusServiceUnavailable || class != "org.apache.hadoop.ipc.StandbyException" ||
				a.header("Retry-After") == "" ||
				!strings.Contains(message, "source") || strings.Contains(message, "old:9600") ||
				strings.Contains(message, "keyring") {
				t.Errorf("%s of a source that hangs: %d %s %q", what, a.status, class, message)
			}
			if took := time.Since(begun); took < 500*time.Millisecond {
				t.Errorf("%s did not wait for the source: %d %s after %v", what, a.status, a.body, took)
			}
		})
		select {
		case <-source.asked:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s has not come to the source", what)
		}
	}
	waits("a decrypt", "POST", "/kms/v1/keyversion/k@7/_eek?eek_op=decrypt", one)
	// Another name for each: those who ask for one together ask once.
	waits("a re-encryption", "POST", "/kms/v1/keyversion/k3@7/_eek?eek_op=reencrypt", strings.Replace(one, `"k"`,
		`"k3"`, 1))
	waits("a version", "GET", "/kms/v1/keyversion/k4@7", "")
	waits("a batch", "POST", "/kms/v1/key/k2/_reencryptbatch", batchOf("k2@7"))
	waits("a creation", "POST", "/kms/v1/keys", `{"name":"fresh","length":128}`)
	waits("a migration", "POST", "/kms/v1/trustee/key/zz?trusteeOp=migrate&user.name=mover", "")
	begun := time.Now()
	servedMeanwhile(t, addr, one, batchOf("k@0"))
	if took := time.Since(begun); took > 2900*time.Millisecond {
		t.Logf("the machine was too busy (%v) to tell whether all of this was served meanwhile", took)
	}
	storm.Wait()
	for len(source.asked) > 0 {
		if name := <-source.asked; name == "yy" {
			t.Error("the source was asked for a user without the right")
		}
	}
	// The key that was wanted is named.
	a := ask(t, addr, "POST", "/kms/v1/keys", `{"name":"fresh2","length":128}`)
	if class, message := a.thrown(t); a.status != http.StatusServiceUnavailable ||
		!strings.Contains(class, "StandbyException") ||
		strings.Contains(message, "old:9600") || !strings.Contains(message, "fresh2") {
		t.Errorf("a creation while the source hangs: %d %s %s", a.status, class, message)
	}
}
