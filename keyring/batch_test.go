package keyring

import (
	"fmt"
	"testing"

	"claviger"
)

// TestBatchWithoutRight: if a user has no right on the key, at most one version of a batch is looked up. The same holds
// if the key does not exist. For a user with the right, the versions are looked up, and the error names the missing
// one.
func TestBatchWithoutRight(t *testing.T) {
	l, far := withSource(t, func(c *Config) { c.Policy = rules(t, "key.acl.k.GENERATE_EEK", "alice") }, "k")
	many := func(key string) []claviger.EDEK {
		es := make([]claviger.EDEK, 1000)
		for i := range es {
			es[i] = claviger.EDEK{Version: fmt.Sprintf("%s@%d", key, 7000+i), IV: make([]byte, 16),
				Material: make([]byte, 16)}
		}
		return es
	}
	for _, c := range []struct {
		user, key string
		kind      claviger.Kind
	}{{"nobody", "k", claviger.KeyDenied}, {"nobody", "zzq", claviger.KeyNotFound}, {"alice", "zzq",
		claviger.KeyNotFound}} {
		before := l.primary.versions.Load()
		_, err := l.ReencryptBatch(t.Context(), caller(c.user), c.key, many(c.key))
		wantKind(t, err, c.kind)
		if n := l.primary.versions.Load() - before; n > 1 {
			t.Errorf("%s, key %s: %d versions were looked up", c.user, c.key, n)
		}
	}
	if calls := far.calls(); len(calls) != 0 {
		t.Errorf("the source got the calls %q", calls)
	}
	before := l.primary.versions.Load()
	if _, err := l.ReencryptBatch(t.Context(), caller("alice"), "k", many("k")); err == nil {
		t.Error("no error for versions that do not exist")
	}
	if n := l.primary.versions.Load() - before; n < 900 {
		t.Errorf("%d versions were looked up for a user with the right: the test proves nothing", n)
	}
}
