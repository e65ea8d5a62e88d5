package main

import (
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/migrate"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/provider/memory"
)

// wants runs a command that must succeed if ok is true, and must fail otherwise. Its output must hold some texts.
func wants(t *testing.T, ok bool, args []string, texts ...string) string {
	t.Helper()
	out, err := command(t, args...)
	if (err == nil) != ok {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("%v: the output lacks %q:\n%s", args, text, out)
		}
	}
	return out
}

// restoreAndAdopt restores a backup that is older than the token, and adopts all keys that the backup lacks.
func restoreAndAdopt(t *testing.T, dir, backup string, texts ...string) {
	t.Helper()
	wants(t, true, []string{"metastore", "restore", "--conf", dir, "--lose-keys", backup})
	adopt := []string{"hsm", "adopt", "--conf", dir, "--all"}
	_, digest, ok := strings.Cut(wants(t, false, adopt), "--confirm ")
	if !ok {
		t.Fatal("no digest is printed")
	}
	wants(t, true, append(adopt, "--confirm", strings.Fields(digest)[0]), texts...)
}

// adoptedMigration is the state of TestAdoptedKeyIsTakenOverAgain.
type adoptedMigration struct {
	t             *testing.T
	source, here  *node
	description   string // of the key ledger at the source
	first, second sealed // EDEKs of the key ledger that the source made
	after, own    sealed // EDEKs made here: of the migrated key ledger, and of the key own
}

// TestAdoptedKeyIsTakenOverAgain: a backup from before the migration is restored, and the migrated keys are adopted
// from the token. With --adopted they are taken over again and keep their versions: all EDEKs open, those of the source
// are re-encrypted, and the migration ends. A key that was made here does not get the rules of the source.
func TestAdoptedKeyIsTakenOverAgain(t *testing.T) {
	a := &adoptedMigration{t: t, source: numberingSource(t), description: "of the treasury"}
	spec := newKey("ledger", "finance")
	spec.Description = &a.description
	makeKey(t, a.source.kms, spec)
	a.first = seal(t, a.source.kms, "ledger", "ledger@0")
	rollKey(t, a.source.kms, "ledger")
	a.second = seal(t, a.source.kms, "ledger", "ledger@1")
	dir, site := kmstest.HSM(t)
	site[hadoopconf.SourceURI], site[hadoopconf.ReencryptionEnable] = kmsURI(a.source.url), "true"
	kmstest.WriteSite(t, dir, site)
	a.here = startNode(t, dir)
	a.here.stop()
	backup := filepath.Join(t.TempDir(), "before.db")
	wants(t, true, []string{"metastore", "backup", "--conf", dir, "--out", backup})
	wants(t, true, []string{"migrate", "run", "--conf", dir})
	a.here.start()
	a.after = seal(t, a.here.kms, "ledger", "ledger@2")
	makeKey(t, a.here.kms, newKey("own", ""))
	a.own = seal(t, a.here.kms, "own", "own@0")
	a.here.stop()
	restoreAndAdopt(t, dir, backup, "claviger migrate run --adopted NAME")
	a.takeOver()
	a.checkTakenOver()
	finish := []string{"migrate", "finish", "--conf", dir, "--edeks-done", "--unused-for", "0s"}
	wants(t, false, finish, "every key is here and can be used")
	delete(site, hadoopconf.SourceURI)
	delete(site, hadoopconf.ReencryptionEnable)
	kmstest.WriteSite(t, dir, site)
	wants(t, true, finish, "The migration is finished")
}

// takeOver takes the adopted key over. Meanwhile a user of the source has a key there with the name of the key own.
func (a *adoptedMigration) takeOver() {
	a.t.Helper()
	makeKey(a.t, a.source.kms, newKey("own", "carol"))
	run := []string{"migrate", "run", "--conf", a.here.dir}
	out := wants(a.t, false, run, "do not delete the key: files may be encrypted under it",
		"run claviger migrate run --adopted ledger")
	if strings.Contains(out, "or delete the key that nobody uses") {
		a.t.Errorf("the output advises to delete the key:\n%s", out)
	}
	a.here.start()
	wantOpen(a.t, "of the adopted key", a.here.kms, a.after)
	if _, err := a.here.kms.Reencrypt(a.t.Context(), "ledger", []claviger.EDEK{a.first.edek}); err == nil ||
		!strings.Contains(err.Error(), "do not delete the key here") {
		a.t.Errorf("re-encryption under a key that may be another: %v", err)
	}
	a.here.stop()
	wants(a.t, false, append(run, "--adopted", "nokey"), "the source does not list that key; nothing was done")
	wants(a.t, false, append(run, "--adopted", "ledgr"), "the source does not list that key; did you mean ledger?")
	wants(a.t, false, append(run, "--all-adopted"), "1 done", "the source has a version own@0 too",
		"Do not delete the key")
	// The source's own@0 does not close a key that was not migrated from the source.
	a.here.start()
	wantOpen(a.t, "of a key that was made here", a.here.kms, a.own)
	a.here.stop()
	deleteKey(a.t, a.source.kms, "own")
	wants(a.t, true, run)
	wants(a.t, true, []string{"migrate", "verify", "--conf", a.here.dir})
}

