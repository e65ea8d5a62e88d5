package jceks

import (
	"bytes"
	"crypto/aes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/keystore"
	"claviger/provider"
	"claviger/secret"
)

// storeWith makes a keystore file with keys of these names.
func storeWith(t *testing.T, names ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "made")
	p := openFile(t, path, hadoopPassword)
	for _, n := range names {
		mustCreate(t, p, n)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var stamp = regexp.MustCompile(`\d{13}`)

// files lists the names in the folder, without the lock file. It replaces times by MS.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			names = append(names, stamp.ReplaceAllString(e.Name(), "MS"))
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// TestLoadStates opens the keystore in every state in which Hadoop or this program can leave the files. after has the
// files after Open.
func TestLoadStates(t *testing.T) {
	one, both := storeWith(t, "first"), storeWith(t, "first", "second")
	truncated := both[:len(both)/2]
	for _, tc := range []struct {
		name  string
		files map[string][]byte
		keys  string
		after string
		write string // the files after a write; "" if they are those of after
	}{
		{"nothing", nil, "", "", "ks"},
		{"main", map[string][]byte{"ks": one}, "first", "ks", ""},
		{"main with old", map[string][]byte{"ks": both, "ks_OLD": one, ".ks_OLD.crc": {1}}, "first second", "ks", ""},
		{"damaged main with old", map[string][]byte{"ks": truncated, ".ks.crc": {2}, "ks_OLD": one, ".ks_OLD.crc": {1}},
			"first", ".ks.crc .ks_CORRUPTED_MS.crc ks ks_CORRUPTED_MS", ".ks_CORRUPTED_MS.crc ks ks_CORRUPTED_MS"},
		{"new alone", map[string][]byte{"ks_NEW": both, ".ks_NEW.crc": {1}}, "first second", ".ks.crc ks", "ks"},
		{"new and old", map[string][]byte{"ks_NEW": both, "ks_OLD": one}, "first second", "ks", ""},
		{"truncated new and old", map[string][]byte{"ks_NEW": truncated, "ks_OLD": one}, "first", "ks", ""},
		{"old alone", map[string][]byte{"ks_OLD": one}, "first", "ks", ""},
		{"truncated new alone, of the very first write", map[string][]byte{"ks_NEW": truncated}, "", "ks_NEW",
			"ks ks_NEW_ORPHANED_MS"},
		{"our temporary file", map[string][]byte{"ks": one, ".ks.tmp": truncated}, "first", ".ks.tmp ks", "ks"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range tc.files {
				put(t, filepath.Join(dir, name), data)
			}
			p := openFile(t, filepath.Join(dir, "ks"), hadoopPassword)
			keys, err := p.Keys(t.Context())
			if got := strings.Join(keys, " "); err != nil || got != tc.keys {
				t.Errorf("keys %q, %v; want %q", got, err, tc.keys)
			}
			if got := files(t, dir); got != tc.after {
				t.Errorf("files %q, want %q", got, tc.after)
			}
			mustCreate(t, p, "third")
			if tc.write == "" {
				tc.write = tc.after
			}
			if got := files(t, dir); got != tc.write {
				t.Errorf("files after a write %q, want %q", got, tc.write)
			}
			again := openFile(t, filepath.Join(dir, "ks"), hadoopPassword)
			keys, err = again.Keys(t.Context())
			if got, want := strings.Join(keys, " "), strings.TrimSpace(tc.keys+" third"); err != nil || got != want {
				t.Errorf("keys after a write %q, %v; want %q", got, err, want)
			}
		})
	}
	for _, tc := range crashStates {
		t.Run("ours, "+tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ks")
			tc.make(t, path, one, both)
			p := openFile(t, path, hadoopPassword)
			keys, err := p.Keys(t.Context())
			want := map[bool]string{false: "first", true: "first second"}[tc.after]
			if got := strings.Join(keys, " "); err != nil || got != want {
				t.Errorf("keys %q, %v; want %q", got, err, want)
			}
			mustCreate(t, p, "third")
			if got := files(t, filepath.Dir(path)); got != "ks" {
				t.Errorf("files after a write %q", got)
			}
		})
	}
}

