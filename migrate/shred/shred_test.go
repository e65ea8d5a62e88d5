package shred

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"claviger/migrate"
	"claviger/owner"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func siteXML(name, value string) string {
	const text = "<configuration><property><name>%s</name><value>%s</value></property></configuration>\n"
	return fmt.Sprintf(text, name, value)
}

func yes(string) (bool, error) { return true, nil }

// copyOf makes a folder as Cloudera's procedure copies it, and returns its path.
func copyOf(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	for name, text := range map[string]string{
		"secring.gpg": "private", "pubring.gpg": "public", "keytrustee.conf": "{}", "trustdb.gpg": "t",
		"random_seed":                "r",
		"private-keys-v1.d/0123.key": "private too", ".ssl/ssl-cert-keytrustee-pk.pem": "private as well",
		".secring.gpg-1": "half",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, text)
	}
	return dir
}

// TestFolder: the files are overwritten before they are removed with their folder.
func TestFolder(t *testing.T) {
	dir := copyOf(t)
	// An open file shows its bytes even after it was removed.
	f, err := os.Open(filepath.Join(dir, "secring.gpg"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	left, err := Folder(dir)
	if err != nil || len(left) > 0 {
		t.Fatalf("%q, %v", left, err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 0)
	if n != len("private") || bytes.Contains(b, []byte("private")) {
		t.Errorf("the removed file holds %q, %v", b[:n], err)
	}
}

// TestAfterKill: if a run was killed, the next run removes the rest, even if only the empty folder is left.
func TestAfterKill(t *testing.T) {
	dir := copyOf(t)
	for _, gone := range []string{"secring.gpg", "private-keys-v1.d"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := Folder(dir); err != nil || len(left) > 0 {
		t.Errorf("%q, %v", left, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if left, err := Folder(dir); err != nil || len(left) > 0 {
		t.Errorf("empty: %q, %v", left, err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the empty folder is still there: %v", err)
	}
}

// TestUntouchedFiles: links, files with a second name, unknown files, and the targets of links stay as they are.
func TestUntouchedFiles(t *testing.T) {
	dir := copyOf(t)
	outside := filepath.Join(t.TempDir(), "precious")
	writeFile(t, outside, "precious")
	other := filepath.Join(filepath.Dir(dir), "other")
	writeFile(t, other, "linked")
	for _, step := range []error{
		os.Remove(filepath.Join(dir, "pubring.gpg")), os.Symlink(outside, filepath.Join(dir, "pubring.gpg")),
		os.Remove(filepath.Join(dir, "trustdb.gpg")), os.Link(other, filepath.Join(dir, "trustdb.gpg")),
		os.RemoveAll(filepath.Join(dir, ".ssl")), os.Symlink(filepath.Dir(outside), filepath.Join(dir, ".ssl")),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	writeFile(t, filepath.Join(filepath.Dir(outside), "ssl-cert-keytrustee-pk.pem"), "not ours")
	writeFile(t, filepath.Join(dir, "notes.txt"), "mine")
	left, err := Folder(dir)
	if err != nil || len(left) != 4 {
		t.Fatalf("left %q, %v", left, err)
	}
	for i, want := range []string{".ssl is not a known file", "notes.txt is not a known file",
		"pubring.gpg is a symbolic link", "trustdb.gpg has 2 names"} {
		if slices.Sort(left); !strings.HasPrefix(left[i], want) {
			t.Errorf("%q, want %q", left[i], want)
		}
	}
	for path, want := range map[string]string{
		outside: "precious", other: "linked", filepath.Join(dir, "notes.txt"): "mine",
		filepath.Join(filepath.Dir(outside), "ssl-cert-keytrustee-pk.pem"): "not ours"} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, ".ssl")); err != nil {
		t.Errorf("the link .ssl: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "secring.gpg")); !os.IsNotExist(err) {
		t.Errorf("the private ring is still there: %v", err)
	}
}

// TestRefuses: a symbolic link, a folder with another name, the folder of a Key Trustee Server, and a file that is not
// a copy of kts-site.xml are not shredded.
func TestRefuses(t *testing.T) {
	dir := copyOf(t)
	link := filepath.Join(t.TempDir(), ".keytrustee")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Folder(link); err == nil || !strings.Contains(err.Error(), "is a symbolic link, not a folder") {
		t.Errorf("a link to a folder: %v", err)
	}
	home := t.TempDir()
	writeFile(t, filepath.Join(home, "gpg.conf"), "mine")
	if _, err := Folder(home); err == nil || !strings.Contains(err.Error(), "is not named .keytrustee") {
		t.Errorf("a folder with another name: %v", err)
	}
	writeFile(t, filepath.Join(dir, "keytrustee.db"), "deposits")
	if _, err := Folder(dir); err == nil || !strings.Contains(err.Error(), "the folder of a Key Trustee Server") {
		t.Errorf("a server's folder: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 9 {
		t.Errorf("%d entries, %v; want all", len(entries), err)
	}
	site := filepath.Join(home, "kts-site.xml")
	writeFile(t, site, siteXML("hadoop.kms.http.port", "1"))
	if _, err := Site(site); err == nil || !strings.Contains(err.Error(), "it is not a copy of kts-site.xml") {
		t.Errorf("another file: %v", err)
	}
}

// TestRefusesOriginal: the folder from which a Key Trustee KMS was started has the only private key that opens the
// KMS's deposits. The folder is refused while the KMS runs, because of its lock, and afterwards, because of its mark.
// For another folder with a private key, nothing proves that the folder is a copy. Therefore the user sees the reason
// for this doubt before he agrees.
func TestRefusesOriginal(t *testing.T) {
	untouched := func(dir string) bool {
		b, err := os.ReadFile(filepath.Join(dir, "secring.gpg"))
		return err == nil && string(b) == "private"
	}
	mark := func(in, of string) {
		t.Helper()
		mark, err := trustee.Mark(of)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`{"folder":%q,"started":"2026-01-02T03:04:05Z"}`, mark)
		writeFile(t, filepath.Join(in, keytrustee.ServedFile), text)
	}
	shredLeftover := func(dir string, agree bool) (l migrate.Leftover, doubt string, err error) {
		t.Helper()
		list := Known([]string{dir})
		if len(list) != 1 {
			t.Fatalf("%s: %+v", dir, list)
		}
		l = list[0]
		err = Leftover(&l, func(d string) (bool, error) { doubt = d; return agree, nil })
		return l, doubt, err
	}
	dir := copyOf(t)
	l, doubt, err := shredLeftover(dir, false)
	if err != nil || l.Shredded || !strings.Contains(doubt, "no mark in it") || !untouched(dir) {
		t.Errorf("without a mark: %+v, %q, %v", l, doubt, err)
	}
	mark(dir, t.TempDir())
	l, doubt, err = shredLeftover(dir, false)
	if err != nil || l.Shredded || !strings.Contains(doubt, "was copied, moved") || !untouched(dir) {
		t.Errorf("with the mark of another folder: %+v, %q, %v", l, doubt, err)
	}
	release, err := owner.Share(filepath.Join(dir, keytrustee.LockFile), dir,
		owner.Self("a Key Trustee KMS", "/etc/kms"))
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Folder":   func() error { _, err := Folder(dir); return err }(),
		"Leftover": func() error { _, _, err := shredLeftover(dir, true); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "is in use by a Key Trustee KMS, process ") || !untouched(dir) {
			t.Errorf("%s of the folder of a running KMS: %v", what, err)
		}
	}
	release()
	mark(dir, dir)
	copied := filepath.Join(t.TempDir(), ".keytrustee")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Folder(dir); err == nil || !strings.Contains(err.Error(), "is not a copy") || !untouched(dir) {
		t.Errorf("the folder from which a KMS was started: %v", err)
	}
	l, _, err = shredLeftover(dir, true)
	if err == nil || !strings.Contains(err.Error(), "is not a copy") || l.Shredded || !untouched(dir) {
		t.Errorf("the folder from which a KMS was started: %+v, %v", l, err)
	}
	if l, doubt, err := shredLeftover(copied, true); err != nil || !l.Shredded || doubt == "" {
		t.Errorf("a copy: %+v, %q, %v", l, doubt, err)
	}
	refusal := errors.New("no terminal")
	l = migrate.Leftover{Path: copyOf(t), What: FolderCopy}
	err = Leftover(&l, func(string) (bool, error) { return false, refusal })
	if !errors.Is(err, refusal) || l.Shredded || !untouched(l.Path) {
		t.Errorf("no answer: %+v, %v", l, err)
	}
	// A folder without a private key, as a killed run leaves it, causes no doubt.
	rest := copyOf(t)
	for _, gone := range []string{"secring.gpg", "private-keys-v1.d"} {
		if err := os.RemoveAll(filepath.Join(rest, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if l, doubt, err := shredLeftover(rest, true); err != nil || !l.Shredded || doubt != "" {
		t.Errorf("the rest of a folder: %+v, %q, %v", l, doubt, err)
	}
}

// TestSiteAfterKill: if a run was killed while it overwrote kts-site.xml, the next run finds and removes that file.
func TestSiteAfterKill(t *testing.T) {
	dir := t.TempDir()
	site := filepath.Join(dir, "kts-site.xml")
	for _, original := range []bool{false, true} {
		writeFile(t, filepath.Join(dir, ".kts-site.xml.shredding"), "\x00\xff no xml any more")
		if original {
			writeFile(t, site, siteXML("cloudera.trustee.keyprovider.auth", "secret"))
		}
		for _, named := range []string{site, dir} {
			if list := Known([]string{named}); len(list) != 1 || list[0].Path != site || list[0].What != SiteCopy {
				t.Errorf("%s: %+v", named, list)
			}
		}
		if left, err := Site(site); err != nil || len(left) > 0 {
			t.Errorf("%q, %v", left, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%v is left, %v", entries, err)
		}
	}
	other := filepath.Join(t.TempDir(), "elsewhere.xml")
	writeFile(t, other, siteXML("cloudera.trustee.keyprovider.auth", "secret"))
	if err := os.Symlink(other, site); err != nil {
		t.Fatal(err)
	}
	if left, err := Site(site); err != nil || len(left) != 1 || !strings.Contains(left[0], "is a symbolic link") {
		t.Errorf("a link: %q, %v", left, err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

// TestParentNotWritable: if this user may not change the parent folder, the secrets in a .keytrustee folder are
// shredded nevertheless, and the empty folder is not a leftover. For kts-site.xml the error has the cure.
func TestParentNotWritable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user for a while")
	}
	const stranger = 65534
	base, err := os.MkdirTemp("", "claviger-shred") // only root can enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	dir, site := filepath.Join(base, ".keytrustee"), filepath.Join(base, siteFile)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "secring.gpg"), "private")
	writeFile(t, site, siteXML("cloudera.trustee.keyprovider.auth", "secret"))
	for _, p := range []string{dir, filepath.Join(dir, "secring.gpg"), site} {
		if err := os.Chown(p, stranger, stranger); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	// A thread with another user for file access loses root's rights to files.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := errors.Join(syscall.Setfsgid(stranger), syscall.Setfsuid(stranger)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(syscall.Setfsuid(0), syscall.Setfsgid(0)) }()
	list := Known([]string{dir, site})
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	if err := Leftover(&list[0], yes); err != nil {
		t.Error(err)
	}
	err = Leftover(&list[1], yes)
	if err == nil || list[1].Shredded ||
		!strings.Contains(err.Error(), "this user may not do that; as root: shred -u "+site) {
		t.Errorf("%+v, %v", list[1], err)
	}
	l := list[0]
	if !l.Shredded || len(l.Remaining) != 1 || !strings.Contains(l.Remaining[0], "as root, rmdir "+dir) ||
		!emptyFolder(dir) {
		t.Errorf("%+v", l)
	}
	if text, err := os.ReadFile(site); err != nil || !strings.Contains(string(text), "secret") {
		t.Errorf("%q, %v", text, err)
	}
}

// TestEmptyNotRemovable: an empty folder that cannot be removed is not a leftover, because it has no secret.
func TestEmptyNotRemovable(t *testing.T) {
	base := t.TempDir()
	if err := syscall.Mount("none", base, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("only root can mount a folder read-only: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(base, 0); err != nil {
			t.Error(err)
		}
	})
	empty, full := filepath.Join(base, ".keytrustee"), filepath.Join(base, "full")
	for _, dir := range []string{empty, full} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(full, "secring.gpg"), "private")
	if list := Known([]string{empty}); len(list) != 1 {
		t.Errorf("a folder that can be removed: %+v", list)
	}
	if err := syscall.Mount("none", base, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if list := Known([]string{empty, full}); len(list) != 1 || list[0].Path != full {
		t.Errorf("%+v", list)
	}
}
