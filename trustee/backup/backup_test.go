package backup_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/sys/unix"

	"claviger/secret"
	"claviger/trustee"
	"claviger/trustee/backup"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// escrow returns the key that backups are encrypted to.
var escrow = sync.OnceValue(func() *openpgp.Entity {
	e, err := openpgp.NewEntity("escrow", "", "escrow@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoRSA,
		RSABits: 2048})
	if err != nil {
		panic(err)
	}
	return e
})

// identity is the identity of each trustee.
var identity = sync.OnceValue(func() *trustee.Identity {
	id, err := trustee.NewIdentity("keytrustee", "test", "keytrustee@h", 2048, time.Now())
	if err != nil {
		panic(err)
	}
	return id
})

func private(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := escrow().SerializePrivate(&b, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(ctx context.Context, dir string) (server.Store, error) {
	return sqlite.Open(ctx, filepath.Join(dir, "keytrustee.db"), true)
}

// site makes the folder of a trustee, and a store with n deposits.
func site(t *testing.T, n int) (dir string, store server.Store) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), ".keytrustee")
	_, err := trustee.NewFolder(dir, identity())
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, ".ssl"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ".ssl", "ssl-cert-keytrustee.pem"), []byte("certificate\n"), 0o600)
	}
	if err == nil {
		store, err = open(t.Context(), dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	now := time.Now()
	once := func() server.Once { return server.Once{Digest: trustee.NewUUID(), Until: now.Add(time.Minute)} }
	owner := strings.Repeat("A", 40)
	err = store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u", Contacts: []string{"a@b"}, Auth: "s3cret",
		Created: now})
	if err == nil {
		_, err = store.AddClient(t.Context(), server.Client{Fingerprint: owner, Org: "ORG", PublicKey: []byte("key"),
			State: server.Active, Created: now}, once())
	}
	for i := 0; i < n && err == nil; i++ {
		uuid := trustee.NewUUID()
		err = store.Put(t.Context(), server.Row{UUID: uuid, Owner: owner, Org: "ORG", Label: "l" + uuid,
			Wrapped: i%2 == 0,
			Sealed: trustee.Sealed{Statement: []byte("statement"), Signature: []byte("signature"),
				Content: bytes.Repeat([]byte{byte(i)}, 100_000)}}, "", once())
		if i == 3 && err == nil {
			err = store.Delete(t.Context(), owner, []string{uuid}, now, once())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, store
}

func write(t *testing.T, dir string, store server.Store) ([]byte, backup.Manifest) {
	t.Helper()
	var b bytes.Buffer
	m, err := backup.Write(t.Context(), &b, openpgp.EntityList{escrow()}, dir, store, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), m
}

func read(t *testing.T, sealed []byte, dir string) (backup.Manifest, error) {
	t.Helper()
	in, err := backup.Decrypt(bytes.NewReader(sealed), bytes.NewReader(private(t)))
	if err != nil {
		return backup.Manifest{}, err
	}
	return backup.Read(t.Context(), in, dir, open, false)
}

// TestBothWays: a folder and its store come back unchanged from an encrypted backup.
func TestBothWays(t *testing.T) {
	dir, store := site(t, 30) // more than one piece
	want, err := server.StateDigest(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	sealed, m := write(t, dir, store)
	if m.Store == nil || m.Store.Deposits != 30 || m.Store.Digest != want {
		t.Errorf("%+v; want digest %s", m.Store, want)
	}
	for _, secret := range []string{"s3cret", "LOCAL_FINGERPRINT", "statement"} {
		if bytes.Contains(sealed, []byte(secret)) {
			t.Errorf("the backup shows %q", secret)
		}
	}
	to := filepath.Join(t.TempDir(), "restored", ".keytrustee")
	if err := os.MkdirAll(to, 0o700); err != nil { // an empty folder is accepted
		t.Fatal(err)
	}
	if _, err := read(t, sealed, to); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, filepath.Dir(to), "")
	was, err := trustee.LoadFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	is, err := trustee.LoadFolder(to)
	if err != nil || is.Identity.String() != was.Identity.String() {
		t.Errorf("%v, %v", is, err)
	}
	if open := secret.Exposed(trustee.SecretFiles(to)...); len(open) > 0 {
		t.Errorf("open to others after a restore: %q", open)
	}
	restored, err := open(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	if got, err := server.StateDigest(t.Context(), restored); err != nil || got != want {
		t.Errorf("digest %s, %v; want %s", got, err, want)
	}
	if list, err := os.ReadDir(filepath.Dir(to)); err != nil || len(list) != 1 {
		t.Errorf("left beside it: %v, %v", list, err)
	}
	// A folder that exists is not changed.
	if _, err := read(t, sealed, to); !errors.Is(err, fs.ErrExist) ||
		!strings.Contains(err.Error(), "is not empty, and was not overwritten") {
		t.Errorf("a second restoration: %v", err)
	}
}

// TestClientFolder: a folder without a store comes back without a store.
func TestClientFolder(t *testing.T) {
	dir, _ := site(t, 0)
	sealed, m := write(t, dir, nil)
	if m.Store != nil {
		t.Errorf("%+v", m)
	}
	to := filepath.Join(t.TempDir(), ".keytrustee")
	if _, err := read(t, sealed, to); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(to, "keytrustee.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a store out of nothing: %v", err)
	}
	in, err := backup.Decrypt(bytes.NewReader(sealed), bytes.NewReader(private(t)))
	if err != nil {
		t.Fatal(err)
	}
	another := filepath.Join(t.TempDir(), ".keytrustee")
	if _, err := backup.Read(t.Context(), in, another, open, true); err == nil ||
		!strings.Contains(err.Error(), "and no deposits for a store") {
		t.Errorf("with a store that is wanted: %v", err)
	}
	if _, err := os.Stat(another); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder although it was refused: %v", err)
	}
}

