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

// wants runs a command that must end well, or must not, and say each of some words.
func wants(t *testing.T, well bool, args []string, says ...string) string {
	t.Helper()
	out, err := command(t, args...)
	if (err == nil) != well {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	for _, s := range says {
		if !strings.Contains(out, s) {
			t.Errorf("%v: it does not say %q:\n%s", args, s, out)
		}
	}
	return out
}

// restoreAndAdopt restores a backup that is older than the token, and has all that it does
// not know adopted.
func restoreAndAdopt(t *testing.T, dir, backup string, says ...string) {
	t.Helper()
	wants(t, true, []string{"metastore", "restore", "--conf", dir, "--lose-keys", backup})
	adopt := []string{"hsm", "adopt", "--conf", dir, "--all"}
	_, digest, ok := strings.Cut(wants(t, false, adopt), "--confirm ")
	if !ok {
		t.Fatal("no digest is printed")
	}
	wants(t, true, append(adopt, "--confirm", strings.Fields(digest)[0]), says...)
}

// TestAdoptedKeyIsTakenOverAgain: a backup from before the migration is restored, and the
// migrated keys are adopted from the token. By the operator's word they are taken over again
// with the versions that they have: all EDEKs open, those of the source are re-encrypted,
// and the migration ends. A key that was made here gets no rules of the source's.
func TestAdoptedKeyIsTakenOverAgain(t *testing.T) {
	ctx := t.Context()
	sourceURL, stopSource := numberingSource(t)
	defer func() {
		if err := stopSource(); err != nil {
			t.Error(err)
		}
	}()
	source := clientOf(t, sourceURL)
	text := "of the treasury"
	spec := provider.Spec{Name: "ledger", Cipher: claviger.DefaultCipher, BitLength: 128, Description: &text,
		Attributes: map[string]string{claviger.ACLNameAttribute: "finance"}}
	open := func(p provider.EDEKService, e claviger.EDEK) (claviger.EDEK, []byte, error) {
		key, _ := claviger.KeyOfVersion(e.Version)
		deks, err := p.Unwrap(ctx, key, "", []claviger.EDEK{e})
		if err != nil {
			return e, nil, err
		}
		return e, deks[0], nil
	}
	seal := func(p provider.EDEKService, key, version string) sealed {
		t.Helper()
		es, err := p.Generate(ctx, key, 1)
		if err != nil || es[0].Version != version {
			t.Fatalf("an EDEK of %s: %+v, %v", version, es, err)
		}
		_, dek, err := open(p, es[0])
		if err != nil {
			t.Fatal(err)
		}
		return sealed{es[0], dek}
	}
	_, err := source.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	first := seal(source, "ledger", "ledger@0")
	if _, err := source.Roll(ctx, "ledger", nil); err != nil {
		t.Fatal(err)
	}
	second := seal(source, "ledger", "ledger@1")

	dir, site := kmstest.HSM(t)
	site[hadoopconf.SourceURI], site[hadoopconf.ReencryptionEnable] = kmsURI(sourceURL), "true"
	kmstest.WriteSite(t, dir, site)
	during := func(work func(url string)) {
		t.Helper()
		url, end := serveToEnd(t, dir)
		defer func() {
			if err := end(); err != nil {
				t.Error(err)
			}
		}()
		work(url)
	}
	during(func(string) {})
	backup := filepath.Join(t.TempDir(), "before.db")
	wants(t, true, []string{"metastore", "backup", "--conf", dir, "--out", backup})
	run := []string{"migrate", "run", "--conf", dir}
	wants(t, true, run)
	var after, own sealed
	during(func(url string) {
		here := clientOf(t, url)
		after = seal(here, "ledger", "ledger@2")
		if _, err := here.Create(ctx, provider.Spec{Name: "own", Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		own = seal(here, "own", "own@0")
	})
	restoreAndAdopt(t, dir, backup, "claviger migrate run --adopted NAME")
	// A user of the source makes a key of the name of one that was made here.
	if _, err := source.Create(ctx, provider.Spec{Name: "own", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "carol"}}); err != nil {
		t.Fatal(err)
	}

	out := wants(t, false, run, "do not delete it: files may be under it", "run claviger migrate run --adopted ledger")
	if strings.Contains(out, "delete the key that") {
		t.Errorf("it advises to delete the key:\n%s", out)
	}
	during(func(url string) {
		here := clientOf(t, url)
		if _, dek, err := open(here, after.edek); err != nil || !after.dek.Equal(dek) {
			t.Errorf("an EDEK of the adopted key: %v", err)
		}
		if _, err := here.Reencrypt(ctx, "ledger", []claviger.EDEK{first.edek}); err == nil ||
			!strings.Contains(err.Error(), "do not delete the key here") {
			t.Errorf("re-encryption under a key that may be another: %v", err)
		}
	})
	wants(t, false, append(run, "--adopted", "nokey"), "the source does not list that key; nothing was done")
	wants(t, false, append(run, "--adopted", "ledgr"), "the source does not list that key; did you mean ledger?")
	wants(t, false, append(run, "--all-adopted"), "1 done", "the source has a version own@0 too", "Do not delete it")
	during(func(url string) { // the source's own@0 closes no key that was not migrated from it
		if _, dek, err := open(clientOf(t, url), own.edek); err != nil || !own.dek.Equal(dek) {
			t.Errorf("an EDEK of a key that was made here: %v", err)
		}
	})
	if err := source.Delete(ctx, "own"); err != nil {
		t.Fatal(err)
	}
	wants(t, true, run)
	wants(t, true, []string{"migrate", "verify", "--conf", dir})
	during(func(url string) {
		here := clientOf(t, url)
		m, err := here.Metadata(ctx, "ledger", "own")
		if err != nil || m[0].ACLName() != "finance" || m[0].Description == nil || *m[0].Description != text ||
			m[1].ACLName() != "own" {
			t.Errorf("metadata: %+v, %v", m, err)
		}
		for _, s := range []sealed{first, second, after} {
			if _, dek, err := open(here, s.edek); err != nil || !s.dek.Equal(dek) {
				t.Errorf("an EDEK of %s: %v", s.edek.Version, err)
			}
			es, err := here.Reencrypt(ctx, "ledger", []claviger.EDEK{s.edek})
			if err != nil || es[0].Version != "ledger@2" {
				t.Errorf("re-encryption of an EDEK of %s: %+v, %v", s.edek.Version, es, err)
				continue
			}
			if _, dek, err := open(here, es[0]); err != nil || !s.dek.Equal(dek) {
				t.Errorf("an EDEK that was re-encrypted from %s: %v", s.edek.Version, err)
			}
		}
	})
	finish := []string{"migrate", "finish", "--conf", dir, "--edeks-done", "--unused-for", "0s"}
	wants(t, false, finish, "every key is here and can be used")
	delete(site, hadoopconf.SourceURI)
	delete(site, hadoopconf.ReencryptionEnable)
	kmstest.WriteSite(t, dir, site)
	wants(t, true, finish, "The migration is finished")
}

// TestAdoptedAfterABrokenRun: a migration from a source whose version names are no numbers
// was killed while a key was pending, and the backup of that moment was restored. The key
// that was adopted is taken over by the operator's word alone, and by no request of a user;
// keys that users made are not, whatever the operator says.
func TestAdoptedAfterABrokenRun(t *testing.T) {
	ctx := t.Context()
	dir, site := kmstest.HSM(t)
	kmstest.WriteSite(t, dir, site)
	source := memory.New(memory.Config{URI: "kms://http@old.example.com:16000/kms", OpaqueIDs: true})
	t.Cleanup(func() { _ = source.Close() })
	for _, name := range []string{"m", "mine"} {
		if _, err := source.Create(ctx, provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128,
			Attributes: map[string]string{claviger.ACLNameAttribute: "finance"}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := source.Roll(ctx, "m", nil); err != nil {
		t.Fatal(err)
	}
	with := func(cfg migrate.Config, work func(*kms.Service, *migrate.Engine)) {
		t.Helper()
		svc, err := kms.Open(ctx, dir, "test", hsm.Serve, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := svc.Close(); err != nil {
				t.Error(err)
			}
		}()
		cfg.Source = source
		e, err := svc.Engine(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		work(svc, e)
	}
	killed := errors.New("killed")
	with(migrate.Config{OnStep: func(key, step string) error {
		if key == "m" && step == "generated 1 of 2" {
			return killed
		}
		return nil
	}}, func(svc *kms.Service, e *migrate.Engine) {
		if _, err := svc.Primary.(provider.Writer).Create(ctx,
			provider.Spec{Name: "mine", Cipher: claviger.DefaultCipher, BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Run(ctx); !errors.Is(err, killed) {
			t.Fatalf("the run was not killed: %v", err)
		}
	})
	backup := filepath.Join(t.TempDir(), "pending.db")
	wants(t, true, []string{"metastore", "backup", "--conf", dir, "--out", backup})
	restoreAndAdopt(t, dir, backup)
	want := func(e *migrate.Engine, m migrate.State) *migrate.Result {
		t.Helper()
		r, err := e.Run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]migrate.State{}
		for _, k := range r.Keys {
			got[k.Key] = k.State
		}
		if want := map[string]migrate.State{"m": m, "mine": migrate.Conflict}; !maps.Equal(got, want) {
			t.Errorf("states %v, want %v", got, want)
		}
		return r
	}
	with(migrate.Config{}, func(_ *kms.Service, e *migrate.Engine) {
		want(e, migrate.Conflict)
		if _, err := e.RunKey(ctx, "m"); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), "--adopted m") {
			t.Errorf("at a user's request: %v", err)
		}
	})
	with(migrate.Config{Adopted: []string{"mine"}}, func(_ *kms.Service, e *migrate.Engine) {
		if _, err := e.Run(ctx); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), "claviger hsm adopt did not bring this key back") {
			t.Errorf("of a key that a user made: %v", err)
		}
	})
	// Killed between the key's change and the journal's word of it.
	with(migrate.Config{AllAdopted: true, OnStep: func(_, step string) error {
		if step == "retaken" {
			return killed
		}
		return nil
	}}, func(_ *kms.Service, e *migrate.Engine) {
		if _, err := e.Run(ctx); !errors.Is(err, killed) {
			t.Fatalf("the run was not killed: %v", err)
		}
	})
	with(migrate.Config{}, func(svc *kms.Service, e *migrate.Engine) {
		r := want(e, migrate.Done)
		i := slices.IndexFunc(r.Keys, func(k migrate.KeyLine) bool { return k.Key == "m" })
		if got := r.Keys[i].TargetVersions; !slices.Equal(got, []string{"m@0"}) || r.Counts.NewVersions != 0 {
			t.Errorf("taken over with %v, %d of them new", got, r.Counts.NewVersions)
		}
		theirs, err := source.Metadata(ctx, "m")
		if err != nil {
			t.Fatal(err)
		}
		ours, err := svc.Primary.Metadata(ctx, "m", "mine")
		if err != nil || ours[0].ACLName() != "finance" || !ours[0].Created.Equal(theirs[0].Created) ||
			ours[1].ACLName() != "mine" {
			t.Errorf("metadata: %+v, %v", ours, err)
		}
	})
}
