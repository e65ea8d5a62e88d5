package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/owner"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

// copyOf makes a folder as Cloudera's procedure copies it, and returns its path.
func copyOf(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	for name, text := range map[string]string{
		"secring.gpg": "private", "pubring.gpg": "public", "keytrustee.conf": "{}", "trustdb.gpg": "t", "random_seed": "r",
		"private-keys-v1.d/0123.key": "private too", ".ssl/ssl-cert-keytrustee-pk.pem": "private as well", ".secring.gpg-1": "half",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, text)
	}
	return dir
}

func TestShredFolder(t *testing.T) {
	dir := copyOf(t)
	// Who holds the file open sees what became of its bytes.
	f, err := os.Open(filepath.Join(dir, "secring.gpg"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	left, err := shredFolder(dir)
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

// TestShredAfterKill: what a run that was killed has left is finished, the folder of
// which nothing but itself is left too.
func TestShredAfterKill(t *testing.T) {
	dir := copyOf(t)
	for _, gone := range []string{"secring.gpg", "private-keys-v1.d"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := shredFolder(dir); err != nil || len(left) > 0 {
		t.Errorf("%q, %v", left, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if left, err := shredFolder(dir); err != nil || len(left) > 0 {
		t.Errorf("empty: %q, %v", left, err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the empty folder is still there: %v", err)
	}
}

// TestShredSpares: links, files with a second name and files that nobody knows stay,
// as does what they lead to.
func TestShredSpares(t *testing.T) {
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
	left, err := shredFolder(dir)
	if err != nil || len(left) != 4 {
		t.Fatalf("left %q, %v", left, err)
	}
	for i, want := range []string{".ssl is no file", "notes.txt is no file", "pubring.gpg is a symbolic link", "trustdb.gpg has 2 names"} {
		if slices.Sort(left); !strings.HasPrefix(left[i], want) {
			t.Errorf("%q, want %q", left[i], want)
		}
	}
	for path, want := range map[string]string{outside: "precious", other: "linked", filepath.Join(dir, "notes.txt"): "mine",
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

func TestShredRefuses(t *testing.T) {
	dir := copyOf(t)
	link := filepath.Join(t.TempDir(), ".keytrustee")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := shredFolder(link); err == nil || !strings.Contains(err.Error(), "is a symbolic link, no folder") {
		t.Errorf("a link to a folder: %v", err)
	}
	home := t.TempDir()
	writeFile(t, filepath.Join(home, "gpg.conf"), "mine")
	if _, err := shredFolder(home); err == nil || !strings.Contains(err.Error(), "is not named .keytrustee") {
		t.Errorf("some folder: %v", err)
	}
	writeFile(t, filepath.Join(dir, "keytrustee.db"), "deposits")
	if _, err := shredFolder(dir); err == nil || !strings.Contains(err.Error(), "the folder of a Key Trustee Server") {
		t.Errorf("a server's folder: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 9 {
		t.Errorf("%d entries, %v; want all", len(entries), err)
	}
	site := filepath.Join(home, "kts-site.xml")
	writeFile(t, site, siteXML("hadoop.kms.http.port", "1"))
	if _, err := shredSite(site); err == nil || !strings.Contains(err.Error(), "it is no copy of kts-site.xml") {
		t.Errorf("another file: %v", err)
	}
}

// TestShredSparesTheOriginal: the folder from which a Key Trustee KMS was started holds the
// only private key that opens its deposits, and is refused while it runs, by its lock, and
// afterwards, by its mark. Of any other folder with a private key nothing proves that it is
// a copy, and it goes by a sentence of its own alone.
func TestShredSparesTheOriginal(t *testing.T) {
	dir := copyOf(t)
	refused := func(err error) bool {
		var e *exitError
		return errors.As(err, &e) && e.code == exitRefused
	}
	whole := func(dir string) bool {
		b, err := os.ReadFile(filepath.Join(dir, "secring.gpg"))
		return err == nil && string(b) == "private"
	}
	finish := func(path, typed string, yes bool) (migrate.Leftover, error) {
		t.Helper()
		f := &migrate.Ending{Finished: true, Leftovers: knownLeftovers([]string{path})}
		m := &migration{svc: &service{Conf: hadoopconf.New(t.TempDir(), nil)}, flags: &migrateFlags{yes: yes}, stdin: strings.NewReader(typed + "\n"), stderr: io.Discard}
		err := m.shred(f)
		return f.Leftovers[0], err
	}
	mark := func(in, of string) {
		t.Helper()
		mark, err := trustee.Mark(of)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(in, keytrustee.ServedFile), fmt.Sprintf(`{"folder":%q,"started":"2026-01-02T03:04:05Z"}`, mark))
	}
	for _, made := range []struct{ what, mark, doubt string }{
		{"a folder without a mark, as Cloudera's KMS and older ones leave it", "", "no mark in it"},
		{"a folder with another's mark, as one that was restored", t.TempDir(), "a KMS was started from it at 2026-01-02T03:04:05Z, and it was copied, moved or restored since"},
	} {
		if made.mark != "" {
			mark(dir, made.mark)
		}
		if l, err := finish(dir, dir, true); !refused(err) || l.Shredded || len(l.Left) != 1 || !strings.Contains(l.Left[0], made.doubt) || !whole(dir) {
			t.Errorf("%s, --yes: %+v, %v", made.what, l, err)
		}
		if l, err := finish(dir, dir, false); !refused(err) || l.Shredded || len(l.Left) != 1 || !strings.Contains(l.Left[0], "is not that sentence") || !whole(dir) {
			t.Errorf("%s, its path: %+v, %v", made.what, l, err)
		}
	}

	// As a KMS that runs, with the stale mark.
	release, err := owner.Share(filepath.Join(dir, keytrustee.LockFile), dir, owner.Self("a Key Trustee KMS", "/etc/kms"))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := finish(dir, unneeded(dir), false); err == nil || !strings.Contains(err.Error(), "is in use by a Key Trustee KMS, process ") || l.Shredded || !whole(dir) {
		t.Errorf("one from which a KMS runs: %+v, %v", l, err)
	}
	if _, err := shredFolder(dir); err == nil || !whole(dir) {
		t.Errorf("one from which a KMS runs: %v", err)
	}
	release()
	for _, in := range []string{"the folder", "beside it"} {
		mark(dir, dir)
		if in == "beside it" { // the folder was replaced by one without a mark
			if err := os.Rename(filepath.Join(dir, keytrustee.ServedFile), dir+"."+keytrustee.ServedFile); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := finish(dir, unneeded(dir), false); err == nil || !strings.Contains(err.Error(), "is no copy") || l.Shredded || !whole(dir) {
			t.Errorf("a mark in %s: %+v, %v", in, l, err)
		}
		if _, err := shredFolder(dir); err == nil || !strings.Contains(err.Error(), "is no copy") {
			t.Errorf("a mark in %s: %v", in, err)
		}
		if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
			t.Errorf("%d entries, %v; want all %d", len(after), err, len(before))
		}
	}
	copied := filepath.Join(t.TempDir(), ".keytrustee")
	mark(dir, dir)
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if l, err := finish(copied, unneeded(dir), false); !refused(err) || l.Shredded || !whole(copied) {
		t.Errorf("the sentence of another folder: %+v, %v", l, err)
	}
	if l, err := finish(copied, unneeded(copied), false); err != nil || !l.Shredded {
		t.Errorf("a copy: %+v, %v", l, err)
	}
	// What has no private key any more, as a run that was killed leaves it, takes no sentence.
	rest := copyOf(t)
	for _, gone := range []string{"secring.gpg", "private-keys-v1.d"} {
		if err := os.RemoveAll(filepath.Join(rest, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := finish(rest, "", true); err != nil || !l.Shredded {
		t.Errorf("the rest of a folder: %+v, %v", l, err)
	}
}

// TestShredSiteAfterKill: a kts-site.xml that was overwritten in part, by a run that
// was killed then, is found and removed by the next.
func TestShredSiteAfterKill(t *testing.T) {
	dir := t.TempDir()
	site := filepath.Join(dir, "kts-site.xml")
	for _, original := range []bool{false, true} {
		writeFile(t, filepath.Join(dir, ".kts-site.xml.shredding"), "\x00\xff no xml any more")
		if original {
			writeFile(t, site, siteXML("cloudera.trustee.keyprovider.auth", "secret"))
		}
		for _, named := range []string{site, dir} {
			if list := knownLeftovers([]string{named}); len(list) != 1 || list[0].Path != site || list[0].What != leftSite {
				t.Errorf("%s: %+v", named, list)
			}
		}
		if left, err := shredSite(site); err != nil || len(left) > 0 {
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
	if left, err := shredSite(site); err != nil || len(left) != 1 || !strings.Contains(left[0], "is a symbolic link") {
		t.Errorf("a link: %q, %v", left, err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

// TestShredInFoldersOfOthers: in a folder that this user may not change, the secrets in a
// .keytrustee folder go all the same, and it is not asked for again; of kts-site.xml the
// cure is said.
func TestShredInFoldersOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user for a while")
	}
	base, err := os.MkdirTemp("", "claviger-shred") // t.TempDir is root's alone
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
	// With one's own user for files, a thread loses root's rights to them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := errors.Join(syscall.Setfsgid(stranger), syscall.Setfsuid(stranger)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(syscall.Setfsuid(0), syscall.Setfsgid(0)) }()
	f := &migrate.Ending{Finished: true, Leftovers: knownLeftovers([]string{dir, site})}
	if len(f.Leftovers) != 2 {
		t.Fatalf("%+v", f.Leftovers)
	}
	conf := hadoopconf.New(base, nil)
	m := &migration{svc: &service{Conf: conf}, flags: &migrateFlags{}, stdin: strings.NewReader(unneeded(dir) + "\n" + site + "\n"), stderr: io.Discard}
	err = m.shred(f)
	if err == nil || !strings.Contains(err.Error(), "as root: shred -u "+site) || strings.Contains(err.Error(), dir) || strings.Count(err.Error(), "permission denied") != 1 {
		t.Errorf("%v", err)
	}
	if l := f.Leftovers[0]; !l.Shredded || len(l.Left) != 1 || !strings.Contains(l.Left[0], "as root, rmdir "+dir) || !emptyFolder(dir) {
		t.Errorf("%+v", l)
	}
	if text, err := os.ReadFile(site); err != nil || !strings.Contains(string(text), "secret") {
		t.Errorf("%q, %v", text, err)
	}
}
