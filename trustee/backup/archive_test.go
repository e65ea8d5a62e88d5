package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/trustee"
	"claviger/trustee/backup"
	"claviger/trustee/server"
)

// entry is a file of an archive.
type entry struct {
	tar.Header
	data []byte
}

// decrypted returns the archive in a backup.
func decrypted(t *testing.T, sealed []byte) []byte {
	t.Helper()
	in, err := backup.Decrypt(bytes.NewReader(sealed), bytes.NewReader(private(t)))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

func unpack(t *testing.T, archive []byte) (list []entry) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		var data []byte
		if err == nil {
			data, err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, entry{*h, data})
	}
}

func pack(t *testing.T, list []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range list {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file returns a file of an archive.
func file(name, text string) entry {
	return entry{tar.Header{Name: name, Mode: 0o600, Size: int64(len(text))}, []byte(text)}
}

// manifest returns a change of an archive: of the fields of its manifest.
func manifest(t *testing.T, change func(m map[string]any)) func([]entry) []entry {
	return func(list []entry) []entry {
		t.Helper()
		last := len(list) - 1
		m := map[string]any{}
		if err := json.Unmarshal(list[last].data, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return append(list[:last:last], file("manifest.json", string(text)))
	}
}

// TestArchive checks the form of an archive. It is closed, and the records are in several files of about 1 MiB.
func TestArchive(t *testing.T) {
	dir, store := site(t, 30) // 4 MB as JSON
	sealed, m := write(t, dir, store)
	archive := decrypted(t, sealed)
	if !bytes.HasSuffix(archive, make([]byte, 1024)) {
		t.Error("the archive has no end")
	}
	list := unpack(t, archive)
	var names []string
	for _, f := range m.Files {
		names = append(names, f.Name)
	}
	names = append(names, "manifest.json")
	pieces := 0
	for i, e := range list {
		if i >= len(names) || e.Name != names[i] {
			t.Fatalf("file %d is %s; the manifest has %q", i, e.Name, names)
		}
		if strings.HasPrefix(e.Name, "store/") {
			pieces++
			if e.Size > 1<<20+200_000 {
				t.Errorf("%s has %d bytes", e.Name, e.Size)
			}
		}
	}
	if pieces < 3 || pieces > 6 {
		t.Errorf("the records are in %d files", pieces)
	}
}

// TestChangedArchive checks that an archive is refused if it is not as Write makes it, with the reason, and that
// nothing is left of it.
func TestChangedArchive(t *testing.T) {
	dir, store := site(t, 1)
	sealed, _ := write(t, dir, store)
	good := unpack(t, decrypted(t, sealed))
	at := slices.IndexFunc(good, func(e entry) bool { return strings.HasPrefix(e.Name, "store/") })
	link := entry{Header: tar.Header{Name: "folder/keytrustee.conf", Typeflag: tar.TypeSymlink, Linkname: "/x"}}
	for name, c := range map[string]struct {
		change func([]entry) []entry
		want   string
	}{
		"a symbolic link": {func([]entry) []entry { return []entry{link} }, "which claviger does not write"},
		"another file in the folder": {func(l []entry) []entry { return slices.Insert(l, 0, file("folder/x", "x")) },
			`holds "folder/x", which claviger does not write`},
		"another file": {func(l []entry) []entry { return slices.Insert(l, len(l)-1, file("x", "x")) },
			`holds "x" where its manifest should be`},
		"no private ring": {manifestOf(t, without("folder/secring.gpg")), "secring.gpg"},
		"no end":          {func(l []entry) []entry { return l[:len(l)-1] }, "before its manifest"},
		"no JSON": {func(l []entry) []entry { return slices.Replace(l, at, at+1, file(l[at].Name, "x")) },
			"invalid character"},
		"a changed file": {func(l []entry) []entry {
			return slices.Replace(l, 3, 4, file(l[3].Name, "another certificate"))
		}, "are not those of its manifest"},
		"a new field": {manifest(t, func(m map[string]any) { m["new"] = 1 }), "unknown field"},
		"format 2":    {manifest(t, func(m map[string]any) { m["format"] = 2 }), "has format 2"},
		"another identity": {manifest(t, func(m map[string]any) { m["identity"] = "4096R/AB" }),
			"its manifest names 4096R/AB"},
		"a manifest without its store": {manifest(t, func(m map[string]any) { delete(m, "store") }),
			"but not both"},
		"another digest": {manifest(t, func(m map[string]any) {
			m["store"] = backup.Store{Orgs: 1, Clients: 1, Deposits: 1, Digest: "00"}
		}), "the restored store has 1 organizations, 1 clients, 1 deposits"},
	} {
		parent := t.TempDir()
		_, err := backup.Read(t.Context(), bytes.NewReader(pack(t, c.change(slices.Clone(good)))),
			filepath.Join(parent, ".keytrustee"), open, true)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if list, err := os.ReadDir(parent); err != nil || len(list) != 0 {
			t.Errorf("%s: left behind: %v, %v", name, list, err)
		}
		wantClosed(t, parent, "")
	}
}

// without returns a change of an archive that leaves out a file.
func without(name string) func([]entry) []entry {
	return func(list []entry) []entry {
		return slices.DeleteFunc(list, func(e entry) bool { return e.Name == name })
	}
}

// manifestOf returns a change of an archive, and of the list of files in its manifest.
func manifestOf(t *testing.T, change func([]entry) []entry) func([]entry) []entry {
	return func(list []entry) []entry {
		list = change(list)
		return manifest(t, func(m map[string]any) {
			named, ok := m["files"].([]any)
			if !ok {
				t.Fatalf("files: %v", m["files"])
			}
			m["files"] = slices.DeleteFunc(named, func(f any) bool {
				fields, ok := f.(map[string]any)
				return ok && !slices.ContainsFunc(list, func(e entry) bool { return e.Name == fields["name"] })
			})
		})(list)
	}
}

// TestCutArchive checks that the reason is given for text that is not an archive, for an archive that is cut, and for
// one with a file that is too large.
func TestCutArchive(t *testing.T) {
	dir, _ := site(t, 0)
	sealed, _ := write(t, dir, nil)
	archive := decrypted(t, sealed)
	var large bytes.Buffer
	if err := tar.NewWriter(&large).WriteHeader(&tar.Header{Name: "folder/keytrustee.conf", Mode: 0o600,
		Size: 16<<20 + 1}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"text":         {bytes.Repeat([]byte("no archive\n"), 100), "this is not a backup of claviger"},
		"cut":          {archive[:532], "was altered or is truncated"},
		"a large file": {large.Bytes(), "which claviger does not write"},
	} {
		_, err := backup.Read(t.Context(), bytes.NewReader(c.archive), filepath.Join(t.TempDir(), "x"), open, false)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

// TestChangedMeanwhile checks that a restoration locks its work folder, and that it does not replace a folder that is
// filled while it works.
func TestChangedMeanwhile(t *testing.T) {
	dir, store := site(t, 1)
	sealed, _ := write(t, dir, store)
	to := filepath.Join(t.TempDir(), ".keytrustee")
	other := filepath.Join(to, trustee.ConfFile)
	_, err := backup.Read(t.Context(), bytes.NewReader(decrypted(t, sealed)), to,
		func(ctx context.Context, folder string) (server.Store, error) {
			if !locked(t, filepath.Dir(folder)) {
				t.Error("the work folder is not locked")
			}
			if err := errors.Join(os.Mkdir(to, 0o700), os.WriteFile(other, []byte("x"), 0o600)); err != nil {
				t.Fatal(err)
			}
			return open(ctx, folder)
		}, true)
	var path *os.PathError
	if !errors.As(err, &path) || path.Path != to {
		t.Errorf("%v", err)
	}
	if text, err := os.ReadFile(other); err != nil || string(text) != "x" {
		t.Errorf("%s: %q, %v", other, text, err)
	}
}
