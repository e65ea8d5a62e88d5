package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/secret"
)

// numberingSource serves a KMS that numbers its versions, and lets the user hsmkms, as whom
// this process comes from now on, act for all.
func numberingSource(t *testing.T) (url string, stop func() error) {
	t.Helper()
	t.Setenv("HADOOP_USER_NAME", "hsmkms")
	old := t.TempDir()
	kmstest.WriteSite(t, old, map[string]string{
		hadoopconf.ProviderURI:                "jceks://file@" + filepath.Join(old, "kms.keystore"),
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false", "claviger.audit.file": filepath.Join(old, "audit.log"),
		"hadoop.kms.proxyuser.hsmkms.users": "*", "hadoop.kms.proxyuser.hsmkms.hosts": "*",
	})
	return serveToEnd(t, old)
}

func kmsURI(url string) string { return "kms://" + strings.Replace(url, "://", "@", 1) }

// clientOf is a client of a KMS, as alice.
func clientOf(t *testing.T, url string) *kmsclient.Provider {
	t.Helper()
	p, err := kmsclient.New(kmsURI(url), kmsclient.Options{User: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// sealed is an EDEK, and what it opens to.
type sealed struct {
	edek claviger.EDEK
	dek  secret.Bytes
}

// TestOldVersionsStayForeign: EDEKs of a source that numbers its versions are opened by
// the source, or not at all, whatever becomes of the key here: migrated, rolled, deleted,
// brought back, made anew when the source has gone. A version of ours never has the name
// of one of theirs, so that an old EDEK never opens to rubbish.
func TestOldVersionsStayForeign(t *testing.T) {
	ctx := t.Context()
	sourceURL, stopSource := numberingSource(t)
	client := func(url string) *kmsclient.Provider { return clientOf(t, url) }
	seal := func(p *kmsclient.Provider) sealed {
		t.Helper()
		es, err := p.Generate(ctx, "ledger", 1)
		if err != nil {
			t.Fatal(err)
		}
		deks, err := p.Unwrap(ctx, "ledger", "", es)
		if err != nil {
			t.Fatal(err)
		}
		return sealed{es[0], deks[0]}
	}
	// opens demands that each EDEK opens to its DEK, or gives an error.
	opens := func(when string, p *kmsclient.Provider, want bool, list ...sealed) {
		t.Helper()
		for _, s := range list {
			deks, err := p.Unwrap(ctx, "ledger", "", []claviger.EDEK{s.edek})
			switch {
			case err == nil && !deks[0].Equal(s.dek):
				t.Errorf("%s: an EDEK of %s opens to another DEK", when, s.edek.Version)
			case (err == nil) != want:
				t.Errorf("%s: an EDEK of %s: %v, want it to open: %t", when, s.edek.Version, err, want)
			}
		}
	}
	source := client(sourceURL)
	var theirs []sealed
	for n := range 3 {
		var err error
		if n == 0 {
			_, err = source.Create(ctx, provider.Spec{Name: "ledger", Cipher: claviger.DefaultCipher, BitLength: 128})
		} else {
			_, err = source.Roll(ctx, "ledger", nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, seal(source))
		if v := theirs[n].edek.Version; v != fmt.Sprintf("ledger@%d", n) {
			t.Fatalf("the source makes %s", v)
		}
	}

	dir, tok := t.TempDir(), softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	site := map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host":  "127.0.0.1", "hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file": filepath.Join(dir, "audit.log"),
	}
	named := map[string]string{hadoopconf.SourceURI: kmsURI(sourceURL), hadoopconf.ReencryptionEnable: "true"}
	for k, v := range site {
		named[k] = v
	}
	kmstest.WriteSite(t, dir, named)
	if out, err := command(t, "migrate", "run", "--conf", dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	url, end := serveToEnd(t, dir)
	here := client(url)
	wantCurrent := func(when string, n int) {
		t.Helper()
		ms, err := here.Metadata(ctx, "ledger")
		if err != nil || len(ms) != 1 || ms[0] == nil {
			t.Fatal(ms, err)
		}
		if s := seal(here); ms[0].Versions != n+1 || s.edek.Version != fmt.Sprintf("ledger@%d", n) {
			t.Errorf("%s: the metadata says %d, new EDEKs are of %s; want number %d", when,
				ms[0].Versions, s.edek.Version, n)
		}
	}
	wantCurrent("migrated", 3)
	opens("migrated", here, true, theirs...)
	ours := []sealed{seal(here)}
	if _, err := here.Roll(ctx, "ledger", nil); err != nil {
		t.Fatal(err)
	}
	wantCurrent("rolled", 4)
	ours = append(ours, seal(here))
	all := slices.Concat(theirs, ours)
	opens("rolled", here, true, all...)
	if err := here.Delete(ctx, "ledger"); err != nil {
		t.Fatal(err)
	}
	opens("deleted", here, true, theirs...)
	opens("deleted", here, false, ours...)

	// The source goes, the migration is ended, and somebody takes the name.
	if out, err := command(t, "migrate", "finish", "--conf", dir); err == nil ||
		!strings.Contains(out, "it is not confirmed") || strings.Contains(out, "was not migrated") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := stopSource(); err != nil {
		t.Error(err)
	}
	opens("deleted, without the source", here, false, all...)
	if err := end(); err != nil {
		t.Error(err)
	}
	kmstest.WriteSite(t, dir, site)
	// What is asked for now is noticed by the end: the source is needed.
	url, end = serveToEnd(t, dir)
	opens("without the source in the configuration", client(url), false, theirs[1])
	if err := end(); err != nil {
		t.Error(err)
	}
	if out, err := command(t, "migrate", "finish", "--conf", dir, "--edeks-done", "--unused-for", "1h"); err == nil ||
		!strings.Contains(out, "ledger@1 was asked for at") {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := command(t, "migrate", "status", "--conf", dir); err != nil ||
		!strings.Contains(out, " EDEKs of the source could not be opened, since it was not configured") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := command(t, "migrate", "finish", "--conf", dir, "--edeks-done", "--unused-for", "0s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Nobody may, until an administrator frees it.
	if out, err := command(t, "migrate", "free", "--conf", dir, "ledger"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	url, end = serveToEnd(t, dir)
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	here = client(url)
	if _, err := here.Create(ctx, provider.Spec{Name: "ledger", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	wantCurrent("made anew", 5)
	opens("made anew", here, false, all...)
	opens("made anew", here, true, seal(here))
}
