package keytrustee_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

// folderTest has a KMS with the key k and the deleted key deleted.
type folderTest struct {
	*site
	p       *keytrustee.Provider
	dir     string // the folder of the KMS
	away    string // dir's name while it is moved away
	version string // of k
	changes map[string]func() error
}

func newFolderTest(t *testing.T) *folderTest {
	t.Helper()
	s, ctx := newSite(t), t.Context()
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	p, ok := s.must(dir).(*keytrustee.Provider)
	if !ok {
		t.Fatal("not a keytrustee.Provider")
	}
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	v, err := p.Create(ctx, spec)
	must(t, err)
	spec.Name = "deleted"
	old, err := p.Create(ctx, spec)
	must(t, err)
	must(t, p.Delete(ctx, "deleted"))
	spec.Name = "new"
	return &folderTest{s, p, dir, dir + ".away", v.Name, map[string]func() error{
		"creation":    func() error { _, err := p.Create(ctx, spec); return err },
		"roll":        func() error { _, err := p.Roll(ctx, "k", nil); return err },
		"deletion":    func() error { return p.Delete(ctx, "k") },
		"restoration": func() error { return p.Undelete(ctx, "deleted", old.Name) },
		"purge":       func() error { return p.Purge(ctx, "deleted", old.Name) },
	}}
}

// wantNoChange demands that every change and CheckPlace fail with a message that contains words, and that the version
// can still be used.
func (f *folderTest) wantNoChange(when, words string) {
	f.t.Helper()
	ctx := f.t.Context()
	before := len(f.records())
	for name, change := range f.changes {
		if err := change(); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "the "+
			"private key of this running KMS is no longer in "+f.dir) || !strings.Contains(err.Error(), words) {
			f.t.Errorf("%s, %s: %v", when, name, err)
		}
	}
	if err := f.p.CheckPlace(ctx); err == nil || !strings.Contains(err.Error(), words) {
		f.t.Errorf("%s, CheckPlace: %v", when, err)
	}
	if after := len(f.records()); after != before {
		f.t.Errorf("%s: the trustee has %d records, had %d", when, after, before)
	}
	if err := f.p.EncryptBlocks(ctx, f.version, make([]byte, 16)); err != nil {
		f.t.Errorf("%s: an existing version cannot be used: %v", when, err)
	}
}

// TestFolderTakenAway moves, removes, replaces and damages the folder of a running KMS, which has the only private key.
// The KMS must change no key and must not be ready until the private key is back. Existing keys can still be used.
func TestFolderTakenAway(t *testing.T) {
	f := newFolderTest(t)
	other, err := trustee.NewFolder(filepath.Join(t.TempDir(), ".keytrustee"), ids()[1])
	must(t, err)
	ring := filepath.Join(f.dir, trustee.PrivateRing)
	for _, c := range []struct {
		name  string
		do    func() error
		words string
	}{
		{"moved", func() error { return nil }, "no such file"},
		{"an empty mount point", func() error { return os.Mkdir(f.dir, 0o700) }, "no such file"},
		{"folder of another identity", func() error { return os.CopyFS(f.dir, os.DirFS(other.Path)) }, "it holds " +
			ids()[1].String()},
		{"without the private ring", func() error {
			if err := os.CopyFS(f.dir, os.DirFS(f.away)); err != nil {
				return err
			}
			return os.Remove(ring)
		}, "no such file"},
		{"with an overwritten ring", func() error {
			if err := os.CopyFS(f.dir, os.DirFS(f.away)); err != nil {
				return err
			}
			return os.WriteFile(ring, []byte("random"), 0o600)
		}, "is not an OpenPGP key ring"},
	} {
		must(t, os.Rename(f.dir, f.away))
		must(t, c.do())
		f.wantNoChange(c.name, c.words)
		must(t, os.RemoveAll(f.dir))
		must(t, os.Rename(f.away, f.dir))
		if err := f.p.CheckPlace(t.Context()); err != nil {
			t.Errorf("%s, and put back: %v", c.name, err)
		}
	}
	// The same key in new files, as after a restore from a backup.
	must(t, os.Rename(f.dir, f.away))
	must(t, os.CopyFS(f.dir, os.DirFS(f.away)))
	for _, name := range []string{"creation", "roll", "restoration", "deletion"} {
		if err := f.changes[name](); err != nil {
			t.Errorf("after a restore, %s: %v", name, err)
		}
	}
	must(t, f.p.Close())
}

