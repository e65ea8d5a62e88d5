package hadoop

import (
	"context"
	"io"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/keyring"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/provider"
)

// migrationHistory returns the history of a migration to the ring, like the program.
type migrationHistory struct {
	store  metastore.Store
	target string // URI
}

func (p migrationHistory) Origins(ctx context.Context) ([]keyring.Origin, error) {
	list, err := migrate.Origins(ctx, p.store, p.target)
	var out []keyring.Origin
	for _, o := range list {
		m := claviger.Metadata{Name: o.Key, Attributes: o.Metadata.Attributes}
		out = append(out, keyring.Origin{Key: o.Key, Source: o.Source, TakenOver: o.TakenOver,
			Created: o.Metadata.Created, ACLName: m.ACLName(),
			Folded: o.Folded, Numbered: o.Numbered, Counted: o.Metadata.Versions, Rolled: o.Rolled})
	}
	return out, err
}

func (p migrationHistory) Alias(ctx context.Context, name string) (string, bool, error) {
	return metastore.Alias(ctx, p.store, name)
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

// servesEverySpelling: after the migration from a KMS that ignores case, a zone works with the spelling of its
// key, by the rules of the one key. Nobody else gets a key by any spelling. The key is here as "Finance".
func servesEverySpelling(t *testing.T, source, target provider.Provider, store metastore.Store) {
	t.Helper()
	policy, warnings := authz.Parse([]authz.Property{
		{Name: "key.acl.Finance.ALL", Value: "alice"}, {Name: "key.acl.Finance.GENERATE_EEK", Value: "alice,nn"},
		{Name: "key.acl.scratch.ALL", Value: "bob"}, {Name: "key.acl.scratch.MANAGEMENT", Value: "bob"},
	})
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	ring, err := keyring.New(keyring.Config{
		Primary: target, Sources: []keyring.Source{{Provider: source, Reencryption: true}}, Reencryption: true,
		History: migrationHistory{store, target.URI()},
		Policy:  func() *authz.Policy { return policy }, KeyAuthorization: true,
		Audit:       audit.NewHadoop(closer{io.Discard}, time.Second),
		CacheEnable: true, CacheTimeout: time.Minute, CurrentCacheTimeout: time.Minute,
		QueueSize: 1, QueueLowWatermark: 1, QueueExpiry: time.Hour, QueueFillers: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	as := func(user string) claviger.Caller {
		return claviger.Caller{Principal: claviger.Principal{Name: user, Short: user}}
	}
	for _, zone := range []string{"FINANCE", "finance", "Finance"} {
		old, err := source.(provider.EDEKService).Generate(t.Context(), zone, 1)
		if err != nil {
			t.Fatal(err)
		}
		deks, err := source.(provider.EDEKService).Unwrap(t.Context(), zone, "", old)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := ring.ReencryptBatch(t.Context(), as("nn"), zone, old)
		if err != nil {
			t.Errorf("a zone %s is re-encrypted: %v", zone, err)
			continue
		}
		if key, _ := claviger.KeyOfVersion(fresh[0].Version); key != "Finance" {
			t.Errorf("a zone %s comes under %s", zone, fresh[0].Version)
		}
		if dek, err := ring.Decrypt(t.Context(), as("alice"), zone, true, fresh[0]); err != nil || !dek.Equal(deks[0]) {
			t.Errorf("a file of zone %s is opened: %v", zone, err)
		}
		if es, err := ring.Generate(t.Context(), as("nn"), zone, 1); err != nil || len(es) != 1 {
			t.Errorf("a new file in zone %s: %v", zone, err)
		} else if _, err := ring.Decrypt(t.Context(), as("alice"), zone, true, es[0]); err != nil {
			t.Errorf("a new file in zone %s is opened: %v", zone, err)
		}
		if _, err := ring.Decrypt(t.Context(), as("bob"), zone, true, fresh[0]); !claviger.Is(err, claviger.KeyDenied) {
			t.Errorf("bob opens a file of zone %s: %v", zone, err)
		}
		if _, err := ring.Decrypt(t.Context(), as("bob"), zone, true, old[0]); !claviger.Is(err, claviger.KeyDenied) {
			t.Errorf("bob opens an old file of zone %s: %v", zone, err)
		}
	}
	for _, name := range []string{"FINANCE", "finance", "fInAnCe", "PLAIN", "Plain"} {
		_, err := ring.Create(t.Context(), as("bob"),
			provider.Spec{Name: name, Attributes: map[string]string{claviger.ACLNameAttribute: "scratch"}})
		if !claviger.Is(err, claviger.Invalid) {
			t.Errorf("bob makes key %s: %v", name, err)
		}
	}
	if _, err := ring.Create(t.Context(), as("bob"),
		provider.Spec{Name: "bobs", Attributes: map[string]string{claviger.ACLNameAttribute: "scratch"}}); err != nil {
		t.Errorf("bob makes a key of a free name: %v", err)
	}
}
