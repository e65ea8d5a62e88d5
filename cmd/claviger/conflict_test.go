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
	"claviger/kms/kmstest"
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
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	site := map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host":  "127.0.0.1", "hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file": filepath.Join(dir, "audit.log"),
		hadoopconf.SourceURI:  kmsURI(sourceURL), hadoopconf.ReencryptionEnable: "true",
		"claviger.source.compare.interval": "100ms",
	}
	kmstest.WriteSite(t, dir, site)
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
	limit := time.Now().Add(20 * time.Second)
	for ; time.Now().Before(limit) && err == nil; time.Sleep(50 * time.Millisecond) {
		_, err = open(here, ours.edek)
	}
	if !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "'ledger@1' is one key here and another one") {
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
	if err != nil || res.StatusCode != http.StatusOK ||
		!strings.Contains(string(page), "versions that are two keys") ||
		!strings.Contains(string(page), "ledger@1 of kms://") {
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
	kmstest.WriteSite(t, dir, site)
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

// TestDeletedForAConflict: two keys came from a source that numbers its versions, and that
// rolls them to versions with the names of those here. One was used here, one was not, and both
// are deleted here. The source opens EDEKs of the unused one. Nothing opens or
// re-encrypts EDEKs of the used one, until the key is back or the operator says whose they are.
func TestDeletedForAConflict(t *testing.T) {
	ctx := t.Context()
	sourceURL, stopSource := numberingSource(t)
	defer func() {
		if err := stopSource(); err != nil {
			t.Error(err)
		}
	}()
	source := clientOf(t, sourceURL)
	open := func(p *kmsclient.Provider, e claviger.EDEK) (secret.Bytes, error) {
		key, _ := claviger.KeyOfVersion(e.Version)
		deks, err := p.Unwrap(ctx, key, "", []claviger.EDEK{e})
		if err != nil {
			return nil, err
		}
		return deks[0], nil
	}
	seal := func(p *kmsclient.Provider, version string) sealed {
		t.Helper()
		key, _ := claviger.KeyOfVersion(version)
		es, err := p.Generate(ctx, key, 1)
		if err != nil || es[0].Version != version {
			t.Fatalf("%v, %v, want an EDEK of %s", es, err, version)
		}
		dek, err := open(p, es[0])
		if err != nil {
			t.Fatal(err)
		}
		return sealed{es[0], dek}
	}
	for _, key := range []string{"fresh", "used"} {
		spec := provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128}
		if _, err := source.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	dir, tok := t.TempDir(), softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	site := map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, "claviger.audit.file": filepath.Join(dir, "audit.log"),
		hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db"), hadoopconf.SourceURI: kmsURI(sourceURL),
		"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.key.authorization.enable": "false",
		hadoopconf.ReencryptionEnable: "true", "claviger.source.compare.interval": "100ms",
		"claviger.purge.min.unused": "0",
	}
	kmstest.WriteSite(t, dir, site)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"),
		kmstest.SiteXML("keytrustee.kms.acl.UNDELETE", "*", "keytrustee.kms.acl.PURGE", "*"))
	migrate := func(want bool, args ...string) string {
		t.Helper()
		out, err := command(t, append([]string{"migrate"}, append(args, "--conf", dir)...)...)
		if (err == nil) != want {
			t.Fatalf("migrate %v: %v\n%s", args, err, out)
		}
		return out
	}
	migrate(true, "run")
	var here *kmsclient.Provider
	var end func() error
	running := false
	start := func() {
		var url string
		url, end = serveToEnd(t, dir)
		here, running = clientOf(t, url), true
	}
	stop := func() {
		if err := end(); err != nil {
			t.Error(err)
		}
		running = false
	}
	defer func() {
		if running {
			stop()
		}
	}()
	start()
	ours := seal(here, "used@1")
	stop()
	for _, key := range []string{"fresh", "used"} {
		if _, err := source.Roll(ctx, key, nil); err != nil {
			t.Fatal(err)
		}
	}
	fresh, used := seal(source, "fresh@1"), seal(source, "used@1")
	refused := func(when string, kind claviger.Kind) {
		t.Helper()
		for what, e := range map[string]claviger.EDEK{"the source's": used.edek, "ours": ours.edek} {
			if _, err := open(here, e); !claviger.Is(err, kind) {
				t.Errorf("%s: %s: %v, want a refusal", when, what, err)
			}
		}
	}
	opens := func(when string, s sealed) {
		t.Helper()
		if dek, err := open(here, s.edek); err != nil || !dek.Equal(s.dek) {
			t.Errorf("%s: an EDEK of %s: %v", when, s.edek.Version, err)
		}
	}
	start()
	refused("in conflict", claviger.Unavailable)
	for _, key := range []string{"fresh", "used"} {
		if err := here.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	refused("deleted", claviger.Unavailable)
	opens("deleted", fresh)
	stop()
	if out := migrate(false, "run"); !strings.Contains(out, "claviger key undelete used") {
		t.Errorf("run: %s", out)
	}
	start()
	refused("after a restart", claviger.Unavailable)
	opens("taken over again", fresh)
	again, err := here.Reencrypt(ctx, "fresh", []claviger.EDEK{fresh.edek})
	if err != nil || again[0].Version != "fresh@2" {
		t.Fatalf("re-encrypted: %v, %v", again, err)
	}
	opens("re-encrypted", sealed{again[0], fresh.dek})
	if err := here.Undelete(ctx, "used", ""); err != nil {
		t.Fatal(err)
	}
	refused("back", claviger.Unavailable)
	if _, err := here.Reencrypt(ctx, "used", []claviger.EDEK{used.edek}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("re-encryption of what is in conflict: %v", err)
	}
	if err := here.Delete(ctx, "used"); err != nil {
		t.Fatal(err)
	}
	if err := here.Purge(ctx, "used", ""); err != nil {
		t.Fatal(err)
	}
	refused("purged", claviger.Unavailable)
	stop()
	out := migrate(false, "finish", "--edeks-done")
	if !strings.Contains(out, "set claviger.migration.theirs to used@1") {
		t.Errorf("finish: %s", out)
	}
	site["claviger.migration.theirs"] = "used@1"
	kmstest.WriteSite(t, dir, site)
	start()
	opens("by the operator's word", used)
}
