package keyhsm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/durable"
	"claviger/durable/durabletest"
	"claviger/keystore"
	"claviger/pkcs11"
)

// TestFilesSurviveFaults fails and interrupts each step in which a Key HSM writes its settings, its certificate and
// key, and the certificate of a trustee.
func TestFilesSurviveFaults(t *testing.T) {
	other := filepath.Join(t.TempDir(), "trustee.pem")
	cert, _, err := keystore.SelfSigned("trustee", []string{"kts"}, time.Hour)
	if err == nil {
		err = os.WriteFile(other, cert, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	settings := Settings{HSM: pkcs11.SoftHSM, Module: "/lib/x.so", Token: "t", PINFile: "/etc/pin", KeyLabel: "k",
		KeyID: "00ff", Listen: "[::1]:9090", Certificate: "/c", PrivateKey: "/k", Trust: "/t"}
	for name, c := range map[string]durabletest.Case{
		"settings": {
			Do: func(dir string) error { return WriteSettings(dir, settings) },
			State: func(dir string) (string, error) {
				s, _, err := ReadSettings(dir)
				if err != nil && strings.Contains(err.Error(), "claviger keyhsm setup") {
					return "none", nil
				}
				return s.KeyID, err
			},
		},
		"certificate": {
			Do: func(dir string) error {
				hosts := []string{"localhost"}
				if made, err := HasCertificate(dir, hosts); made || err != nil {
					return err // like setup after an interruption
				}
				return CreateCertificate(dir, hosts)
			},
			State: func(dir string) (string, error) {
				s := Settings{Certificate: filepath.Join(dir, CertificateFile),
					PrivateKey: filepath.Join(dir, PrivateKeyFile)}
				if _, err := os.Stat(s.PrivateKey); errors.Is(err, fs.ErrNotExist) {
					return "none", nil
				}
				_, err := s.certificate()
				return "both", err
			},
			UnneededSyncs: 2, // three names are in one folder, and the last sync is for all
		},
		"trusted certificate": {
			Do: func(dir string) error {
				_, _, _, err := AddTrusted(filepath.Join(dir, "trust"), other)
				return err
			},
			State: func(dir string) (string, error) {
				trust, err := ReadTrust(filepath.Join(dir, "trust"))
				if err != nil {
					return "", err
				}
				return fmt.Sprint(trust.Len()), nil
			},
			NoRetry: true, // the folder's name is not synced again
		},
	} {
		t.Run(name, func(t *testing.T) { durabletest.Run(t, c) })
	}
}

// folderSyncs counts how often folders are synced.
type folderSyncs struct {
	durable.OS
	n int
}

func (s *folderSyncs) SyncFolder(name string) error {
	s.n++
	return s.OS.SyncFolder(name)
}

// TestTrustedAgain: a process that was killed after it gave a certificate its name may not have
// synced the folder. The next call finds the file and syncs the folder.
func TestTrustedAgain(t *testing.T) {
	other, dir := filepath.Join(t.TempDir(), "trustee.pem"), t.TempDir()
	cert, _, err := keystore.SelfSigned("trustee", []string{"kts"}, time.Hour)
	if err == nil {
		err = os.WriteFile(other, cert, 0o600)
	}
	if err == nil {
		_, _, _, err = AddTrusted(dir, other)
	}
	if err != nil {
		t.Fatal(err)
	}
	var syncs folderSyncs
	defer durable.Mount(dir, &syncs)()
	if _, _, added, err := AddTrusted(dir, other); err != nil || added || syncs.n != 1 {
		t.Errorf("added %t, %d folders synced, %v", added, syncs.n, err)
	}
}