// TestNoIdentityInAnEmptyFolder checks that a KMS that was started before makes nothing in a missing or empty folder. A
// new identity could open none of its keys.
func TestNoIdentityInAnEmptyFolder(t *testing.T) {
	s := newSite(t)
	s.set["claviger.keytrustee.shared.organization"] = "true" // otherwise the trustee refuses a second identity
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	if err := s.must(dir).Close(); err != nil {
		t.Fatal(err)
	}
	first, err := trustee.LoadFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	mark := dir + "." + keytrustee.ServedFile
	for _, mounted := range []bool{false, true} {
		if mounted {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.open(dir)
		for _, want := range []string{dir + " does not exist or is empty", first.Identity.String(),
			"Put the folder back", "remove " + mark} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q", err, want)
			}
		}
		if list, err := os.ReadDir(dir); len(list) > 0 || mounted != (err == nil) {
			t.Errorf("the folder contains %v, %v", list, err)
		}
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if err := s.must(dir).Close(); err != nil {
		t.Errorf("after the mark was removed: %v", err)
	}
	if second, err := trustee.LoadFolder(dir); err != nil || second.Identity.String() == first.Identity.String() {
		t.Errorf("%v", err)
	}
	// An identity that the trustee refused was never used, so its folder gets no mark.
	delete(s.set, "claviger.keytrustee.shared.organization")
	dir = filepath.Join(t.TempDir(), ".keytrustee")
	for range 2 {
		if _, err := s.open(dir); err == nil || !strings.Contains(err.Error(), "Unable to verify private key match") {
			t.Errorf("%v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMayBeOriginal: a folder is certainly no copy while its KMS runs, and afterwards if it is unchanged. A copied or
// restored folder may be the original until a KMS is started from it. The use of a copy as a source leaves no mark.
func TestMayBeOriginal(t *testing.T) {
	s := newSite(t)
	base := t.TempDir()
	dir, copied := filepath.Join(base, ".keytrustee"), filepath.Join(t.TempDir(), ".keytrustee")
	want := func(when, dir, wantErr, wantReason string) {
		t.Helper()
		reason, err := keytrustee.MayBeOriginal(dir)
		if wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) || wantErr == "" &&
			(err != nil || !strings.Contains(reason, wantReason)) {
			t.Errorf("%s: %q, %v", when, reason, err)
		}
	}
	p := s.must(dir)
	want("while it runs", dir, "is in use by a Key Trustee KMS, process ", "")
	for _, mark := range []string{filepath.Join(dir, keytrustee.ServedFile), dir + "." + keytrustee.ServedFile} {
		if err := os.Remove(mark); err != nil {
			t.Fatal(err)
		}
		want("while it runs, without a mark", dir, "is in use by a Key Trustee KMS", "")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	want("without a mark", dir, "", "no mark in it")
	if err := s.must(dir).Close(); err != nil {
		t.Fatal(err)
	}
	want("after its end", dir, "is not a copy: a Key Trustee KMS was started from it at 20", "")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	want("a copy", copied, "", "it was copied, moved or restored since")
	for _, step := range []error{os.Rename(dir, dir+".old"), os.CopyFS(dir, os.DirFS(copied))} {
		if step != nil {
			t.Fatal(step)
		}
	}
	want("restored", dir, "", "it was copied, moved or restored since")
	if err := s.must(dir).Close(); err != nil {
		t.Fatal(err)
	}
	want("restored and started", dir, "is not a copy", "")

	before, err := os.ReadDir(copied)
	if err != nil {
		t.Fatal(err)
	}
	s.env.Source = true
	if err := s.must(copied).Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadDir(copied)
	if names := func(list []os.DirEntry) (names []string) {
		for _, e := range list {
			names = append(names, e.Name())
		}
		return names
	}; err != nil || !slices.Equal(names(before), names(after)) {
		t.Errorf("%q, %v; was %q", names(after), err, names(before))
	}
	want("a copy that is a source", copied, "", "it was copied, moved or restored since")
}
