// Package providertest is the conformance suite of the provider contract. Every
// provider passes it.
package providertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// Suite says what to test, and which of the contract's choices the provider
// took. The suite uses key names of its own; the backing may hold other keys,
// and may be shared by all tests.
type Suite struct {
	// New opens a provider. The suite closes it.
	New func(t *testing.T) provider.Provider
	// Reopen closes p and opens another one over the same backing; nil where
	// nothing outlives a provider.
	Reopen func(t *testing.T, p provider.Provider) provider.Provider
	// Objects counts the keys in p's backing, those included that a Reader does
	// not see. It shows what was left behind. May be nil.
	Objects func(t *testing.T, p provider.Provider) int

	// SoftDeletes: the provider is set to keep deleted keys. A SoftDeleter that is
	// not set so is not tested for it.
	SoftDeletes bool

	// ForgetsNumbers: a deleted key's version numbers are used again.
	ForgetsNumbers bool

	TakesMaterial bool // Create and Roll take given material; else kind Unsupported
	ShowsMaterial bool // KeyVersions hold material; else it is nil

	// Names are odd key names that the provider must hold; DefaultNames where it
	// is nil.
	Names []string
	// Refused are key names that it cannot hold: Create gives kind Invalid.
	Refused []string
	// Many is the number of keys of the test with many keys; 100 where it is 0.
	Many int
	// Skew is how far the clock that stamps keys may be off from ours.
	Skew time.Duration
}

// DefaultNames are key names that Hadoop clients can make.
var DefaultNames = []string{
	"dot.in.name", "dash-and_underline", "at@in@name", "sl/ash", "per%cent", "per%20cent", "pl+us", "semi;colon",
	"que?ry", "ha#sh", "am&p=x", "co:lon", "new\nline", "back\\slash", "quo\"te", "ümläut", "鍵", "..", "a//b", "UPPER",
	strings.Repeat("long", 50), "with space",
}

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	if s.Names == nil {
		s.Names = DefaultNames
	}
	if s.Many == 0 {
		s.Many = 100
	}
	probe := s.New(t)
	_, encrypts := probe.(provider.BlockEncrypter)
	_, serves := probe.(provider.EDEKService)
	_, imports := probe.(provider.Importer)
	_, checks := probe.(provider.Health)
	_, conditional := probe.(provider.Conditional)
	if err := probe.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if encrypts == serves {
		t.Errorf("BlockEncrypter: %v, EDEKService: %v; it must be exactly one of them", encrypts, serves)
	}
	for _, group := range []struct {
		name string
		run  bool
		f    func(*testing.T, Suite)
	}{
		{"Keys", true, testKeys},
		{"Concurrent", true, testConcurrent},
		{"Life", true, testLife},
		{"Blocks", encrypts, testBlocks},
		{"EDEKs", serves, testEDEKs},
		{"Import", imports, testImport},
		{"Health", checks, testHealth},
		{"OneReading", true, testOneReading},
		{"Conditional", conditional, testConditional},
		{"Deleted", s.SoftDeletes, testDeleted},
		{"Reopen", s.Reopen != nil, testReopen},
	} {
		if group.run {
			t.Run(group.name, func(t *testing.T) { group.f(t, s) })
		}
	}
}

func (s Suite) open(t *testing.T) provider.Provider {
	t.Helper()
	p := s.New(t)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

// keyName makes a name that no other test uses, which every provider takes.
func keyName(what string) string { return fmt.Sprintf("%s-%016x", what, rand.Uint64()) }

func spec(name string, bits int) provider.Spec {
	return provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: bits}
}

func create(t *testing.T, p provider.Provider, s provider.Spec) claviger.KeyVersion {
	t.Helper()
	v, err := p.Create(t.Context(), s)
	if err != nil {
		t.Fatalf("Create(%q): %v", s.Name, err)
	}
	// A backing that all tests share stays small. The test may have deleted the
	// key, or closed the provider.
	t.Cleanup(func() {
		_ = p.Delete(context.Background(), s.Name)
		if soft, ok := p.(provider.SoftDeleter); ok {
			_ = purgeAll(context.Background(), soft, s.Name)
		}
	})
	return v
}