// TestAfterKill: a restoration removes the work folder of a killed restoration, but not that of a running one, and
// nothing else.
func TestAfterKill(t *testing.T) {
	dir, store := site(t, 1)
	sealed, _ := write(t, dir, store)
	parent := t.TempDir()
	others := []string{filepath.Join(parent, "other"), filepath.Join(parent, ".claviger-restore-link"),
		filepath.Join(parent, ".claviger-restore-file")}
	if err := errors.Join(os.Mkdir(others[0], 0o700), os.Symlink(others[0], others[1]),
		os.WriteFile(others[2], nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	killed, atWork := filepath.Join(parent, ".claviger-restore-1"), filepath.Join(parent, ".claviger-restore-2")
	for _, d := range []string{killed, atWork} {
		if err := os.MkdirAll(filepath.Join(d, "folder"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(atWork)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, sealed, filepath.Join(parent, ".keytrustee")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", killed, err)
	}
	for _, path := range append(others, atWork) {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	wantClosed(t, parent, f.Name())
}

// wantClosed fails the test if this process has a file in the folder open. except is the name of a file.
func wantClosed(t *testing.T, folder, except string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, folder+"/") && name != except {
			t.Errorf("%s is open", name)
		}
	}
}

// TestRefused: a backup that was altered or truncated, or that is not ours, is refused, and leaves no files.
func TestRefused(t *testing.T) {
	dir, store := site(t, 5)
	sealed, _ := write(t, dir, store)
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-200] ^= 1
	for name, bad := range map[string][]byte{"cut": sealed[:len(sealed)*2/3], "cut at its end": sealed[:len(sealed)-5],
		"altered": flipped, "empty": {}, "text": []byte(strings.Repeat("no backup\n", 50))} {
		parent := t.TempDir()
		if _, err := read(t, bad, filepath.Join(parent, ".keytrustee")); err == nil {
			t.Errorf("%s: restored", name)
		}
		if list, err := os.ReadDir(parent); err != nil || len(list) != 0 {
			t.Errorf("%s: left behind: %v, %v", name, list, err)
		}
	}
	ring, err := os.Open(filepath.Join(dir, trustee.PrivateRing))
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if _, err := backup.Decrypt(bytes.NewReader(sealed), ring); err == nil ||
		!strings.Contains(err.Error(), "this key ring does not open the backup") {
		t.Errorf("another's key: %v", err)
	}
	// An archive that anybody can make.
	if _, err := backup.Read(t.Context(), strings.NewReader(strings.Repeat("\x00", 1024)),
		filepath.Join(t.TempDir(), "x"), open, false); err == nil || !strings.Contains(err.Error(),
		"before its manifest") {
		t.Errorf("an empty archive: %v", err)
	}
	signer := *escrow()
	signer.Subkeys = nil
	var out bytes.Buffer
	if _, err := backup.Write(t.Context(), &out, openpgp.EntityList{&signer}, dir, store, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "a key for encryption [E]") || out.Len() != 0 {
		t.Errorf("for a recipient whose key can only sign: %v, %d bytes", err, out.Len())
	}
}

// TestGnuPG: gpg opens a backup, so the private key of the backup may be in a place that only gpg can use.
func TestGnuPG(t *testing.T) {
	for _, program := range []string{"gpg", "gpg1"} {
		t.Run(program, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				if os.Getenv("CLAVIGER_REQUIRE_GPG") == "1" {
					t.Fatalf("%s is missing: run `make setup`", program)
				}
				t.Skipf("%s is missing; `make test` runs this test", program)
			}
			home, err := os.MkdirTemp("", "gpg") // the path of the agent's socket must be short
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if program == "gpg" {
					_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() // no agent may run
				}
				if err := os.RemoveAll(home); err != nil {
					t.Error(err)
				}
			})
			run := func(in []byte, args ...string) []byte {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, program, append([]string{"--batch", "--no-tty", "--homedir", home},
					args...)...)
				var out, stderr bytes.Buffer
				cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &stderr
				if err := cmd.Run(); err != nil {
					t.Fatalf("%s %v: %v\n%s", program, args, err, &stderr)
				}
				return out.Bytes()
			}
			dir, store := site(t, 3)
			sealed, _ := write(t, dir, store)
			run(private(t), "--import")
			plain := run(sealed, "--decrypt")
			if _, err := backup.Read(t.Context(), bytes.NewReader(plain), filepath.Join(t.TempDir(), "x"), open,
				false); err != nil {
				t.Error(err)
			}
		})
	}
}
