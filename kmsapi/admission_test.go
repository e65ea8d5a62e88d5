package kmsapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/kmsapi"
	"claviger/provider/memory"
)

// slow is a provider whose large calls hang until release is closed.
type slow struct {
	*memory.Provider
	hanging chan struct{} // receives one value for each call that hangs
	release chan struct{}
}

func (s *slow) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if len(blocks) >= 100*16 {
		select {
		case s.hanging <- struct{}{}:
			<-s.release
		case <-s.release:
		}
	}
	return s.Provider.EncryptBlocks(ctx, version, blocks)
}

func (s *slow) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return s.EncryptBlocks(ctx, v.Name, blocks)
}

// madeEDEK is an EDEK in an answer.
type madeEDEK struct {
	Version string `json:"versionName"`
	IV      string `json:"iv"`
	Inner   struct {
		Material string `json:"material"`
	} `json:"encryptedKeyVersion"`
}

// oneEDEK generates an EDEK of key k.
func oneEDEK(t *testing.T, addr string) madeEDEK {
	t.Helper()
	a := send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "")
	var edeks []madeEDEK
	if err := json.Unmarshal(a.body, &edeks); err != nil || len(edeks) != 1 {
		t.Fatalf("%v: %s", err, a.body)
	}
	return edeks[0]
}

const (
	generate  = "/kms/v1/key/k/_eek?eek_op=generate&num_keys=300"
	reencrypt = "/kms/v1/key/k/_reencryptbatch"
	decrypt   = "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt"
)

// wantFull checks that requests of the full classes are refused, and those of other classes are
// served. one is the body of a decrypt, batch that of a re-encryption.
func wantFull(t *testing.T, addr, one, batch string) {
	t.Helper()
	for _, c := range []struct{ method, target, body, what string }{
		{"GET", generate, "", "generate"},
		{"GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1000", "", "generate"}, // two units
		{"POST", reencrypt, batch, "re-encryption"},
	} {
		a := send(t, addr, c.method, c.target, c.body)
		class, message := a.thrown(t)
		if a.status != 503 || class != "org.apache.hadoop.ipc.StandbyException" || a.header("Retry-After") == "" ||
			message != "this node is serving as many "+c.what+" requests as it may; try another node, or try "+
				"again later" {
			t.Errorf("%s beyond the limit: %d %s %q", c.what, a.status, class, message)
		}
	}
	for _, c := range []struct{ method, target, body string }{
		{"POST", decrypt, one},
		{"POST", "/kms/v1/keyversion/k@0/_eek?eek_op=reencrypt", one},
		{"POST", "/kms/v1/key/k/_invalidatecache", ""},
		{"GET", "/kms/v1/key/k/_metadata", ""},
		{"GET", "/kms/v1/keys/names", ""},
	} {
		if a := send(t, addr, c.method, c.target, c.body); a.status != 200 {
			t.Errorf("%s %s while other classes are full: %d %s", c.method, c.target, a.status, a.body)
		}
	}
}