// checkTakenOver checks the metadata of the keys, and that EDEKs open and are re-encrypted.
func (a *adoptedMigration) checkTakenOver() {
	a.t.Helper()
	ctx := a.t.Context()
	a.here.start()
	defer a.here.stop()
	m, err := a.here.kms.Metadata(ctx, "ledger", "own")
	if err != nil || m[0].ACLName() != "finance" || m[0].Description == nil || *m[0].Description != a.description ||
		m[1].ACLName() != "own" {
		a.t.Errorf("metadata: %+v, %v", m, err)
	}
	for _, s := range []sealed{a.first, a.second, a.after} {
		wantOpen(a.t, "taken over", a.here.kms, s)
		es, err := a.here.kms.Reencrypt(ctx, "ledger", []claviger.EDEK{s.edek})
		if err != nil || es[0].Version != "ledger@2" {
			a.t.Errorf("re-encryption of an EDEK of %s: %+v, %v", s.edek.Version, es, err)
			continue
		}
		wantOpen(a.t, "re-encrypted from "+s.edek.Version, a.here.kms, sealed{es[0], s.dek})
	}
}

// errKilled ends a run at a step, as if the process was killed there.
var errKilled = errors.New("killed")

// killAt returns a function for migrate.Config.OnStep that kills the run at a step. The key "" stands for any key.
func killAt(key, step string) func(key, step string) error {
	return func(k, s string) error {
		if (key == "" || k == key) && s == step {
			return errKilled
		}
		return nil
	}
}

// brokenRun is the state of TestAdoptedAfterABrokenRun.
type brokenRun struct {
	t      *testing.T
	dir    string
	source *memory.Provider
}

// TestAdoptedAfterABrokenRun: a migration from a source whose version names are not numbers was killed while a key was
// pending, and the backup of that moment was restored. The adopted key is taken over only if the operator says so, and
// not at the request of a user. Keys that users made are never taken over, even if the operator says so.
func TestAdoptedAfterABrokenRun(t *testing.T) {
	ctx := t.Context()
	dir, site := kmstest.HSM(t)
	kmstest.WriteSite(t, dir, site)
	source := memory.New(memory.Config{URI: "kms://http@old.example.com:16000/kms", OpaqueIDs: true})
	t.Cleanup(func() { _ = source.Close() })
	for _, name := range []string{"m", "mine"} {
		makeKey(t, source, newKey(name, "finance"))
	}
	rollKey(t, source, "m")
	b := &brokenRun{t, dir, source}
	b.with(migrate.Config{OnStep: killAt("m", "generated 1 of 2")}, func(svc *kms.Service, e *migrate.Engine) {
		makeKey(t, svc.Primary.(provider.Writer), newKey("mine", ""))
		if _, err := e.Run(ctx); !errors.Is(err, errKilled) {
			t.Fatalf("the run was not killed: %v", err)
		}
	})
	backup := filepath.Join(t.TempDir(), "pending.db")
	wants(t, true, []string{"metastore", "backup", "--conf", dir, "--out", backup})
	restoreAndAdopt(t, dir, backup)
	b.with(migrate.Config{}, func(_ *kms.Service, e *migrate.Engine) {
		b.run(e, migrate.Conflict)
		if _, err := e.RunKey(ctx, "m"); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), "--adopted m") {
			t.Errorf("at a user's request: %v", err)
		}
	})
	b.with(migrate.Config{Adopted: []string{"mine"}}, func(_ *kms.Service, e *migrate.Engine) {
		if _, err := e.Run(ctx); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), "claviger hsm adopt did not bring this key back") {
			t.Errorf("of a key that a user made: %v", err)
		}
	})
	// The run is killed after the change of the key, and before the journal records it.
	b.with(migrate.Config{AllAdopted: true, OnStep: killAt("", "retaken")}, func(_ *kms.Service, e *migrate.Engine) {
		if _, err := e.Run(ctx); !errors.Is(err, errKilled) {
			t.Fatalf("the run was not killed: %v", err)
		}
	})
	b.with(migrate.Config{}, b.checkTakenOver)
}

// with opens the KMS, and calls work with an engine.
func (b *brokenRun) with(cfg migrate.Config, work func(*kms.Service, *migrate.Engine)) {
	b.t.Helper()
	svc, err := kms.Open(b.t.Context(), b.dir, "test", hsm.Serve, slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() {
		if err := svc.Close(); err != nil {
			b.t.Error(err)
		}
	}()
	cfg.Source = b.source
	e, err := svc.Engine(b.t.Context(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	work(svc, e)
}

// run runs the migration. The key m must have a state then. The key mine is always in conflict.
func (b *brokenRun) run(e *migrate.Engine, m migrate.State) *migrate.Result {
	b.t.Helper()
	r, err := e.Run(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	got := map[string]migrate.State{}
	for _, k := range r.Keys {
		got[k.Key] = k.State
	}
	if want := map[string]migrate.State{"m": m, "mine": migrate.Conflict}; !maps.Equal(got, want) {
		b.t.Errorf("states %v, want %v", got, want)
	}
	return r
}

// checkTakenOver checks that the key m was taken over with its version, and the key mine was not.
func (b *brokenRun) checkTakenOver(svc *kms.Service, e *migrate.Engine) {
	r := b.run(e, migrate.Done)
	i := slices.IndexFunc(r.Keys, func(k migrate.KeyLine) bool { return k.Key == "m" })
	if got := r.Keys[i].TargetVersions; !slices.Equal(got, []string{"m@0"}) || r.Counts.NewVersions != 0 {
		b.t.Errorf("taken over with %v, %d of them new", got, r.Counts.NewVersions)
	}
	atSource, err := b.source.Metadata(b.t.Context(), "m")
	if err != nil {
		b.t.Fatal(err)
	}
	atKMS, err := svc.Primary.Metadata(b.t.Context(), "m", "mine")
	if err != nil || atKMS[0].ACLName() != "finance" || !atKMS[0].Created.Equal(atSource[0].Created) ||
		atKMS[1].ACLName() != "mine" {
		b.t.Errorf("metadata: %+v, %v", atKMS, err)
	}
}
