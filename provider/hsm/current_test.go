package hsm_test

import (
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// TestRollWithoutTheCurrentVersion: a node whose token lacks the current version, or holds another key in its place,
// makes no new version, even if it verified the version before. Other keys are rolled.
func TestRollWithoutTheCurrentVersion(t *testing.T) {
	for name, again := range map[string]bool{"missing": false, "another key": true} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			b := newSite(t)
			p := b.mustOpen(t)
			var versions []string
			for _, key := range []string{"lacks", "holds"} {
				v, err := p.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128})
				if err != nil {
					t.Fatal(err)
				}
				versions = append(versions, v.Name)
			}
			objectID, label := b.object(t, versions[0])
			b.withToken(t, func(tok *pkcs11.Token) {
				if err := tok.Destroy(ctx, objectID, label); err != nil {
					t.Fatal(err)
				}
				if again {
					if err := tok.GenerateKey(ctx, objectID, label, 128); err != nil {
						t.Fatal(err)
					}
				}
			})
			before := len(objects(t, p))
			if v, err := p.Roll(ctx, "lacks", nil); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "does not hold the current version "+versions[0]) {
				t.Errorf("a roll without the current version: %+v, %v", v, err)
			}
			if vs, err := p.Versions(ctx, "lacks"); err != nil || len(vs) != 1 {
				t.Errorf("versions %v, %v", vs, err)
			}
			if after := len(objects(t, p)); after != before {
				t.Errorf("%d objects on the token, %d before the roll", after, before)
			}
			b.withStore(t, func(s metastore.Store) {
				if pending, err := s.Pending(ctx); err != nil || len(pending) != 0 {
					t.Errorf("steps %v remain (%v)", pending, err)
				}
			})
			if err := p.CheckKeys(ctx); err == nil || !strings.Contains(err.Error(), versions[0]) {
				t.Errorf("readiness does not name the version: %v", err)
			}
			if _, err := p.Roll(ctx, "holds", nil); err != nil {
				t.Errorf("another key: %v", err)
			}
			mustClose(t, p)

			// Once an operator has given the version up, the key can be rolled. Another key in its place cannot be
			// given up, because the version is not missing.
			if again {
				return
			}
			b.access = hsm.Repair
			p = b.mustOpen(t)
			if given, err := p.GivenUp(ctx, versions); err != nil || len(given) != 0 {
				t.Errorf("given up too early: %q, %v", given, err)
			}
			if err := p.Rebind(ctx); err != nil {
				t.Fatal(err)
			}
			if given, err := p.GivenUp(ctx, append([]string{"never@7"}, versions...)); err != nil ||
				!slices.Equal(given, versions[:1]) {
				t.Errorf("given up: %q, %v, want %s", given, err, versions[0])
			}
			mustClose(t, p)
			b.access = hsm.Serve
			p = b.mustOpen(t)
			v, err := p.Roll(ctx, "lacks", nil)
			if err != nil {
				t.Fatalf("after it was given up: %v", err)
			}
			keystream(t, p, v.Name)
			mustClose(t, p)
		})
	}
}
