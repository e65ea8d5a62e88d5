package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/migrate"
	"claviger/migrate/shred"
	"claviger/owner"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

// copyOf makes a copy of a .keytrustee folder, as Cloudera's procedure makes it, and returns its path.
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
		kmstest.WriteFile(t, path, text)
	}
	return dir
}

// finishWithShred runs the step of migrate finish --shred for one folder. typed is the operator's answer; yes is --yes.
func finishWithShred(t *testing.T, path, typed string, yes bool) (migrate.Leftover, error) {
	t.Helper()
	f := &migrate.Ending{Finished: true, Leftovers: shred.Known([]string{path})}
	m := &migration{svc: &kms.Service{Conf: hadoopconf.New(t.TempDir(), nil)},
		flags: &migrateFlags{yes: yes}, cmd: &cobra.Command{}, stderr: io.Discard}
	m.cmd.SetIn(strings.NewReader(typed + "\n"))
	m.cmd.SetErr(io.Discard)
	err := m.shred(f)
	return f.Leftovers[0], err
}

// markServed writes the mark of a KMS that was started from another folder into a folder.
func markServed(t *testing.T, folder, startedFrom string) {
	t.Helper()
	mark, err := trustee.Mark(startedFrom)
	if err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(folder, keytrustee.ServedFile),
		fmt.Sprintf(`{"folder":%q,"started":"2026-01-02T03:04:05Z"}`, mark))
}

// hasPrivateRing reports whether a folder made by copyOf still has its private key ring.
func hasPrivateRing(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "secring.gpg"))
	return err == nil && string(b) == "private"
}

// TestShredNeedsASentence: nothing proves that a folder with a private key is a copy. It is shredded only after its
// sentence was typed. --yes or its path are not sufficient.
func TestShredNeedsASentence(t *testing.T) {
	dir := copyOf(t)
	for _, c := range []struct{ what, mark, reason string }{
		{"no mark, as Cloudera's KMS and older ones leave the folder", "", "no mark in it"},
		{"the mark of another folder, as in a restored one", t.TempDir(),
			"a KMS was started from it at 2026-01-02T03:04:05Z, and it was copied, moved or restored since"},
	} {
		if c.mark != "" {
			markServed(t, dir, c.mark)
		}
		if l, err := finishWithShred(t, dir, dir, true); !isRefused(err) || l.Shredded || len(l.Remaining) != 1 ||
			!strings.Contains(l.Remaining[0], c.reason) || !hasPrivateRing(dir) {
			t.Errorf("%s, --yes: %+v, %v", c.what, l, err)
		}
		if l, err := finishWithShred(t, dir, dir, false); !isRefused(err) || l.Shredded || len(l.Remaining) != 1 ||
			!strings.Contains(l.Remaining[0], "is not that sentence") || !hasPrivateRing(dir) {
			t.Errorf("%s, its path: %+v, %v", c.what, l, err)
		}
	}
	copied := filepath.Join(t.TempDir(), ".keytrustee")
	markServed(t, dir, dir)
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if l, err := finishWithShred(t, copied, shred.Sentence(dir), false); !isRefused(err) || l.Shredded ||
		!hasPrivateRing(copied) {
		t.Errorf("the sentence of another folder: %+v, %v", l, err)
	}
	if l, err := finishWithShred(t, copied, shred.Sentence(copied), false); err != nil || !l.Shredded {
		t.Errorf("a copy: %+v, %v", l, err)
	}
}

// TestShredSparesTheOriginal: the folder from which a Key Trustee KMS was started has the only private key that opens
// its deposits. It is refused, even with its sentence: while the KMS runs, by its lock, and afterwards, by its mark.
func TestShredSparesTheOriginal(t *testing.T) {
	dir := copyOf(t)
	markServed(t, dir, t.TempDir()) // a stale mark
	release, err := owner.Share(filepath.Join(dir, keytrustee.LockFile), dir,
		owner.Self("a Key Trustee KMS", "/etc/kms"))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := finishWithShred(t, dir, shred.Sentence(dir), false); err == nil || !strings.Contains(err.Error(),
		"is in use by a Key Trustee KMS, process ") || l.Shredded || !hasPrivateRing(dir) {
		t.Errorf("a KMS runs: %+v, %v", l, err)
	}
	if _, err := shred.Folder(dir); err == nil || !hasPrivateRing(dir) {
		t.Errorf("a KMS runs: %v", err)
	}
	release()
	for _, place := range []string{"the folder", "beside the folder"} {
		markServed(t, dir, dir)
		if place == "beside the folder" { // the folder was replaced by one without a mark
			if err := os.Rename(filepath.Join(dir, keytrustee.ServedFile), dir+"."+keytrustee.ServedFile); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := finishWithShred(t, dir, shred.Sentence(dir), false); err == nil ||
			!strings.Contains(err.Error(), "is not a copy") || l.Shredded || !hasPrivateRing(dir) {
			t.Errorf("a mark in %s: %+v, %v", place, l, err)
		}
		if _, err := shred.Folder(dir); err == nil || !strings.Contains(err.Error(), "is not a copy") {
			t.Errorf("a mark in %s: %v", place, err)
		}
		if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
			t.Errorf("%d entries, %v; want all %d", len(after), err, len(before))
		}
	}
}

// TestShredWithoutPrivateKey: a folder without a private key, as a killed run leaves it, needs no sentence.
func TestShredWithoutPrivateKey(t *testing.T) {
	dir := copyOf(t)
	for _, name := range []string{"secring.gpg", "private-keys-v1.d"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := finishWithShred(t, dir, "", true); err != nil || !l.Shredded {
		t.Errorf("%+v, %v", l, err)
	}
}
