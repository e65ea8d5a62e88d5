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

// TestFolderTakenAway: a KMS whose folder, with the only private key, is moved, removed,
// replaced or damaged under it changes no key and is not ready until the key is back. What
// is there goes on opening.
func TestFolderTakenAway(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	p := s.must(dir)
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	v, err := p.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	soft := p.(provider.SoftDeleter)
	spec.Name = "deleted"
	old, err := p.Create(ctx, spec)
	if err == nil {
		err = p.Delete(ctx, "deleted")
	}
	if err != nil {
		t.Fatal(err)
	}
	other, err := trustee.NewFolder(filepath.Join(t.TempDir(), ".keytrustee"), ids()[1])
	if err != nil {
		t.Fatal(err)
	}
	spec.Name = "new"
	changes := map[string]func() error{
		"creation":    func() error { _, err := p.Create(ctx, spec); return err },
		"roll":        func() error { _, err := p.Roll(ctx, "k", nil); return err },
		"deletion":    func() error { return p.Delete(ctx, "k") },
		"restoration": func() error { return soft.Undelete(ctx, "deleted", old.Name) },
		"purge":       func() error { return soft.Purge(ctx, "deleted", old.Name) },
	}
	count := func() int { return len(s.records()) }
	away := dir + ".away"
	ring := filepath.Join(dir, trustee.PrivateRing)
	for _, c := range []struct {
		what  string
		do    func() error
		words string
	}{
		{"moved", func() error { return nil }, "no such file"},
		{"an empty mount point", func() error { return os.Mkdir(dir, 0o700) }, "no such file"},
		{"another identity's", func() error { return os.CopyFS(dir, os.DirFS(other.Path)) }, "it holds " +
			ids()[1].String()},
		{"without the private ring", func() error {
			if err := os.CopyFS(dir, os.DirFS(away)); err != nil {
				return err
			}
			return os.Remove(ring)
		}, "no such file"},
		{"with an overwritten ring", func() error {
			if err := os.CopyFS(dir, os.DirFS(away)); err != nil {
				return err
			}
			return os.WriteFile(ring, []byte("random"), 0o600)
		}, "is no OpenPGP key ring"},
	} {
		if err := os.Rename(dir, away); err != nil {
			t.Fatal(err)
		}
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		before := count()
		for name, change := range changes {
			if err := change(); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "the "+
				"private key with which this KMS runs is not in "+dir) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s, %s: %v", c.what, name, err)
			}
		}
		if err := p.(*keytrustee.Provider).CheckPlace(ctx); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s, readiness: %v", c.what, err)
		}
		if after := count(); after != before {
			t.Errorf("%s: the trustee has %d records, had %d", c.what, after, before)
		}
		if err := p.(provider.BlockEncrypter).EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
			t.Errorf("%s: what is there does not open: %v", c.what, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(away, dir); err != nil {
			t.Fatal(err)
		}
		if err := p.(*keytrustee.Provider).CheckPlace(ctx); err != nil {
			t.Errorf("%s, and put back: %v", c.what, err)
		}
	}
	// The same key in other files, as from a backup.
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(away)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"creation", "roll", "restoration", "deletion"} {
		if err := changes[name](); err != nil {
			t.Errorf("after a restoration, %s: %v", name, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestNoIdentityInAnEmptyPlace: where a KMS had its folder, a later start that finds
// nothing makes no identity, which could open no key, and nothing else there either.
func TestNoIdentityInAnEmptyPlace(t *testing.T) {
	s := newSite(t)
	s.set["claviger.keytrustee.shared.organization"] = "true" // else the trustee refuses a second identity
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
		for _, want := range []string{dir + " is not there, or empty", first.Identity.String(), "Put the folder back",
			"remove " + mark} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q", err, want)
			}
		}
		if list, err := os.ReadDir(dir); len(list) > 0 || mounted != (err == nil) {
			t.Errorf("in the empty place: %v, %v", list, err)
		}
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if err := s.must(dir).Close(); err != nil {
		t.Errorf("where the operator gives it up: %v", err)
	}
	if second, err := trustee.LoadFolder(dir); err != nil || second.Identity.String() == first.Identity.String() {
		t.Errorf("%v", err)
	}
	// An identity that the trustee refused was never used: no mark keeps its place.
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

// TestDoubt: a folder is a KMS's own while the KMS runs and, as it was at the KMS's last
// start, afterwards; of one that was copied or restored nothing is sure until a KMS is
// started from it again. Who uses a copy as a source leaves no mark.
func TestDoubt(t *testing.T) {
	s := newSite(t)
	base := t.TempDir()
	dir, copied := filepath.Join(base, ".keytrustee"), filepath.Join(t.TempDir(), ".keytrustee")
	want := func(when, dir, sure, doubt string) {
		t.Helper()
		said, err := keytrustee.Doubt(dir)
		if sure != "" && (err == nil || !strings.Contains(err.Error(), sure)) || sure == "" &&
			(err != nil || !strings.Contains(said, doubt)) {
			t.Errorf("%s: %q, %v", when, said, err)
		}
	}
	p := s.must(dir)
	want("while it runs", dir, "is in use by a Key Trustee KMS, process ", "")
	for _, gone := range []string{filepath.Join(dir, keytrustee.ServedFile), dir + "." + keytrustee.ServedFile} {
		if err := os.Remove(gone); err != nil {
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
	want("after its end", dir, "is no copy: a Key Trustee KMS was started from it at 20", "")
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
	want("restored and started", dir, "is no copy", "")

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
