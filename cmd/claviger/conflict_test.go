package main

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/secret"
)

// TestRolledAtTheSource: a source that numbers its versions rolls a key after it was
// migrated, so that one name is two keys. The server notices by itself, opens no EDEK of
// that name, and takes no number of the source's for its own next version. The operator's
// word ends it; and a gap of numbers keeps it from happening.
func TestRolledAtTheSource(t *testing.T) {
	ctx := t.Context()
	sourceURL, stopSource := numberingSource(t)
	defer func() {
		if err := stopSource(); err != nil {
			t.Error(err)
		}
	}()
	client := func(url string) *kmsclient.Provider { return clientOf(t, url) }
	open := func(p *kmsclient.Provider, e claviger.EDEK) (secret.Bytes, error) {
		key, _ := claviger.KeyOfVersion(e.Version)
		deks, err := p.Unwrap(ctx, key, "", []claviger.EDEK{e})
		if err != nil {
			return nil, err
		}
		return deks[0], nil
	}
	seal := func(p *kmsclient.Provider, key, version string) sealed {
		t.Helper()
		es, err := p.Generate(ctx, key, 1)
		if err != nil {
			t.Fatal(err)
		}
		if version != "" && es[0].Version != version {
			t.Fatalf("an EDEK is under %s, want %s", es[0].Version, version)
		}
		dek, err := open(p, es[0])
		if err != nil {
			t.Fatal(err)
		}
		return sealed{es[0], dek}
	}
	opens := func(what string, p *kmsclient.Provider, s sealed) {
		t.Helper()
		if dek, err := open(p, s.edek); err != nil || !dek.Equal(s.dek) {
			t.Errorf("%s: an EDEK of %s: %v", what, s.edek.Version, err)
		}
	}
	roll := func(p *kmsclient.Provider, key string) {
		t.Helper()
		if _, err := p.Roll(ctx, key, nil); err != nil {
			t.Fatal(err)
		}
	}
	source := client(sourceURL)
	spec := provider.Spec{Name: "ledger", Cipher: claviger.DefaultCipher, BitLength: 128}
	if _, err := source.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	first := seal(source, "ledger", "ledger@0")

	dir, tok := t.TempDir(), softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	site := map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.key.authorization.enable": "false", "claviger.audit.file": filepath.Join(dir, "audit.log"),
		hadoopconf.SourceURI: kmsURI(sourceURL), hadoopconf.ReencryptionEnable: "true", "claviger.source.compare.interval": "100ms",
	}
	writeSite(t, dir, site)
	migrate := func(want bool, args ...string) string {
		t.Helper()
		out, err := command(t, append([]string{"migrate"}, append(args, "--conf", dir)...)...)
		if (err == nil) != want {
			t.Fatalf("migrate %v: %v\n%s", args, err, out)
		}
		return out
	}
	migrate(true, "run")
	url, end := serveToEnd(t, dir)
	ended := false
	defer func() {
		if !ended {
			_ = end()
		}
	}()
	here := client(url)
	ours := seal(here, "ledger", "ledger@1")
	roll(source, "ledger")
	var err error
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit) && err == nil; time.Sleep(50 * time.Millisecond) {
		_, err = open(here, ours.edek)
	}
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "'ledger@1' is one key here and another one") {
		t.Fatalf("an EDEK of a name that is two keys: %v, want a 503", err)
	}
	// At a start the sources are compared before anything is opened.
	if err := end(); err != nil {
		t.Error(err)
	}
	roll(source, "ledger")
	roll(source, "ledger")
	url, end = serveToEnd(t, dir)
	here = client(url)
	if _, err := open(here, ours.edek); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("after a restart: %v, want a 503", err)
	}
	theirs := seal(source, "ledger", "ledger@3")
	opens("the source's older version", here, first)
	opens("a version of the source that is not here", here, theirs)
	roll(here, "ledger")
	if n, ok := claviger.VersionNumber(seal(here, "ledger", "").edek.Version); !ok || n < 4 {
		t.Errorf("rolled here to number %d, which the source has too", n)
	}
	res, err := http.Get(strings.TrimSuffix(url, "/kms") + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(page), "versions that are two keys") || !strings.Contains(string(page), "ledger@1 of kms://") {
		t.Errorf("%s, %v: %s", res.Status, err, page)
	}
	if out := migrate(false, "verify"); !strings.Contains(out, "set claviger.migration.ours to ledger@1") {
		t.Errorf("verify: %s", out)
	}
	ended = true
	if err := end(); err != nil {
		t.Error(err)
	}

	// Nothing was made through the source meanwhile. The next key gets room for rolls.
	site["claviger.migration.ours"], site["claviger.migration.gap"] = "ledger@1", "10"
	writeSite(t, dir, site)
	spec.Name = "books"
	if _, err := source.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	migrate(true, "run")
	migrate(true, "verify")
	url, end = serveToEnd(t, dir)
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	here = client(url)
	opens("by the operator's word", here, ours)
	roll(source, "books")
	opens("rolled at the source, with a gap", here, seal(source, "books", "books@1"))
	seal(here, "books", "books@11")
	migrate(true, "verify")
}
