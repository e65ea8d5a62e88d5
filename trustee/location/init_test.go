package location

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/durable"
	"claviger/durable/durabletest"
	"claviger/owner"
	"claviger/trustee"
	"claviger/trustee/server/sqlite"
	"claviger/trustee/server/storetest"
)

// TestTrusteeKeySurvivesFaults fails and interrupts each step of selfSigned. If the private key exists afterwards, it
// is complete and belongs to the certificate.
func TestTrusteeKeySurvivesFaults(t *testing.T) {
	files := func(dir string) (cert, key string) {
		return filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey)
	}
	durabletest.Run(t, durabletest.Case{
		Do: func(dir string) error {
			cert, key := files(dir)
			if _, err := os.Stat(key); err == nil {
				return nil // like Init
			}
			return selfSigned(cert, key, []string{"localhost"})
		},
		State: func(dir string) (string, error) {
			cert, key := files(dir)
			if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
				return "none", nil
			}
			_, err := tls.LoadX509KeyPair(cert, key)
			return "both", err
		},
		NoRetry:       true, // Init makes a folder again whose name was lost
		UnneededSyncs: 1,    // the sync for the key's name is also for the certificate's name
	})
}

// TestInitHosts: a certificate that exists is kept if it is valid for the hosts that are given, or if none is given.
// Otherwise Init is refused, and makes no store.
func TestInitHosts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	made, err := Init(t.Context(), dir, InitOptions{})
	if err != nil || !slices.Equal(made.Hosts, []string{own}) {
		t.Fatalf("%+v, %v", made, err)
	}
	storeFile := filepath.Join(dir, FileName)
	if err := os.Remove(storeFile); err != nil {
		t.Fatal(err)
	}
	_, err = Init(t.Context(), dir, InitOptions{Hosts: []string{own, "kt2.example.com"}})
	if err == nil || !strings.Contains(err.Error(), "--hostname kt2.example.com") {
		t.Errorf("a name that the certificate lacks: %v", err)
	}
	if _, err := os.Stat(storeFile); err == nil {
		t.Error("a refused Init has made a store")
	}
	for _, given := range [][]string{nil, {own}} {
		again, err := Init(t.Context(), dir, InitOptions{Hosts: given})
		if err != nil || again.Certificate != "" || again.Hosts != nil {
			t.Errorf("%q: %+v, %v", given, again, err)
		}
	}
	cert := filepath.Join(dir, trustee.TLSCert)
	if err := os.WriteFile(cert, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), dir, InitOptions{Hosts: []string{own}}); err == nil ||
		!strings.Contains(err.Error(), cert) {
		t.Errorf("a damaged certificate: %v", err)
	}
}

// TestInit makes a folder from nothing. A second call changes nothing.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	cert, key := filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey)
	made, err := Init(t.Context(), dir, InitOptions{Hosts: hosts})
	if err != nil || made.Certificate != cert || time.Until(made.Expires) < certificateLife-time.Hour {
		t.Fatalf("%+v, %v", made, err)
	}
	wantClosed(t, "after Init", dir)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	store, err := Open(t.Context(), made.Folder, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, store)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	again, err := Init(t.Context(), dir, InitOptions{Hosts: hosts})
	if err != nil || again.Certificate != "" || !again.Expires.IsZero() ||
		again.Folder.Identity.Fingerprint() != made.Folder.Identity.Fingerprint() {
		t.Errorf("the second Init: %+v, %v", again, err)
	}
	if after := contents(t, dir); !slices.Equal(before, after) {
		t.Error("the second Init changed a file")
	}
}

