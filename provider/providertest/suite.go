// Package providertest is the conformance suite of the provider contract. Every provider passes it.
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

// Suite describes the provider to test, and which options of the contract it implements. The suite uses key names of
// its own. The backing may hold other keys, and all tests may share one backing.
type Suite struct {
	// New opens a provider. The suite closes it.
	New func(t *testing.T) provider.Provider
	// Reopen closes p, and opens another provider over the same backing. It is nil if keys do not outlive p.
	Reopen func(t *testing.T, p provider.Provider) provider.Provider
	// Objects counts the keys in p's backing, including those that a Reader does not see. So the suite finds keys that
	// an interrupted call left behind. May be nil.
	Objects func(t *testing.T, p provider.Provider) int

	// SoftDeletes is true if the provider is set to keep deleted keys. If it is false, the suite does not test the
	// methods of SoftDeleter.
	SoftDeletes bool

	// ForgetsNumbers is true if the provider uses a deleted key's version numbers again.
	ForgetsNumbers bool

	TakesMaterial bool // Create and Roll accept given material; if false, they fail with kind Unsupported
	ShowsMaterial bool // KeyVersions hold material; if false, it is nil

	// Names are unusual key names that the provider must accept; nil means DefaultNames.
	Names []string
	// Refused are key names that the provider cannot hold. Create must fail with kind Invalid.
	Refused []string
	// Many is the number of keys in the test with many keys; 0 means 100.
	Many int
	// Skew is the largest difference between this clock and the clock that sets creation times.
	Skew time.Duration
}

// DefaultNames are key names that Hadoop clients can make.
var DefaultNames = []string{
	"dot.in.name", "dash-and_underline", "at@in@name", "sl/ash", "per%cent", "per%20cent", "pl+us", "semi;colon",
	"que?ry", "ha#sh", "am&p=x", "co:lon", "new\nline", "back\\slash", "quo\"te", "ümläut", "鍵", "..", "a//b",
	"UPPER", strings.Repeat("long", 50), "with space",
}

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	if s.Names == nil {
		s.Names = DefaultNames
	}
	if s.Many == 0 {
		s.Many = 100
	}
	p := s.New(t)
	_, encrypts := p.(provider.BlockEncrypter)
	_, leases := p.(provider.Leaser)
	_, serves := p.(provider.EDEKService)
	_, imports := p.(provider.Importer)
	_, checks := p.(provider.Health)
	_, conditional := p.(provider.Conditional)
	if err := p.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if encrypts == serves {
		t.Errorf("BlockEncrypter: %v, EDEKService: %v; a provider must implement exactly one of them", encrypts, serves)
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
		{"Leases", leases, testLeases},
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

// keyName returns a new name that no other test uses, and that every provider accepts.
func keyName(prefix string) string { return fmt.Sprintf("%s-%016x", prefix, rand.Uint64()) }

func spec(name string, bits int) provider.Spec {
	return provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: bits}
}

func create(t *testing.T, p provider.Provider, s provider.Spec) claviger.KeyVersion {
	t.Helper()
	v, err := p.Create(t.Context(), s)
	if err != nil {
		t.Fatalf("Create(%q): %v", s.Name, err)
	}
	// Keep a shared backing small. Errors are not failures: the test may have deleted the key, or closed the provider.
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
func wantKind(t *testing.T, call string, err error, kind claviger.Kind) {
	t.Helper()
	if !claviger.Is(err, kind) {
		t.Errorf("%s: %v; want an error of kind %v", call, err, kind)
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

// sameVersion reports whether two versions agree in everything but Of.
func sameVersion(a, b claviger.KeyVersion) bool {
	return a.Key == b.Key && a.Name == b.Name && a.BitLength == b.BitLength && a.Material.Equal(b.Material)
}

// sameAttributes compares attributes. It ignores a key.acl.name in got that is not in want: a KMS adds it by itself.
func sameAttributes(got, want map[string]string) bool {
	if _, ok := want[claviger.ACLNameAttribute]; !ok && got != nil {
		got = maps.Clone(got)
		delete(got, claviger.ACLNameAttribute)
	}
	return got != nil && maps.Equal(got, want)
}

// quoted returns *p in quotes, or nil without quotes for a nil pointer.
func quoted(p *string) string {
	if p == nil {
		return "nil"
	}
	return fmt.Sprintf("%q", *p)
}

// countedVersions returns Metadata.Versions of a new key whose only version is v.
func countedVersions(v claviger.KeyVersion) int {
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

// missingVersions returns names of versions that do not exist. Some of them no version can have.
func missingVersions(key string) []string {
	return []string{
		claviger.VersionName(key, "no-such-version"), claviger.VersionName(key, "99"), key + "@", "@" + key, key,
		"", "@", "@@", claviger.VersionName(keyName("nokey"), "0"),
		claviger.VersionName(key, "00112233445566778899aabbccddeeff"),
		claviger.VersionName(key, strings.Repeat("f", 2000)),
	}
}

// wantCancelled demands that the call failed because of its cancelled context: with kind Unavailable or with the
// context's own error.
func wantCancelled(t *testing.T, call string, err error) {
	t.Helper()
	if err == nil || !errors.Is(err, context.Canceled) && !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%s with a cancelled context: %v", call, err)
	}
}

// withPrefix returns the strings of list that begin with prefix, sorted.
func withPrefix(list []string, prefix string) []string {
	var out []string
	for _, n := range list {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
