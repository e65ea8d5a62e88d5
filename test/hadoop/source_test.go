package hadoop

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/keyring"
	"claviger/keystore"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/provider/memory"
	"claviger/secret"
)

// TestJavaKMSAsOddSource migrates from a Java KMS whose keystore has an entry of keytool, which no KMS can return,
// and a key whose name has a capital letter, as Ranger makes them. The entry is a row with its reason, and does
// not stop other keys. The key is migrated with its name.
func TestJavaKMSAsOddSource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kms.keystore")
	kms := StartJavaKMS(t, KMSOptions{Keystore: file, Env: fewIterations})
	admin := openJava(t, kms, keyAdmin)
	for name, acl := range map[string]string{"finance": "Finance", "plain": "plain"} {
		if _, err := admin.Create(t.Context(), provider.Spec{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 128,
			Attributes: map[string]string{claviger.ACLNameAttribute: acl}}); err != nil {
			t.Fatal(err)
		}
	}
	kms.Stop()
	addForeignEntry(t, file, "keytool")
	kms = StartJavaKMS(t, KMSOptions{Keystore: file, Env: fewIterations})
	source := openJava(t, kms, keyAdmin)

	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metastore.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	target := memory.New(memory.Config{URI: "pkcs11:token=new", Sealed: true})
	defer target.Close()
	engine, err := migrate.New(migrate.Config{Source: source, Target: target, Store: store,
		Probes: migrate.Probes{Source: (&migrate.SourceKMS{Bases: []string{kms.URL}}).Probe}})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := engine.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	report.Plan(&text, plan)
	for _, want := range []string{"clocks: 127.0.0.1's clock agrees with this host's", "and 1 cannot be read there",
		"Can't cast key for keytool", "lists finance and answers to FINANCE", "key.acl.name spells them: Finance"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the plan does not say %q:\n%s", want, &text)
		}
	}
	for _, never := range []string{"does not answer", "has no keys"} {
		if strings.Contains(text.String(), never) {
			t.Errorf("the plan says %q of a KMS that answers and has keys:\n%s", never, &text)
		}
	}
	r, err := engine.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]migrate.State{}
	for _, k := range r.Keys {
		got[k.Key] = k.State
	}
	if want := map[string]migrate.State{"Finance": migrate.Done, "plain": migrate.Done,
		"keytool": migrate.Unreadable}; !maps.Equal(got, want) || r.Complete() {
		t.Errorf("%v, complete %v; want %v, not complete", got, r.Complete(), want)
	}
	v, err := engine.Verify(t.Context())
	if err != nil || v.Same != 2 || v.Different != 1 {
		t.Errorf("verify: %+v, %v", v, err)
	}

	// An EDEK has the spelling of its request, and leads to the key.
	edeks, err := source.Generate(t.Context(), "FINANCE", 1)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := claviger.KeyOfVersion(edeks[0].Version)
	if here, ok, err := metastore.Alias(t.Context(), store, key); key != "FINANCE" || err != nil || !ok ||
		here != "Finance" {
		t.Errorf("EDEK of %s: key %q, %v, %v", edeks[0].Version, here, ok, err)
	}
	if deks, err := source.Unwrap(t.Context(), key, "", edeks); err != nil || len(deks) != 1 {
		t.Errorf("the source does not open its EDEK of %s: %v", edeks[0].Version, err)
	}
	servesEverySpelling(t, source, target, store)

	rollsAtSource(t, engine, source, target, store)
}

// rollsAtSource rolls the key plain at the source, so "plain@1" names different key versions at the source and at the
// target. CompareSources finds this, and an EDEK of the source's version is not decrypted. "Finance" was not rolled,
// and stays usable.
func rollsAtSource(t *testing.T, engine *migrate.Engine, source *kmsclient.Provider, target *memory.Provider,
	store *sqlite.Store) {
	t.Helper()
	if _, err := source.Roll(t.Context(), "plain", nil); err != nil {
		t.Fatal(err)
	}
	policy, _ := authz.Parse(nil)
	ring, err := keyring.New(keyring.Config{Primary: target, Sources: []keyring.Source{{Provider: source,
		Reencryption: true}}, History: migrationHistory{store, target.URI()},
		Policy: func() *authz.Policy { return policy }, Audit: audit.NewHadoop(closer{io.Discard}, time.Second),
		QueueSize: 1, QueueLowWatermark: 1, QueueExpiry: time.Hour, QueueFillers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if err := ring.CompareSources(t.Context()); err != nil || ring.Conflicts() != 1 {
		t.Errorf("%d in conflict, %v", ring.Conflicts(), err)
	}
	edeks, err := source.Generate(t.Context(), "plain", 1)
	if err != nil {
		t.Fatal(err)
	}
	alice := claviger.Caller{Principal: claviger.Principal{Name: "alice", Short: "alice"}}
	if _, err := ring.Decrypt(t.Context(), alice, "plain", true, edeks[0]); edeks[0].Version != "plain@1" ||
		!claviger.Is(err, claviger.Unavailable) {
		t.Errorf("an EDEK of %s: %v, want it refused for now", edeks[0].Version, err)
	}
	if v, err := engine.Verify(t.Context()); err != nil || v.Different != 2 {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// addForeignEntry adds a secret key to a keystore, like keytool -genseckey: with its own name and without Hadoop's
// metadata.
func addForeignEntry(t *testing.T, file, alias string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	password := secret.Bytes("none") // Hadoop's default password
	store, err := keystore.ParseJCEKS(data, password)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.SetKey(alias, "AES", secret.Bytes("0123456789abcdef"), password, time.Now()); err != nil {
		t.Fatal(err)
	}
	if data, err = store.Marshal(password); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	// Remove Hadoop's checksum of the file. Without it, Hadoop does not check the file.
	if err := os.Remove(filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".crc")); err != nil {
		t.Fatal(err)
	}
}