// TestDamagedWhileOpen checks an open provider whose file is damaged or missing: readers get the last state, the file
// is not overwritten, and Check fails with the reason.
func TestDamagedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ks")
	p := openFile(t, path, hadoopPassword)
	mustCreate(t, p, "k")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"damaged": func() error { return os.WriteFile(path, good[:500], 0o600) },
		"gone":    func() error { return os.Remove(path) },
		"while Hadoop writes": func() error {
			return os.Rename(path, path+"_OLD")
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if cur, err := p.Current(t.Context(), "k"); err != nil || cur.Name != "k@0" {
				t.Errorf("%s: Current: %q, %v", name, cur.Name, err)
			}
		}
		if err := p.Check(t.Context()); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(),
			path) {
			t.Errorf("%s: Check: %v", name, err)
		}
		if name != "while Hadoop writes" { // our write completes that write, as Hadoop would
			if _, err := p.Roll(t.Context(), "k", nil); !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("%s: Roll: %v, want kind Unavailable", name, err)
			}
		}
		_ = os.Remove(path + "_OLD")
		put(t, path, good)
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("%s, and repaired: %v", name, err)
		}
	}
	if _, err := p.Roll(t.Context(), "k", nil); err != nil {
		t.Error(err)
	}
}

// TestModes checks that only the owner can read a new keystore, and that an existing keystore keeps its mode.
func TestModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ks")
	p := openFile(t, path, hadoopPassword)
	want := func(mode fs.FileMode) {
		t.Helper()
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("mode %v, %v; want %v", st.Mode().Perm(), err, mode)
		}
	}
	mustCreate(t, p, "k")
	want(0o600)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "l")
	want(0o640)
}

// TestSymbolicLink checks that a change through a symbolic link writes the target and keeps the link.
func TestSymbolicLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	put(t, target, storeWith(t, "first"))
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, openFile(t, link, hadoopPassword), "second")
	if st, err := os.Lstat(link); err != nil || st.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is no longer a symbolic link: %v", err)
	}
	keys, err := openFile(t, target, hadoopPassword).Keys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Errorf("keys %q, %v", keys, err)
	}
}

// newAtKeys makes the keys at, and keys whose names versions of at, new and into could have. It returns these keys'
// first versions, by key name.
func newAtKeys(t *testing.T, p *Provider) map[string]claviger.KeyVersion {
	t.Helper()
	// No version can have these names.
	for _, name := range []string{"v@01", "v@+1", "v@-1", "v@x", "a@in@name", "v@2147483648"} {
		mustCreate(t, p, name)
	}
	mustCreate(t, p, "at")
	others := map[string]claviger.KeyVersion{}
	for _, name := range []string{"at@1", "at@2", "new@0", "into@4", "into@6"} {
		others[name] = mustCreate(t, p, name)
	}
	return others
}

// addAtVersions makes versions of at, new and into. They must skip the names of other keys.
func addAtVersions(t *testing.T, p *Provider) {
	t.Helper()
	if v, err := p.Roll(t.Context(), "at", nil); err != nil || v.Name != "at@3" {
		t.Errorf("roll: %q, %v", v.Name, err)
	}
	if v, err := p.Roll(t.Context(), "at", nil); err != nil || v.Name != "at@4" {
		t.Errorf("second roll: %q, %v", v.Name, err)
	}
	if v, err := p.Create(t.Context(), specOf("new")); err != nil || v.Name != "new@1" {
		t.Errorf("create: %q, %v", v.Name, err)
	}
	if _, err := p.Import(t.Context(), claviger.Metadata{Name: "into", Cipher: claviger.DefaultCipher,
		BitLength: 128}, 3, 2, nil); err != nil {
		t.Error(err)
	}
}

func specOf(name string) provider.Spec {
	return provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
}

// wantVersionNames demands these versions of the key, and the last one as the current version.
func wantVersionNames(t *testing.T, p *Provider, key string, want ...string) {
	t.Helper()
	vs, err := p.Versions(t.Context(), key)
	if err != nil {
		t.Errorf("versions of %q: %v", key, err)
	}
	var got []string
	for _, v := range vs {
		got = append(got, v.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("versions of %q: %q, want %q", key, got, want)
	}
	ms, err := p.Metadata(t.Context(), key)
	cur, curErr := p.Current(t.Context(), key)
	if err := errors.Join(err, curErr); err != nil || cur.Name != want[len(want)-1] ||
		numberedVersion(key, ms[0].Versions-1) != cur.Name {
		t.Errorf("current version of %q: %q, %v", key, cur.Name, err)
	}
}

// TestAtInName checks a key with a name that a version of another key could have. It can be used and is listed as any
// other key, and neither of the two keys overwrites the other, whichever was made first.
func TestAtInName(t *testing.T) {
	p := openFile(t, filepath.Join(t.TempDir(), "ks"), hadoopPassword)
	others := newAtKeys(t, p)
	addAtVersions(t, p)
	wantVersionNames(t, p, "at", "at@0", "at@3", "at@4")
	wantVersionNames(t, p, "new", "new@1")
	wantVersionNames(t, p, "into", "into@7", "into@8", "into@9")
	all := []string{"a@in@name", "at", "at@1", "at@2", "into", "into@4", "into@6", "new", "new@0", "v@+1", "v@-1",
		"v@01", "v@2147483648", "v@x"}
	if keys, err := p.Keys(t.Context()); err != nil || !slices.Equal(keys, all) {
		t.Errorf("keys %q, %v; want %q", keys, err, all)
	}
	if _, err := p.Version(t.Context(), "at@1"); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a key's name taken for a version: %v", err)
	}
	for _, key := range []string{"at", "new", "into"} {
		if err := p.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for name, made := range others {
		if v, err := p.Version(t.Context(), made.Name); err != nil || !v.Material.Equal(made.Material) {
			t.Errorf("version of %q after another key was deleted: %v", name, err)
		}
		if v, err := p.Roll(t.Context(), name, nil); err != nil || v.Name != name+"@1" {
			t.Errorf("roll of %q: %q, %v", name, v.Name, err)
		}
		if err := p.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %q: %v", name, err)
		}
	}
	mustCreate(t, p, "b")
	if _, err := p.Create(t.Context(), specOf("b@0")); !claviger.Is(err, claviger.KeyExists) {
		t.Errorf("a key that has the name of a version: %v", err)
	}
	if list, err := p.Metadata(t.Context(), "b@0", "b"); err != nil || list[0] != nil || list[1] == nil {
		t.Errorf("metadata %+v, %v", list, err)
	}
}

