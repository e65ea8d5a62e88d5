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

// adoptSite is a trustee and a KT KMS that uses it.
type adoptSite struct {
	t         *testing.T
	conf, dir string // the folders of the KT KMS and of the trustee
	file      string // the trustee's store
}

// startTrustee starts the trustee, and configures the KT KMS for its address.
func (a *adoptSite) startTrustee() (stop func()) {
	a.t.Helper()
	url, stop := startTrustee(a.t, trusteeFlags{dir: a.dir})
	const kts = "cloudera.trustee.keyprovider."
	kmstest.WriteFile(a.t, filepath.Join(a.conf, "kts-site.xml"), kmstest.SiteXML(
		kts+"hostname-ACTIVE", strings.TrimPrefix(url, "https://"), kts+"org", "ORG",
		kts+"auth", "walrus", kts+"keylength", "2048", kts+"insecure", "true"))
	return stop
}

// openKMS opens the KT KMS.
func (a *adoptSite) openKMS() (*kms.Service, error) {
	a.t.Helper()
	log, err := newLogger("error")
	if err != nil {
		a.t.Fatal(err)
	}
	return kms.Open(a.t.Context(), a.conf, "test", 0, log)
}

// change changes keys with work while the trustee runs. Then it saves a copy of the trustee's store, with a suffix.
func (a *adoptSite) change(suffix string, work func(provider.Writer) (claviger.KeyVersion, error)) {
	a.t.Helper()
	stop := a.startTrustee()
	svc, err := a.openKMS()
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := work(svc.Primary); err != nil {
		a.t.Fatal(err)
	}
	stop()
	_ = svc.Close()
	s, err := sqlite.Open(a.t.Context(), a.file, false)
	if err != nil {
		a.t.Fatal(err)
	}
	kept, err := s.Save(a.t.Context(), suffix)
	if err == nil {
		err = os.Rename(kept, a.file+"."+suffix)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	_ = s.Close()
}

// TestTrusteeAdopt: a trustee's store from before a roll is in use. recover keeps the newer version and prints the
// command that the KT KMS needs. After that command the version can be used.
func TestTrusteeAdopt(t *testing.T) {
	dir := newTrustee(t)
	a := &adoptSite{t, t.TempDir(), dir, filepath.Join(dir, location.FileName)}
	kmstest.WriteFile(t, filepath.Join(a.conf, "kms-site.xml"), kmstest.SiteXML("hadoop.kms.key.provider.uri",
		"keytrustee://file@"+filepath.Join(a.conf, ".keytrustee")))
	if _, err := openKeyTrustee(t.Context(), a.conf); err == nil || !strings.Contains(err.Error(), ".keytrustee") {
		t.Fatalf("without an identity: %v", err)
	}
	// The first start of the KMS makes the identity.
	a.change("before", func(p provider.Writer) (claviger.KeyVersion, error) {
		return p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256})
	})
	a.change("after", func(p provider.Writer) (claviger.KeyVersion, error) { return p.Roll(t.Context(), "k", nil) })
	for _, end := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(a.file + end)
	}
	if err := os.Rename(a.file+".before", a.file); err != nil {
		t.Fatal(err)
	}
	version := a.recover()
	defer a.startTrustee()()
	if svc, err := a.openKMS(); err == nil {
		_ = svc.Close()
		t.Error("the KMS starts although an acknowledged version belongs to no key")
	}
	if out, err := command(t, "trustee", "adopt", "--conf", a.conf); err != nil ||
		!strings.Contains(out, version+"  made 2") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := command(t, "trustee", "adopt", "--conf", a.conf, version); err != nil ||
		!strings.Contains(out, "adopted "+version) {
		t.Fatalf("%v: %s", err, out)
	}
	svc, err := a.openKMS()
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	if v, err := svc.Primary.Version(t.Context(), version); err != nil || v.Name != version {
		t.Errorf("%v", err)
	}
}

// recover recovers the store from the copy after the roll. It returns the version to adopt.
func (a *adoptSite) recover() (version string) {
	a.t.Helper()
	out, err := command(a.t, "trustee", "recover", "--confdir", a.dir, "--revive", "kk", a.file+".after")
	if exited(err) != exitRefused ||
		!strings.Contains(out, "no other deposit, of that name; did you mean k?; nothing was changed") {
		a.t.Errorf("a name that is not in the file: %v: %s", err, out)
	}
	out, err = command(a.t, "trustee", "recover", "--confdir", a.dir, "--revive", "k")
	if exited(err) != exitUsage {
		a.t.Errorf("a name without a file: %v: %s", err, out)
	}
	out, err = command(a.t, "trustee", "recover", "--confdir", a.dir, a.file+".after")
	for _, word := range strings.Fields(out) {
		if strings.HasPrefix(word, `"k@`) {
			version = strings.Trim(word, `",`)
		}
	}
	if err == nil || version == "" ||
		!strings.Contains(out, "1 versions cannot be used before they are adopted: keep "+a.file+".after") {
		a.t.Fatalf("%v: %s", err, out)
	}
	return version
}

// exited returns the exit status of an error of command; -1 if the error has none.
func exited(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}
