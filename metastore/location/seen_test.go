package location

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore"
)

// TestSeenFile checks in which file a node records what it has seen of its metastore. If the node cannot write there,
// SeenFile fails if a property names the file, and logs a warning otherwise.
func TestSeenFile(t *testing.T) {
	dir := t.TempDir()
	keystore := filepath.Join(dir, "luna.keystore")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const pg = "postgresql://claviger@db1/claviger"
	hsm := "cloudera.hsmkp://file@" + keystore
	for _, c := range []struct{ uri, store, value, want, refused, warned string }{
		{uri: hsm, store: pg, want: filepath.Join(dir, SeenName)},
		{uri: hsm + ",kms://http@old:9600/kms", store: pg, want: filepath.Join(dir, SeenName)},
		{uri: hsm, store: pg, value: filepath.Join(dir, "x", "mine.json"), refused: "no such file"},
		{uri: hsm, store: pg, value: filepath.Join(dir, "mine.json"), want: filepath.Join(dir, "mine.json")},
		{uri: hsm, store: pg, value: "none"},
		{uri: hsm, store: pg, value: "mine.json", refused: "absolute path"},
		{uri: hsm, store: pg, value: filepath.Join(file, "mine.json"), refused: "is not a folder"},
		{uri: hsm, store: "sqlite://" + dir + "/claviger.db"},
		{uri: hsm, store: "sqlite://" + dir + "/claviger.db", value: "mine.json"},
		{uri: "pkcs11:token=x", store: pg},
		{uri: ",", store: pg},
		{uri: "jceks://hdfs@nn:8020/kms.jceks", store: pg},
		{uri: "cloudera.hsmkp://file@" + dir + "/nowhere/luna.keystore", store: pg, warned: dir + "/nowhere/" +
			SeenName},
	} {
		props := map[string]string{hadoopconf.ProviderURI: c.uri, hadoopconf.MetastoreURI: c.store}
		if c.value != "" {
			props[hadoopconf.MetastoreSeen] = c.value
		}
		var log bytes.Buffer
		got, err := SeenFile(kmstest.Conf(t, props), slog.New(slog.NewTextHandler(&log, nil)))
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) ||
				!strings.Contains(err.Error(), hadoopconf.MetastoreSeen) ||
				!strings.Contains(err.Error(), "kms-site.xml") {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
		if c.warned != "" && !strings.Contains(log.String(), c.warned) || c.warned == "" && log.Len() > 0 {
			t.Errorf("%+v: log %q", c, log.String())
		}
	}
}

// TestUsesKept checks the file of the uses that a node could not write into the metastore.
func TestUsesKept(t *testing.T) {
	dir := t.TempDir()
	loaded := kmstest.Conf(t, map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"),
		hadoopconf.MetastoreURI: "postgresql://claviger@db1/claviger"})
	kept, _, err := OpenUses(loaded)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := kept.Load(); err != nil || list != nil {
		t.Errorf("Load without a file: %v, %v", list, err)
	}
	want := []metastore.Use{{Source: "kms://http@old:9600/kms", Version: "k@0", Op: "decrypt", Count: 3,
		Last: time.Unix(1700000000, 0).UTC()}}
	if err := kept.Keep(want); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, UsesName)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if list, err := kept.Load(); err != nil || !slices.Equal(list, want) {
		t.Errorf("%v, %v", list, err)
	}
	if left := openFiles(t, file); len(left) > 0 {
		t.Errorf("Load left files open: %q", left)
	}
	if err := kept.Keep(nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Keep of an empty list left the file: %v", err)
	}
	if err := os.WriteFile(file, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.Load(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Load of a truncated file: %v", err)
	}
}

// TestUsesErrors checks that uses are never lost without an error.
func TestUsesErrors(t *testing.T) {
	dir := t.TempDir()
	notFolder := filepath.Join(dir, "file")
	if err := os.WriteFile(notFolder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	unreachable := Uses{filepath.Join(notFolder, UsesName)}
	if list, err := unreachable.Load(); !errors.Is(err, syscall.ENOTDIR) || list != nil {
		t.Errorf("Load: %v, %v", list, err)
	}
	use := metastore.Use{Source: "kms://http@old:9600/kms", Version: "k@0", Op: "decrypt", Count: 1, Last: time.Now()}
	for what, list := range map[string][]metastore.Use{"nothing": nil, "a use": {use}} {
		if err := unreachable.Keep(list); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("Keep of %s: %v", what, err)
		}
	}
	kept := Uses{filepath.Join(dir, UsesName)}
	if err := kept.Keep([]metastore.Use{use}); err != nil {
		t.Fatal(err)
	}
	use.Last = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) // JSON has no such year
	if err := kept.Keep([]metastore.Use{use}); err == nil {
		t.Error("Keep of a time that JSON cannot hold")
	}
	if list, err := kept.Load(); err != nil || len(list) != 1 {
		t.Errorf("after a failed Keep: %v, %v", list, err)
	}
}

// TestOpenUses checks that a node that records nothing keeps no file of uses.
func TestOpenUses(t *testing.T) {
	for value, refused := range map[string]bool{"none": false, "mine.json": true} {
		conf := kmstest.Conf(t, map[string]string{hadoopconf.ProviderURI: "pkcs11:token=x",
			hadoopconf.MetastoreURI: "postgresql://claviger@db1/claviger", hadoopconf.MetastoreSeen: value})
		if uses, keeps, err := OpenUses(conf); keeps || uses != (Uses{}) || (err != nil) != refused {
			t.Errorf("%s: %v, %t, %v", value, uses, keeps, err)
		}
	}
}

// TestFolderNotWritable checks that writableFolder returns an error for a folder in which this user must not write.
// Root may write everywhere, so the test becomes another user in one thread, which is not used again.
func TestFolderNotWritable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			const nobody, same = 65534, ^uintptr(0)
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, same, same); errno != 0 {
				done <- errno
				return
			}
		}
		done <- writableFolder(dir)
	}()
	if err := <-done; !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
}
