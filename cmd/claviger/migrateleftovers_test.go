package main

import (
	"errors"
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
		kmstest.WriteFile(t, path, text)
	}
	return dir
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
		f := &migrate.Ending{Finished: true, Leftovers: shred.Known([]string{path})}
		m := &migration{svc: &kms.Service{Conf: hadoopconf.New(t.TempDir(), nil)},
			flags: &migrateFlags{yes: yes}, cmd: &cobra.Command{}, stderr: io.Discard}
		m.cmd.SetIn(strings.NewReader(typed + "\n"))
		m.cmd.SetErr(io.Discard)
		err := m.shred(f)
		return f.Leftovers[0], err
	}
	mark := func(in, of string) {
		t.Helper()
		mark, err := trustee.Mark(of)
		if err != nil {
			t.Fatal(err)
		}
		kmstest.WriteFile(t, filepath.Join(in, keytrustee.ServedFile),
			fmt.Sprintf(`{"folder":%q,"started":"2026-01-02T03:04:05Z"}`, mark))
	}
	for _, made := range []struct{ what, mark, doubt string }{
		{"a folder without a mark, as Cloudera's KMS and older ones leave it", "", "no mark in it"},
		{"a folder with another's mark, as one that was restored", t.TempDir(),
			"a KMS was started from it at 2026-01-02T03:04:05Z, and it was copied, moved or restored since"},
	} {
		if made.mark != "" {
			mark(dir, made.mark)
		}
		if l, err := finish(dir, dir, true); !refused(err) || l.Shredded || len(l.Left) != 1 ||
			!strings.Contains(l.Left[0], made.doubt) || !whole(dir) {
			t.Errorf("%s, --yes: %+v, %v", made.what, l, err)
		}
		if l, err := finish(dir, dir, false); !refused(err) || l.Shredded || len(l.Left) != 1 ||
			!strings.Contains(l.Left[0], "is not that sentence") || !whole(dir) {
			t.Errorf("%s, its path: %+v, %v", made.what, l, err)
		}
	}

	// As a KMS that runs, with the stale mark.
	release, err := owner.Share(filepath.Join(dir, keytrustee.LockFile), dir,
		owner.Self("a Key Trustee KMS", "/etc/kms"))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := finish(dir, shredSentence(dir), false); err == nil || !strings.Contains(err.Error(),
		"is in use by a Key Trustee KMS, process ") || l.Shredded || !whole(dir) {
		t.Errorf("one from which a KMS runs: %+v, %v", l, err)
	}
	if _, err := shred.Folder(dir); err == nil || !whole(dir) {
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
		if l, err := finish(dir, shredSentence(dir), false); err == nil ||
			!strings.Contains(err.Error(), "is no copy") || l.Shredded || !whole(dir) {
			t.Errorf("a mark in %s: %+v, %v", in, l, err)
		}
		if _, err := shred.Folder(dir); err == nil || !strings.Contains(err.Error(), "is no copy") {
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
	if l, err := finish(copied, shredSentence(dir), false); !refused(err) || l.Shredded || !whole(copied) {
		t.Errorf("the sentence of another folder: %+v, %v", l, err)
	}
	if l, err := finish(copied, shredSentence(copied), false); err != nil || !l.Shredded {
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
