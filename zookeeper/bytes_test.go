package zookeeper

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/secret"
)

// TestParseEnsemble: a connection string becomes servers with ports and a chroot, and a string that ZooKeeper's client
// refuses is refused.
func TestParseEnsemble(t *testing.T) {
	for text, want := range map[string]Ensemble{
		"h1":                          {Servers: []string{"h1:2181"}},
		"h1:1,h2:2, h3 ":              {Servers: []string{"h1:1", "h2:2", "h3:2181"}},
		"h1:1,,h2:2,/":                {Servers: []string{"h1:1", "h2:2"}},
		"h1:1,h2:2/a/b":               {Servers: []string{"h1:1", "h2:2"}, Chroot: "/a/b"},
		"[::1]:7,[fe80::2],::3/c":     {Servers: []string{"[::1]:7", "[fe80::2]:2181", "[::3]:2181"}, Chroot: "/c"},
		"zk-1.example.com:2181/kms-1": {Servers: []string{"zk-1.example.com:2181"}, Chroot: "/kms-1"},
	} {
		got, err := ParseEnsemble(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v (%v), want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", ",", "/chroot", "h:0", "h:65536", "h:x", "h:1/a//b", "h:1/a/", "h:1/../b", "h:1/a\x00",
		":2181", "h o:1", "a:b:c:d", "#HOSTNAME#:#PORT#,...", strings.Repeat("h,", 200),
	} {
		if got, err := ParseEnsemble(text); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%q is %+v (%v)", text, got, err)
		}
	}
}

// TestBytes compares the bytes of nodes with known bytes. TestJavaTokens shows that Hadoop writes the same bytes.
func TestBytes(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// Owner alice, renewer yarn, no real user; issued at 1700000000000, valid until 1700604800000 at most; sequence 1,
	// key 2; renewed until 1700086400000.
	token := unhex("00 05616c696365 047961726e 00 8a018bcfe56800 8a018bf3f1ec00 01 02" +
		"0000018bd50bc400 00000004 70617373")
	d, err := parseDelegation(token)
	if err != nil || len(d.Identifier) != 29 || string(d.Password) != "pass" || d.Renew.UnixMilli() != 1700086400000 {
		t.Errorf("token: %+v, %v", d, err)
	}
	if back := appendDelegation(d); !bytes.Equal(back, token) {
		t.Errorf("token: %x becomes %x", token, back)
	}
	key := unhex("02 8a018bf3f1ec00 08 6b6b6b6b6b6b6b6b")
	k, err := parseMasterKey(key)
	if err != nil || k.ID != 2 || k.Expires.UnixMilli() != 1700604800000 || string(k.Key) != "kkkkkkkk" {
		t.Errorf("key: %+v, %v", k, err)
	}
	if back := appendMasterKey(k); !bytes.Equal(back, key) {
		t.Errorf("key: %x becomes %x", key, back)
	}
	for name, previous := range map[string]string{"a previous secret": "00000001 70", "none": "00000000"} {
		b := unhex("00000000 00000001 6e 00000002 6363" + previous + "0000018bd50bc400")
		s, err := parseSecrets(b)
		if err != nil || string(s.Next) != "n" || string(s.Current) != "cc" ||
			(s.Previous == nil) != (name == "none") || s.Rollover.UnixMilli() != 1700086400000 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		if back := appendSecrets(s); !bytes.Equal(back, b) {
			t.Errorf("%s: %x becomes %x", name, b, back)
		}
	}
	// Data that was cut is refused.
	for n := range token {
		if _, err := parseDelegation(token[:n]); err == nil {
			t.Errorf("%d bytes of a token are accepted", n)
		}
	}
	for n := range key {
		if _, err := parseMasterKey(key[:n]); err == nil {
			t.Errorf("%d bytes of a key are accepted", n)
		}
	}
	secrets := appendSecrets(metastore.SignerSecrets{Next: secret.Bytes("n"), Current: secret.Bytes("c"),
		Rollover: time.UnixMilli(1)})
	for n := range secrets {
		if _, err := parseSecrets(secrets[:n]); err == nil {
			t.Errorf("%d bytes of secrets are accepted", n)
		}
	}
	// A length above the limit is refused, even if that number of bytes follows.
	long := appendSecrets(metastore.SignerSecrets{Next: make(secret.Bytes, maxSecret+1), Current: secret.Bytes("c")})
	const tooLong = "a secret has 4097 bytes, and may have at most 4096"
	if _, err := parseSecrets(long); err == nil || err.Error() != tooLong {
		t.Errorf("a secret that is too long: %v", err)
	}
	d.Password = make(secret.Bytes, maxPassword+1)
	if _, err := parseDelegation(appendDelegation(d)); err == nil ||
		!strings.Contains(err.Error(), "may have at most") {
		t.Errorf("a password that is too long: %v", err)
	}
}

// requireSeeds fails if a fuzz target has no seeds.
func requireSeeds(f *testing.F, name string) {
	f.Helper()
	if seeds, err := os.ReadDir("testdata/fuzz/" + name); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds of %s: %v", name, err)
	}
}

// FuzzToken: a delegation token that is parsed and written again is the same token.
func FuzzToken(f *testing.F) {
	requireSeeds(f, "FuzzToken")
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDelegation(b)
		if err != nil {
			return
		}
		back, err := parseDelegation(appendDelegation(d))
		if err != nil || !reflect.DeepEqual(back, d) {
			t.Errorf("%+v becomes %+v (%v)", d, back, err)
		}
	})
}

// FuzzMasterKey: a master key that is parsed and written again is the same key.
func FuzzMasterKey(f *testing.F) {
	requireSeeds(f, "FuzzMasterKey")
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseMasterKey(b)
		if err != nil {
			return
		}
		back, err := parseMasterKey(appendMasterKey(k))
		if err != nil || !reflect.DeepEqual(back, k) {
			t.Errorf("%+v becomes %+v (%v)", k, back, err)
		}
	})
}

// FuzzSecrets: signer secrets that are parsed and written again are the same secrets.
func FuzzSecrets(f *testing.F) {
	requireSeeds(f, "FuzzSecrets")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSecrets(b)
		if err != nil {
			return
		}
		back, err := parseSecrets(appendSecrets(s))
		if err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%+v becomes %+v (%v)", s, back, err)
		}
	})
}

// FuzzEnsemble: a connection string that is parsed and written again is the same ensemble.
func FuzzEnsemble(f *testing.F) {
	requireSeeds(f, "FuzzEnsemble")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEnsemble(s)
		if err != nil {
			return
		}
		back, err := ParseEnsemble(e.String())
		if err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%+v becomes %+v (%v)", e, back, err)
		}
	})
}

// TestFlights: a result is never older than its request, and concurrent requests share results.
func TestFlights(t *testing.T) {
	var f flights[string, int64]
	var now, calls atomic.Int64
	fn := func() (int64, error) {
		calls.Add(1)
		seen := now.Load()
		time.Sleep(time.Millisecond) // the duration of a call
		return seen, nil
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				requested := now.Add(1)
				if seen, err := f.do(t.Context(), "", fn); err != nil || seen < requested {
					t.Errorf("requested at %d, the result is from %d (%v)", requested, seen, err)
				}
			}
		})
	}
	group.Wait()
	if n := calls.Load(); n > 200 {
		t.Errorf("400 requests needed %d calls", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	blocked := make(chan struct{})
	if _, err := f.do(ctx, "b", func() (int64, error) { <-blocked; return 0, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller whose context has ended: %v", err)
	}
	close(blocked)
	if _, err := f.do(t.Context(), "b", fn); err != nil {
		t.Error(err)
	}
}
