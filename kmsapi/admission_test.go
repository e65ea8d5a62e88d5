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

// slow is a provider at which large calls hang until they are let go.
type slow struct {
	*memory.Provider
	hanging chan struct{} // gets one for each that has come
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

// madeEDEK is an EDEK as the server writes it.
type madeEDEK struct {
	Version string `json:"versionName"`
	IV      string `json:"iv"`
	Inner   struct {
		Material string `json:"material"`
	} `json:"encryptedKeyVersion"`
}

// oneEDEK has an EDEK of key k made.
func oneEDEK(t *testing.T, addr string) madeEDEK {
	t.Helper()
	a := ask(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "")
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

// inTheStorm has requests of the classes that are full refused, and those of others served. one is
// the body of a decrypt.
func inTheStorm(t *testing.T, addr, one, batch string) {
	t.Helper()
	for _, c := range []struct{ method, target, body, what string }{
		{"GET", generate, "", "generate"},
		{"GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1000", "", "generate"}, // two units
		{"POST", reencrypt, batch, "re-encryption"},
	} {
		a := ask(t, addr, c.method, c.target, c.body)
		class, message := a.thrown(t)
		if a.status != 503 || class != "org.apache.hadoop.ipc.StandbyException" || a.header("Retry-After") == "" ||
			message != "this node has as many "+c.what+" requests as it takes; ask another, or this one later" {
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
		if a := ask(t, addr, c.method, c.target, c.body); a.status != 200 {
			t.Errorf("%s %s in the storm: %d %s", c.method, c.target, a.status, a.body)
		}
	}
}

// TestAdmission: with all places of generates and of batches taken, more of them are sent to
// another node, while decrypts, single re-encryptions, management and reading are
// served. Later there are places again.
func TestAdmission(t *testing.T) {
	s := &slow{Provider: memory.New(memory.Config{SequentialIDs: true}), hanging: make(chan struct{}),
		release: make(chan struct{})}
	tr := &trail{}
	var mu sync.Mutex
	away := map[string]int{}
	waited := func(class string, took time.Duration, came bool) {
		mu.Lock()
		defer mu.Unlock()
		if !came && took >= 10*time.Millisecond {
			away[class]++
		}
	}
	addr := withKey(t, stack{Primary: s, Trail: tr, Waited: waited, Admission: kmsapi.Admission{Decrypts: 4,
		Generates: 2, Batches: 1, Management: 1, Wait: 20 * time.Millisecond}})
	// Of what the first generate leaves in the queue, singles are served.
	e := oneEDEK(t, addr)
	one := fmt.Sprintf(`{"name":"k","iv":"%s","material":"%s"}`, e.IV, e.Inner.Material)
	item := fmt.Sprintf(`{"versionName":"%s","iv":"%s","encryptedKeyVersion":{"versionName":"EEK","material":"%s"}}`,
		e.Version, e.IV, e.Inner.Material)
	if a := ask(t, addr, "POST", "/kms/v1/key/k", "{}"); a.status != 200 { // so that a batch has work to do
		t.Fatal(a.status)
	}
	// The first generate of all is waited for by the others; it is not to be one that
	// hangs.
	if a := ask(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", ""); a.status != 200 {
		t.Fatal(a.status)
	}
	batch := "[" + strings.TrimSuffix(strings.Repeat(item+",", 200), ",") + "]"

	var storm sync.WaitGroup
	for _, user := range []string{"bob", "carol"} { // one of them could not have both places
		storm.Go(func() {
			if a := ask(t, addr, "GET", generate+"&user.name="+user, ""); a.status != 200 {
				t.Errorf("an admitted generate: %d %s", a.status, a.body)
			}
		})
		<-s.hanging
	}
	storm.Go(func() {
		if a := ask(t, addr, "POST", reencrypt+"?user.name=bob", batch); a.status != 200 {
			t.Errorf("an admitted batch: %d %s", a.status, a.body)
		}
	})
	<-s.hanging

	for range 3 {
		inTheStorm(t, addr, one, batch)
	}
	close(s.release)
	storm.Wait()
	for range 3 {
		if a := ask(t, addr, "GET", generate, ""); a.status != 200 {
			t.Errorf("after the storm: %d %s", a.status, a.body)
		}
		if a := ask(t, addr, "POST", reencrypt, batch); a.status != 200 {
			t.Errorf("after the storm: %d %s", a.status, a.body)
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
	if len(away) != 2 || away["generate"] != 6 || away["re-encryption"] != 3 {
		t.Errorf("Waited was told of %v", away)
	}
}

// slowNames is a provider at which a question for many names hangs until it is let go.
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

// TestManyNamesTakeManyPlaces: a request for the metadata of many keys, of which each is a
// question to a Key Trustee Server, takes as many places as it is worth, so that one user
// with a few of them does not take all.
func TestManyNamesTakeManyPlaces(t *testing.T) {
	s := &slowNames{Provider: memory.New(memory.Config{SequentialIDs: true}), hanging: make(chan struct{}),
		release: make(chan struct{})}
	addr := withKey(t, stack{Primary: s, Admission: kmsapi.Admission{Decrypts: 4, Generates: 4, Batches: 4,
		Management: 4, Reads: 4, Wait: 20 * time.Millisecond}})
	many := "/kms/v1/keys/metadata?"
	for i := range 32 { // two places
		many += fmt.Sprintf("key=k%d&", i)
	}
	var first sync.WaitGroup
	first.Go(func() {
		if a := ask(t, addr, "GET", many+"user.name=alice", ""); a.status != 200 {
			t.Errorf("32 names: %d %s", a.status, a.body)
		}
	})
	<-s.hanging
	for user, want := range map[string]int{"alice": 503, "bob": 200} {
		if a := ask(t, addr, "GET", "/kms/v1/key/k/_metadata?user.name="+user, ""); a.status != want {
			t.Errorf("%s, while alice has half of the places: %d %s", user, a.status, a.body)
		}
	}
	close(s.release)
	first.Wait()
}
