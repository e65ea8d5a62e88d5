package trustee

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"claviger"
)

// folder makes a folder with the first identity of pair, and with the second as the Key Trustee Server.
func folder(t *testing.T) (*Folder, string) {
	t.Helper()
	a, b := pair()
	path := filepath.Join(t.TempDir(), "kms-keytrustee", "keytrustee", ".keytrustee")
	f, err := NewFolder(path, a)
	if err != nil {
		t.Fatal(err)
	}
	f.Servers, f.Org, f.Registered = []*Party{&b.Party}, "ORG", time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	if err := f.Save(); err != nil {
		t.Fatal(err)
	}
	return f, path
}

// TestFolder: a saved folder is loaded as it was saved, and is not overwritten. Its files are for their owner alone.
func TestFolder(t *testing.T) {
	f, path := folder(t)
	a, b := pair()
	for _, name := range []string{ConfFile, PublicRing, PrivateRing} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(path, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
	got, err := LoadFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Identity.String() != a.String() || len(got.Servers) != 1 || got.Servers[0].String() != b.String() ||
		got.Org != f.Org || !got.Registered.Equal(f.Registered) || got.Path != path {
		t.Errorf("%+v", got)
	}
	sealed, err := a.Seal([]byte("s"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if text, err := got.Identity.Open(sealed, time.Now()); err != nil || string(text) != "s" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := NewFolder(path, b); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "never overwritten") {
		t.Errorf("a second identity: %v", err)
	}
	faults := func() (list []string) {
		for _, f := range SecretFiles(path) {
			if err := f.Refuse(); err != nil {
				list = append(list, err.Error())
			}
		}
		return list
	}
	if got := faults(); len(got) > 0 {
		t.Errorf("a new folder: %q", got)
	}
	ring := filepath.Join(path, PrivateRing)
	if err := os.Chmod(ring, 0o640); err != nil {
		t.Fatal(err)
	}
	if got := faults(); len(got) != 1 || got[0] != ring+" may be read by its group (mode 0640); cure: chmod go= "+ring {
		t.Errorf("a ring that its group may read: %q", got)
	}
}

// TestLoadFolderRefuses: if files are missing, damaged or of two hosts, the error names the file and the cure.
func TestLoadFolderRefuses(t *testing.T) {
	_, whole := folder(t)
	a, b := pair()
	other := filepath.Join(t.TempDir(), "other")
	if _, err := NewFolder(other, b); err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	if err := a.Public(&public); err != nil {
		t.Fatal(err)
	}
	from := func(dir, name string) func(*testing.T, string) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return writing(name, data)
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(filepath.Join(path, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, c := range map[string]struct {
		change func(t *testing.T, path string)
		want   []string
	}{
		"another host's secring": {from(other, PrivateRing), []string{"are not of one host", b.Fingerprint(),
			a.Fingerprint()}},
		"another host's pubring": {from(other, PublicRing), []string{"not our own key", a.Fingerprint()}},
		"another host's conf":    {from(other, ConfFile), []string{"are not of one host", b.Fingerprint()}},
		"a pubring without server": {writing(PublicRing, public.Bytes()), []string{"lacks the key of the Key Trustee " +
			"Server", b.String()}},
		"a public secring": {writing(PrivateRing, public.Bytes()), []string{"without its private part"}},
		"no conf":          {remove(ConfFile), []string{"has no " + ConfFile, "copy it"}},
		"no secring":       {remove(PrivateRing), []string{PrivateRing + " is missing", "together"}},
		"no pubring":       {remove(PublicRing), []string{PublicRing + " is missing", "together"}},
		"a broken conf":    {writing(ConfFile, []byte("LOCAL_FINGERPRINT=")), []string{ConfFile, "JSON"}},
		"an empty conf":    {writing(ConfFile, []byte("{}")), []string{"no LOCAL_FINGERPRINT"}},
		"a keybox in place of secring": {writing(PrivateRing, []byte("KBXf")), []string{"not an OpenPGP key " +
			"ring", "pubring.kbx"}},
		"a secring that is too long": {writing(PrivateRing, make([]byte, maxFolderFile+1)), []string{PrivateRing +
			" is longer than"}},
		"a locked subkey":         {writing(PrivateRing, lockedSubkey(t, a)), []string{"locked by a passphrase"}},
		"a conf that is too long": {writing(ConfFile, make([]byte, maxFolderFile+1)), []string{"longer than"}},
		"a copy of the folder into itself": {func(t *testing.T, path string) {
			tmp := filepath.Join(t.TempDir(), "x")
			moveFile(t, path, tmp)
			moveFile(t, tmp, filepath.Join(path, ".keytrustee"))
		}, []string{"one level too deep", ".keytrustee/.keytrustee"}},
		"scp -r of kms-keytrustee": {func(t *testing.T, path string) {
			tmp := filepath.Join(t.TempDir(), "x")
			moveFile(t, path, tmp)
			moveFile(t, tmp, filepath.Join(filepath.Dir(path), "kms-keytrustee", "keytrustee", ".keytrustee"))
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"one level too deep", "kms-keytrustee/keytrustee/.keytrustee"}},
		"no folder": {func(t *testing.T, path string) {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}, []string{"does not exist or is empty"}},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keytrustee", ".keytrustee")
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{ConfFile, PublicRing, PrivateRing} {
				from(whole, name)(t, path)
			}
			c.change(t, path)
			loadRefuses(t, path, c.want...)
		})
	}
}

// lockedSubkey returns a private ring of id whose subkey, and only the subkey, is locked by a passphrase.
func lockedSubkey(t *testing.T, id *Identity) []byte {
	t.Helper()
	var ring bytes.Buffer
	if err := id.secret(&ring); err != nil {
		t.Fatal(err)
	}
	list, err := openpgp.ReadKeyRing(&ring)
	if err != nil {
		t.Fatal(err)
	}
	if err := list[0].Subkeys[0].PrivateKey.Encrypt([]byte("passphrase")); err != nil {
		t.Fatal(err)
	}
	ring.Reset()
	if err := list[0].SerializePrivateWithoutSigning(&ring, nil); err != nil {
		t.Fatal(err)
	}
	return ring.Bytes()
}

// TestLoadFolderRefusesAServerKeyThatIsNotRSA: a server's key of another algorithm in the folder is refused.
func TestLoadFolderRefusesAServerKeyThatIsNotRSA(t *testing.T) {
	f, path := folder(t)
	server := curve(t)
	f.Servers = []*Party{{entity: server, bits: 4096}}
	if err := f.Save(); err != nil {
		t.Fatal(err)
	}
	loadRefuses(t, path, "is not an RSA key")
}

// TestFolderReadsWritesAndMarks: a file is read as it was written. Mark is the same for one folder, and different for
// two. In a folder that does not exist, both fail.
func TestFolderReadsWritesAndMarks(t *testing.T) {
	f, path := folder(t)
	if err := f.WriteFile("state", []byte("x")); err != nil {
		t.Error(err)
	}
	if got, err := f.ReadFile("state"); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	missing := Folder{Path: filepath.Join(path, "missing")}
	if err := missing.WriteFile("state", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file in a folder that does not exist: %v", err)
	}
	mark, err := Mark(path)
	if other, err := Mark(filepath.Dir(path)); err != nil || mark == "" || other == mark {
		t.Errorf("marks %q and %q, %v", mark, other, err)
	}
	if again, e := Mark(path); errors.Join(err, e) != nil || again != mark {
		t.Errorf("marks %q and %q, %v, %v", mark, again, err, e)
	}
	if mark, err := Mark(missing.Path); !errors.Is(err, fs.ErrNotExist) || mark != "" {
		t.Errorf("the mark of a folder that does not exist: %q, %v", mark, err)
	}
}

// loadRefuses fails the test unless LoadFolder refuses the folder, with these words.
func loadRefuses(t *testing.T, path string, words ...string) {
	t.Helper()
	f, err := LoadFolder(path)
	for _, want := range words {
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), want) || f != nil {
			t.Errorf("%v; want %q in it", err, want)
		}
	}
}

func moveFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// writing returns a function that replaces the content of a file of a folder.
func writing(name string, data []byte) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(path, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzRing: no ring makes LoadFolder panic, and a ring that LoadFolder accepts has the right identity.
func FuzzRing(f *testing.F) {
	a, _ := pair()
	var private, public bytes.Buffer
	if err := a.secret(&private); err != nil {
		f.Fatal(err)
	}
	if err := a.Public(&public); err != nil {
		f.Fatal(err)
	}
	f.Add(private.Bytes())
	f.Add(public.Bytes())
	f.Add(slices.Concat(public.Bytes(), private.Bytes()))
	dir := f.TempDir()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	write(ConfFile, []byte(`{"LOCAL_FINGERPRINT": "`+a.String()+`"}`))
	write(PublicRing, public.Bytes())
	f.Fuzz(func(t *testing.T, ring []byte) {
		write(PrivateRing, ring)
		if got, err := LoadFolder(dir); err == nil && got.Identity.Fingerprint() != a.Fingerprint() {
			t.Errorf("identity %s", got.Identity)
		}
		_, _ = ReadParty(ring) // it must not panic
	})
}
