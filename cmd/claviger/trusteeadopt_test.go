package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/provider"
	"claviger/trustee/location"
	"claviger/trustee/server/sqlite"
)

// TestTrusteeAdopt: recover says which version it has kept and what is to be done, and
// that command, at the KT KMS, has it open.
func TestTrusteeAdopt(t *testing.T) {
	conf := t.TempDir()
	dir := newTrustee(t)
	file := filepath.Join(dir, location.FileName)
	url, stop := startTrustee(t, trusteeFlags{dir: dir})
	write := func(name string, pairs ...string) {
		kmstest.WriteFile(t, filepath.Join(conf, name), kmstest.SiteXML(pairs...))
	}
	const kts = "cloudera.trustee.keyprovider."
	site := func(url string) {
		write("kts-site.xml", kts+"hostname-ACTIVE", strings.TrimPrefix(url, "https://"), kts+"org", "ORG",
			kts+"auth", "walrus", kts+"keylength", "2048", kts+"insecure", "true")
	}
	site(url)
	write("kms-site.xml", "hadoop.kms.key.provider.uri", "keytrustee://file@"+filepath.Join(conf, ".keytrustee"))
	if _, err := openKeyTrustee(t.Context(), conf); err == nil || !strings.Contains(err.Error(), ".keytrustee") {
		t.Fatalf("without an identity: %v", err)
	}
	// A KMS makes one at its first start.
	log, err := newLogger("error")
	if err != nil {
		t.Fatal(err)
	}
	svc, err := kms.Open(t.Context(), conf, "test", 0, log)
	if err != nil {
		t.Fatal(err)
	}
	p := svc.Primary
	if _, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
		BitLength: 256}); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, name := range []string{"before", "after"} {
		s, err := sqlite.Open(t.Context(), file, false)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := s.Save(t.Context(), name)
		if err == nil {
			err = os.Rename(kept, file+"."+name)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		if name == "after" {
			break
		}
		url, stop = startTrustee(t, trusteeFlags{dir: dir})
		site(url)
		_ = svc.Close()
		if svc, err = kms.Open(t.Context(), conf, "test", 0, log); err != nil {
			t.Fatal(err)
		}
		if _, err := svc.Primary.Roll(t.Context(), "k", nil); err != nil {
			t.Fatal(err)
		}
		stop()
	}
	version := ""
	_ = svc.Close()
	for _, end := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(file + end)
	}
	if err := os.Rename(file+".before", file); err != nil {
		t.Fatal(err)
	}
	out, err := command(t, "trustee", "recover", "--confdir", dir, "--revive", "kk", file+".after")
	if exited(err) != exitRefused ||
		!strings.Contains(out, "no other deposit, of that name; did you mean k?; nothing was changed") {
		t.Errorf("a name that the file does not hold: %v: %s", err, out)
	}
	if out, err := command(t, "trustee", "recover", "--confdir", dir, "--revive", "k"); exited(err) != exitUsage {
		t.Errorf("a name without a file: %v: %s", err, out)
	}
	out, err = command(t, "trustee", "recover", "--confdir", dir, file+".after")
	for _, word := range strings.Fields(out) {
		if strings.HasPrefix(word, `"k@`) {
			version = strings.Trim(word, `",`)
		}
	}
	if err == nil || version == "" ||
		!strings.Contains(out, "1 versions cannot be used before they are adopted: keep "+file+".after") {
		t.Fatalf("%v: %s", err, out)
	}
	url, stop = startTrustee(t, trusteeFlags{dir: dir})
	defer stop()
	site(url)
	if svc, err := kms.Open(t.Context(), conf, "test", 0, log); err == nil {
		_ = svc.Close()
		t.Error("the KMS starts although an acknowledged version is in no key")
	}
	if out, err := command(t, "trustee", "adopt", "--conf", conf); err != nil ||
		!strings.Contains(out, version+"  made 2") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := command(t, "trustee", "adopt", "--conf", conf, version); err != nil ||
		!strings.Contains(out, "adopted "+version) {
		t.Fatalf("%v: %s", err, out)
	}
	if svc, err = kms.Open(t.Context(), conf, "test", 0, log); err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	if v, err := svc.Primary.Version(t.Context(), version); err != nil || v.Name != version {
		t.Errorf("%v", err)
	}
}

// exited returns the exit status that err, of command, tells; -1 where it tells none.
func exited(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}
