package jceks

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"claviger"
	"claviger/durable"
	"claviger/internal/golden"
	"claviger/provider"
)

// wantMessage compares the message for the user with testdata/NAME.golden. DIR there means the folder of the test.
func wantMessage(t *testing.T, name, dir string, err error) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error", name)
	}
	golden.Compare(t, "testdata/"+name+".golden", strings.ReplaceAll(err.Error(), dir, "DIR")+"\n")
}

// asNobody runs f as user nobody if the test runs as root. The thread is not used again.
func asNobody(t *testing.T, dir string, f func()) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // t.TempDir's own parent
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			_ = unix.Setfsuid(65534)
		}
		f()
	}()
	<-done
}

// TestOpenErrors checks that Open fails for a keystore that cannot be used, with the reason and the cure, and that it
// changes no file.
func TestOpenErrors(t *testing.T) {
	good, err := os.ReadFile("testdata/hadoop.jceks")
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile("../../keystore/testdata/secretkeyspec.jceks") // with another password
	if err != nil {
		t.Fatal(err)
	}
	pkcs12, err := os.ReadFile("../../keystore/testdata/tls/server.pkcs12")
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(good)
	damaged[len(damaged)-60] ^= 1
	for _, tc := range []struct {
		name     string
		uri      string // DIR is the test's folder
		password string
		files    map[string][]byte
	}{
		{"wrong-password", "jceks://file@DIR/kms.keystore", "not it", map[string][]byte{"kms.keystore": good}},
		{"wrong-password-with-old", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore": other, "kms.keystore_OLD": good}},
		{"damaged-content", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore": damaged}},
		{"damaged-cut-short", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore": good[:1000]}},
		{"damaged-both", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore": good[:1000], "kms.keystore_OLD": good[:500]}},
		{"damaged-old-only", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore_OLD": good[:500]}},
		{"not-a-keystore", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore": []byte("<configuration/>")}},
		{"pkcs12", "jceks://file@DIR/kms.keystore", hadoopPassword, map[string][]byte{"kms.keystore": pkcs12}},
		{"empty-file", "jceks://file@DIR/kms.keystore", hadoopPassword, map[string][]byte{"kms.keystore": {}}},
		{"new-beside-main", "jceks://file@DIR/kms.keystore", hadoopPassword,
			map[string][]byte{"kms.keystore": good, "kms.keystore_NEW": good}},
		{"missing-folder", "jceks://file@DIR/missing/kms.keystore", hadoopPassword, nil},
		{"folder-is-file", "jceks://file@DIR/file/kms.keystore", hadoopPassword, map[string][]byte{"file": good}},
		{"is-a-folder", "jceks://file@DIR", hadoopPassword, nil},
		{"in-hdfs", "jceks://hdfs@nn:8020/kms.keystore", hadoopPassword, nil},
		{"password-not-ascii", "jceks://file@DIR/kms.keystore", "pässword", map[string][]byte{"kms.keystore": good}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range tc.files {
				put(t, filepath.Join(dir, name), data)
			}
			p, err := Open(t.Context(), strings.ReplaceAll(tc.uri, "DIR", dir), env(tc.password))
			if p != nil {
				t.Error("Open returned a provider and an error")
			}
			wantMessage(t, tc.name, dir, err)
			for name, data := range tc.files {
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s was changed, %v", name, err)
				}
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "kms.keystore"), good)
		if err := os.Chmod(filepath.Join(dir, "kms.keystore"), 0); err != nil {
			t.Fatal(err)
		}
		var err error
		asNobody(t, dir, func() {
			_, err = Open(context.Background(), "jceks://file@"+dir+"/kms.keystore", env(hadoopPassword))
		})
		wantMessage(t, "unreadable", dir, err)
	})
}

// TestPasswordFile checks that Open finds the password in the same places as Hadoop.
func TestPasswordFile(t *testing.T) {
	dir := t.TempDir()
	copyFile(t, "testdata/hadoop.jceks", filepath.Join(dir, "kms.keystore"))
	put(t, filepath.Join(dir, "pw"), []byte(" \t"+hadoopPassword+"\r\n"))
	put(t, filepath.Join(dir, "long"), bytes.Repeat([]byte("x"), maxPasswordFile+1))
	with := func(property, variable string) (provider.Provider, error) {
		e := env(variable)
		e.ConfDir = dir
		e.Get = func(name string) (string, bool) { return property, name == passwordFileProperty && property != "" }
		return Open(t.Context(), "localjceks://file"+dir+"/kms.keystore", e)
	}
	for _, tc := range []struct{ property, variable string }{
		{"pw", ""}, {filepath.Join(dir, "pw"), ""}, {"missing", hadoopPassword}, // the variable has precedence
	} {
		if _, err := with(tc.property, tc.variable); err != nil {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	for name, property := range map[string]string{"password-file-missing": "missing", "password-file-long": "long",
		"default-password": ""} {
		_, err := with(property, "")
		wantMessage(t, name, dir, err)
	}
}

// TestWriteErrors checks that a change that cannot be written changes nothing and says so, and that the provider still
// works.
func TestWriteErrors(t *testing.T) {
	setup := func(t *testing.T) (*Provider, string) {
		dir := t.TempDir()
		p := openFile(t, filepath.Join(dir, "kms.keystore"), hadoopPassword)
		mustCreate(t, p, "first")
		return p, dir
	}
	refused := func(t *testing.T, name, dir string, p *Provider, as func(f func()), undo func()) {
		t.Helper()
		before, err := os.ReadFile(filepath.Join(dir, "kms.keystore"))
		if err != nil {
			t.Fatal(err)
		}
		as(func() {
			_, err = p.Create(context.Background(), provider.Spec{Name: "second", Cipher: claviger.DefaultCipher,
				BitLength: 128})
		})
		wantMessage(t, name, dir, err)
		if !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%v, want kind Unavailable", err)
		}
		undo()
		if after, err := os.ReadFile(filepath.Join(dir, "kms.keystore")); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the file was changed, %v", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 { // the keystore and its lock file
			t.Errorf("files in the folder: %v, %v", entries, err)
		}
		if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 1 {
			t.Errorf("keys %q, %v", keys, err)
		}
		mustCreate(t, p, "second")
	}
	t.Run("disk-full", func(t *testing.T) {
		p, dir := setup(t)
		unmount := durable.Mount(dir, new(fullDisk))
		refused(t, "disk-full", dir, p, func(f func()) { f() }, unmount)
	})
	t.Run("folder-read-only", func(t *testing.T) {
		p, dir := setup(t)
		if err := os.Chmod(hiddenFile(p.file.path, ".lock"), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		refused(t, "folder-read-only", dir, p, func(f func()) { asNobody(t, dir, f) },
			func() { _ = os.Chmod(dir, 0o755) })
	})
}

func mustCreate(t testing.TB, p *Provider, name string) claviger.KeyVersion {
	t.Helper()
	v, err := p.Create(context.Background(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestSpecErrors compares errors with the recorded errors of Hadoop.
func TestSpecErrors(t *testing.T) {
	p := openFile(t, filepath.Join(t.TempDir(), "kms.keystore"), hadoopPassword)
	for _, tc := range []struct {
		spec provider.Spec
		kind claviger.Kind
		text string
	}{
		{provider.Spec{Name: "UPPER", Cipher: claviger.DefaultCipher, BitLength: 128}, claviger.Invalid,
			"Uppercase key names are unsupported: UPPER"},
		{provider.Spec{Name: "kdes", Cipher: "DESede/CBC/PKCS5Padding", BitLength: 168}, claviger.MaterialLength,
			"Wrong key length. Required 168, but got 192"},
		{provider.Spec{Name: "k", Cipher: "DES", BitLength: 56}, claviger.MaterialLength,
			"Wrong key length. Required 56, but got 64"},
		{provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128, Material: []byte{}},
			claviger.MaterialLength, "Wrong key length. Required 128, but got 0"},
		{provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 100}, claviger.InvalidKeySize, ""},
		{provider.Spec{Name: "k", Cipher: "FOO/CTR/NoPadding", BitLength: 128}, claviger.UnknownCipher, ""},
		{provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
			Attributes: map[string]string{"a": strings.Repeat("x", maxText)}}, claviger.Invalid,
			"cipher, description and attributes are 131090 bytes long; at most 131072 are allowed"},
	} {
		_, err := p.Create(t.Context(), tc.spec)
		if !claviger.Is(err, tc.kind) || !strings.HasSuffix(err.Error(), ": "+tc.text) && tc.text != "" {
			t.Errorf("%+v: %v, want kind %v, %q", tc.spec, err, tc.kind, tc.text)
		}
	}
	longest := strings.Repeat("\x01", maxText-len(claviger.DefaultCipher)) // JSON needs six bytes for each byte
	if _, err := p.Create(t.Context(), provider.Spec{Name: "longest", Cipher: claviger.DefaultCipher, BitLength: 128,
		Description: &longest}); err != nil {
		t.Errorf("text of the largest allowed length: %v", err)
	}
	if v, err := p.Create(t.Context(), provider.Spec{Name: "kcbc", Cipher: "AES/CBC/NoPadding",
		BitLength: 128}); err != nil || v.Name != "kcbc@0" {
		t.Errorf("AES in another mode: %q, %v", v.Name, err)
	}
}

// fullDisk is a disk without free space.
type fullDisk struct{ durable.OS }

type fullFile struct{ durable.File }

func (d *fullDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.OS.OpenFile(name, flag, mode)
	return fullFile{f}, err
}

func (fullFile) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "temporary", Err: syscall.ENOSPC}
}

// TestLockIsALink: a change makes and writes no file behind a symbolic link in the place of the lock file.
func TestLockIsALink(t *testing.T) {
	dir := t.TempDir()
	p := openFile(t, filepath.Join(dir, "kms.keystore"), hadoopPassword)
	missing := filepath.Join(dir, "missing")
	if err := os.Symlink(missing, hiddenFile(p.file.path, ".lock")); err != nil {
		t.Fatal(err)
	}
	_, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128})
	if err == nil {
		t.Error("a change was made without a lock")
	}
	if _, err := os.Lstat(missing); err == nil {
		t.Error("a file was made behind the link")
	}
}