// TestForeignEntries checks that a keystore with keytool's entries of other kinds can be used, and that changes keep
// these entries.
func TestForeignEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ks")
	copyFile(t, "../../keystore/testdata/keytool.jceks", path)
	p := openFile(t, path, "changeit")
	if m, err := p.Metadata(t.Context(), "rsa"); err != nil || m[0] != nil {
		t.Errorf("metadata of a private key: %+v, %v", m, err)
	}
	if _, err := p.Metadata(t.Context(), "aes"); !claviger.Is(err, claviger.Internal) ||
		!strings.Contains(err.Error(), `entry "aes" is a secret key without the metadata`) {
		t.Errorf("metadata of a secret key that Hadoop did not make: %v", err)
	}
	if _, err := p.Metadata(t.Context(), "des3"); !claviger.Is(err, claviger.Internal) ||
		!strings.Contains(err.Error(), "password of the whole keystore") {
		t.Errorf("an entry with another password: %v", err)
	}
	for _, name := range []string{"rsa", "trusted", "aes", "des3"} {
		if _, err := p.Create(t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
			BitLength: 128}); !claviger.Is(err, claviger.KeyExists) {
			t.Errorf("Create over %q: %v", name, err)
		}
	}
	mustCreate(t, p, "k")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := keystore.ParseJCEKS(data, secret.Bytes("changeit"))
	if err != nil || len(s.Aliases()) != 6 {
		t.Errorf("%q, %v", s.Aliases(), err)
	}
}

// TestOpenedOnce checks that parallel first uses of a version decrypt it once, and that it stays decrypted after a
// reload.
func TestOpenedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ks")
	copyFile(t, "testdata/hadoop.jceks", path)
	p := openFile(t, path, hadoopPassword)
	slotOf := func() *slot { return p.state.Load().slots["finance@1"] }
	if slotOf().opened.Load() != nil {
		t.Fatal("the entry was decrypted before its first use")
	}
	got := make([]*opened, 32)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = slotOf().open(p.file.password) })
	}
	wg.Wait()
	for _, o := range got {
		if o != got[0] || o.err != nil {
			t.Fatalf("decrypted more than once, or not at all: %v", o.err)
		}
	}
	mustCreate(t, openFile(t, path, hadoopPassword), "another")
	start := time.Now()
	if err := p.EncryptBlocks(t.Context(), "finance@1", make([]byte, aes.BlockSize)); err != nil {
		t.Fatal(err)
	}
	if slotOf().opened.Load() != got[0] {
		t.Errorf("this key was decrypted again after a change of another key (%v)", time.Since(start))
	}
}

// TestNothingShared checks that the caller owns given and returned material.
func TestNothingShared(t *testing.T) {
	p := openFile(t, filepath.Join(t.TempDir(), "ks"), hadoopPassword)
	v := mustCreate(t, p, "k")
	kept := bytes.Clone(v.Material)
	v.Material.Wipe()
	again, err := p.Version(t.Context(), "k@0")
	if err != nil || !again.Material.Equal(kept) {
		t.Errorf("wiping the returned material wiped the key, %v", err)
	}
}

func BenchmarkEncryptBlocks(b *testing.B) {
	p := openFile(b, filepath.Join(b.TempDir(), "ks"), hadoopPassword)
	mustCreate(b, p, "k")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		blocks := make([]byte, aes.BlockSize)
		for pb.Next() {
			if err := p.EncryptBlocks(b.Context(), "k@0", blocks); err != nil {
				b.Fatal(err)
			}
		}
	})
}