func roll(t *testing.T, p provider.Provider, key string) claviger.KeyVersion {
	t.Helper()
	v, err := p.Roll(t.Context(), key, nil)
	if err != nil {
		t.Fatalf("Roll(%q): %v", key, err)
	}
	return v
}

func metadata(t *testing.T, p provider.Provider, name string) *claviger.Metadata {
	t.Helper()
	list, err := p.Metadata(t.Context(), name)
	if err != nil || len(list) != 1 {
		t.Fatalf("Metadata(%q): %d entries, %v", name, len(list), err)
	}
	return list[0]
}

func versions(t *testing.T, p provider.Provider, key string) []claviger.KeyVersion {
	t.Helper()
	list, err := p.Versions(t.Context(), key)
	if err != nil {
		t.Fatalf("Versions(%q): %v", key, err)
	}
	return list
}

func names(list []claviger.KeyVersion) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.Name
	}
	return out
}

// wantKind demands a *claviger.Error of that kind.
func wantKind(t *testing.T, what string, err error, kind claviger.Kind) {
	t.Helper()
	if !claviger.Is(err, kind) {
		t.Errorf("%s: %v; want an error of kind %v", what, err, kind)
	}
}

// wantVersion demands a well-formed version of that key.
func (s Suite) wantVersion(t *testing.T, v claviger.KeyVersion, key string, bits int) {
	t.Helper()
	if k, ok := claviger.KeyOfVersion(v.Name); !ok || k != key || v.Key != key {
		t.Errorf("version %q of key %q: it must be a version of %q", v.Name, v.Key, key)
	}
	if v.BitLength != bits {
		t.Errorf("version %q has %d bits, want %d", v.Name, v.BitLength, bits)
	}
	if s.ShowsMaterial && 8*len(v.Material) != bits || !s.ShowsMaterial && v.Material != nil {
		t.Errorf("version %q shows %d bytes of material; shows material: %v", v.Name, len(v.Material), s.ShowsMaterial)
	}
}

// same reports whether two versions agree in everything.
func same(a, b claviger.KeyVersion) bool {
	return a.Key == b.Key && a.Name == b.Name && a.BitLength == b.BitLength && a.Material.Equal(b.Material)
}

// sameAttributes leaves aside a key.acl.name that a KMS put in by itself.
func sameAttributes(got, want map[string]string) bool {
	if _, ok := want[claviger.ACLNameAttribute]; !ok && got != nil {
		got = maps.Clone(got)
		delete(got, claviger.ACLNameAttribute)
	}
	return got != nil && maps.Equal(got, want)
}

func text(p *string) string {
	if p == nil {
		return "nil"
	}
	return fmt.Sprintf("%q", *p)
}

// counted is what the metadata says of a new key that has this version alone.
func counted(v claviger.KeyVersion) int {
	if n, ok := claviger.VersionNumber(v.Name); ok {
		return n + 1
	}
	return 1
}

func ptr(s string) *string { return &s }

func bytesOf(n int) secret.Bytes {
	b := make(secret.Bytes, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// missing are names that no version of key can have, or that has none.
func missing(key string) []string {
	return []string{
		claviger.VersionName(key, "no-such-version"), claviger.VersionName(key, "99"), key + "@", "@" + key, key,
		"", "@", "@@", claviger.VersionName(keyName("nokey"), "0"),
		claviger.VersionName(key, "00112233445566778899aabbccddeeff"),
		claviger.VersionName(key, strings.Repeat("f", 2000)),
	}
}

// wantGone demands that a call failed because its context was done: with kind
// Unavailable or with the context's own error.
func wantGone(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !errors.Is(err, context.Canceled) && !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%s with a cancelled context: %v", what, err)
	}
}

// own returns those of list that begin with prefix, sorted.
func own(list []string, prefix string) []string {
	var out []string
	for _, n := range list {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