// contents returns the names and contents of all files in a folder.
func contents(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all = append(all, path+": "+string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestInitIdentity checks when Init makes an identity. A name that no identity can have makes it fail there.
func TestInitIdentity(t *testing.T) {
	impossible := InitOptions{Hosts: []string{"h<"}}
	unfinished := newFolder(t, nil)
	if err := os.Rename(filepath.Join(unfinished.Path, trustee.PrivateRing),
		filepath.Join(unfinished.Path, trustee.PrivateRing+".new")); err != nil {
		t.Fatal(err)
	}
	_, err := Init(t.Context(), unfinished.Path, impossible)
	wants(t, "an unfinished identity", err, "user id")
	// The folder is checked before the identity is made, which takes seconds.
	rings := newFolder(t, nil)
	if err := os.Remove(filepath.Join(rings.Path, trustee.ConfFile)); err != nil {
		t.Fatal(err)
	}
	_, err = Init(t.Context(), rings.Path, impossible)
	wants(t, "rings without a configuration", err, "already holds "+trustee.PublicRing)
	damaged := newFolder(t, nil)
	write(t, filepath.Join(damaged.Path, trustee.ConfFile), "{")
	_, err = Init(t.Context(), damaged.Path, impossible)
	wants(t, "a damaged folder", err, "is not the JSON that it should be")
	_, err = Init(t.Context(), newFolder(t, withOrganization).Path, impossible)
	wants(t, "the folder of a client", err, "is the folder of a KT KMS")
}

// TestInitAsRoot checks that root makes no files in the folder of another user.
func TestInitAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a folder of another user")
	}
	f := newFolder(t, nil)
	if err := os.Chown(f.Path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	before := contents(t, f.Path)
	if _, err := Init(t.Context(), f.Path, InitOptions{Hosts: hosts}); !errors.As(err, new(*owner.RootError)) {
		t.Error(err)
	}
	if !slices.Equal(before, contents(t, f.Path)) {
		t.Error("Init made files")
	}
}

// TestInitCertificate checks in which folders Init makes a certificate. A certificate without a key was left by an
// interrupted Init only if there is no store yet.
func TestInitCertificate(t *testing.T) {
	for name, c := range map[string]struct {
		change            func(*trustee.Folder)
		store, cert, made bool
	}{
		"a new folder":                      {nil, false, false, true},
		"a store without a certificate":     {nil, true, false, true},
		"an interrupted Init":               {nil, false, true, true},
		"a certificate without its key":     {nil, true, true, false},
		"a certificate beside a database's": {inDatabase, false, true, false},
	} {
		f := newFolder(t, c.change)
		if c.store {
			newStore(t, f)
		}
		cert := filepath.Join(f.Path, trustee.TLSCert)
		if err := os.Mkdir(filepath.Dir(cert), 0o700); err != nil {
			t.Fatal(err)
		}
		if c.cert {
			write(t, cert, "certificate")
		}
		made, err := Init(t.Context(), f.Path, InitOptions{Hosts: hosts})
		if !c.made {
			wants(t, name, err, "exists without its key")
			continue
		}
		if err != nil || made.Certificate != cert {
			t.Errorf("%s: %+v, %v", name, made, err)
		}
	}
	f := newFolder(t, nil)
	_, err := Init(t.Context(), f.Path, InitOptions{Hosts: []string{"\u00fc"}})
	wants(t, "a name that no certificate can have", err, "making a certificate")
	if exists(filepath.Join(f.Path, trustee.TLSKey)) || exists(file(f)) {
		t.Error("after an error, Init went on")
	}
}

// TestInitLostStore checks that Init makes no empty store in place of a store that was used and is missing, unless
// Empty is true. It then keeps the write-ahead log, which may hold changes.
func TestInitLostStore(t *testing.T) {
	for _, log := range []bool{false, true} {
		f := newFolder(t, nil)
		write(t, file(f)+".lock", "")
		if log {
			write(t, file(f)+"-wal", "changes")
		}
		_, err := Init(t.Context(), f.Path, InitOptions{Hosts: hosts})
		wants(t, "a lost store", err, file(f)+" is missing", file(f)+".lock", "--empty-store")
		if exists(file(f)) || exists(file(f)+"-wal") != log {
			t.Error("a refused Init changed files")
		}
		empty := InitOptions{Hosts: hosts, Empty: true}
		if log {
			unmount := durable.Mount(f.Path, badDisk{bad: "-wal"})
			_, err := Init(t.Context(), f.Path, empty)
			unmount()
			if !errors.Is(err, errInjected) || exists(file(f)) {
				t.Errorf("the log cannot be moved away: %v", err)
			}
		}
		if _, err := Init(t.Context(), f.Path, empty); err != nil || !exists(file(f)) {
			t.Errorf("with Empty: %v", err)
		}
		left, err := filepath.Glob(file(f) + ".left-*-wal")
		if err != nil || (len(left) == 1) != log {
			t.Errorf("kept: %q, %v", left, err)
		}
		for _, path := range left {
			if text, err := os.ReadFile(path); err != nil || string(text) != "changes" {
				t.Errorf("%s: %q, %v", path, text, err)
			}
		}
	}
	f := newFolder(t, nil)
	write(t, file(f), "the file of another program")
	_, err := Init(t.Context(), f.Path, InitOptions{Hosts: hosts})
	wants(t, "another program's file", err, file(f))
}

// TestInitMove checks that Init does not move deposits from a file into a database.
func TestInitMove(t *testing.T) {
	f := newFolder(t, nil)
	newStore(t, f)
	_, err := Init(t.Context(), f.Path, InitOptions{Hosts: hosts, Store: "postgresql://u@h:wrong/d"})
	wants(t, "--store beside a file", err, "this trustee's deposits are in "+file(f))
	if got, err := Load(f.Path); err != nil || got.Store != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if s, err := sqlite.Open(t.Context(), file(f), false); err != nil {
		t.Error(err)
	} else if err := s.Close(); err != nil {
		t.Error(err)
	}
}