// TestAdmission: while all slots of generates and of batches are in use, further ones are
// refused, so that clients try another node. Decrypts, single re-encryptions, management and
// reads are served. Later the slots are free again.
func TestAdmission(t *testing.T) {
	s := &slow{Provider: memory.New(memory.Config{SequentialIDs: true}), hanging: make(chan struct{}),
		release: make(chan struct{})}
	tr := &trail{}
	var mu sync.Mutex
	timedOut := map[string]int{}
	waited := func(class string, took time.Duration, granted bool) {
		mu.Lock()
		defer mu.Unlock()
		if !granted && took >= 10*time.Millisecond {
			timedOut[class]++
		}
	}
	addr := withKey(t, stack{Primary: s, Trail: tr, Waited: waited, Admission: kmsapi.Admission{Decrypts: 4,
		Generates: 2, Batches: 1, Management: 1, Wait: 20 * time.Millisecond}})
	// The first generate fills the queue, from which small generates are served.
	e := oneEDEK(t, addr)
	one := fmt.Sprintf(`{"name":"k","iv":"%s","material":"%s"}`, e.IV, e.Inner.Material)
	item := fmt.Sprintf(`{"versionName":"%s","iv":"%s","encryptedKeyVersion":{"versionName":"EEK","material":"%s"}}`,
		e.Version, e.IV, e.Inner.Material)
	if a := send(t, addr, "POST", "/kms/v1/key/k", "{}"); a.status != 200 { // a roll, so that a batch has work to do
		t.Fatal(a.status)
	}
	// Other requests wait for the first generate of the new version, so it must not hang.
	if a := send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", ""); a.status != 200 {
		t.Fatal(a.status)
	}
	batch := "[" + strings.TrimSuffix(strings.Repeat(item+",", 200), ",") + "]"

	var requests sync.WaitGroup
	for _, user := range []string{"bob", "carol"} { // one user could not get both slots
		requests.Go(func() {
			if a := send(t, addr, "GET", generate+"&user.name="+user, ""); a.status != 200 {
				t.Errorf("an admitted generate: %d %s", a.status, a.body)
			}
		})
		<-s.hanging
	}
	requests.Go(func() {
		if a := send(t, addr, "POST", reencrypt+"?user.name=bob", batch); a.status != 200 {
			t.Errorf("an admitted batch: %d %s", a.status, a.body)
		}
	})
	<-s.hanging

	for range 3 {
		wantFull(t, addr, one, batch)
	}
	close(s.release)
	requests.Wait()
	for range 3 {
		if a := send(t, addr, "GET", generate, ""); a.status != 200 {
			t.Errorf("afterwards: %d %s", a.status, a.body)
		}
		if a := send(t, addr, "POST", reencrypt, batch); a.status != 200 {
			t.Errorf("afterwards: %d %s", a.status, a.body)
		}
	}
	refused := 0
	for _, e := range tr.all() {
		if e.Status == "ERROR" {
			refused++
		}
	}
	if refused != 9 {
		t.Errorf("%d ERROR lines in the audit log, want one for each of 9 refusals", refused)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(timedOut) != 2 || timedOut["generate"] != 6 || timedOut["re-encryption"] != 3 {
		t.Errorf("Waited was called for %v", timedOut)
	}
}

// slowNames is a provider whose lookups of many names hang until release is closed.
type slowNames struct {
	*memory.Provider
	hanging chan struct{}
	release chan struct{}
}

func (s *slowNames) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	if len(names) > 16 {
		select {
		case s.hanging <- struct{}{}:
			<-s.release
		case <-s.release:
		}
	}
	return s.Provider.Metadata(ctx, names...)
}

// TestManyNamesTakeManySlots: a request for the metadata of many keys takes several slots,
// because each key may be a request to a Key Trustee Server. So one user with a few such requests
// does not take all slots.
func TestManyNamesTakeManySlots(t *testing.T) {
	s := &slowNames{Provider: memory.New(memory.Config{SequentialIDs: true}), hanging: make(chan struct{}),
		release: make(chan struct{})}
	addr := withKey(t, stack{Primary: s, Admission: kmsapi.Admission{Decrypts: 4, Generates: 4, Batches: 4,
		Management: 4, Reads: 4, Wait: 20 * time.Millisecond}})
	many := "/kms/v1/keys/metadata?"
	for i := range 32 { // two slots
		many += fmt.Sprintf("key=k%d&", i)
	}
	var first sync.WaitGroup
	first.Go(func() {
		if a := send(t, addr, "GET", many+"user.name=alice", ""); a.status != 200 {
			t.Errorf("32 names: %d %s", a.status, a.body)
		}
	})
	<-s.hanging
	for user, want := range map[string]int{"alice": 503, "bob": 200} {
		if a := send(t, addr, "GET", "/kms/v1/key/k/_metadata?user.name="+user, ""); a.status != want {
			t.Errorf("%s, while alice holds half of the slots: %d %s", user, a.status, a.body)
		}
	}
	close(s.release)
	first.Wait()
}
