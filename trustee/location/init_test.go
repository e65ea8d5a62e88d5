package location

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"claviger/durable/durabletest"
	"claviger/trustee"
)

// TestTrusteeKeyLasts fails and interrupts each step of selfSigned. If the private key exists afterwards, it is
// complete and belongs to the certificate.
func TestTrusteeKeyLasts(t *testing.T) {
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
		Look: func(dir string) (string, error) {
			cert, key := files(dir)
			if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
				return "none", nil
			}
			_, err := tls.LoadX509KeyPair(cert, key)
			return "both", err
		},
		NoRetry: true, // Init makes a folder again whose name was lost
		Spare:   1,    // the sync for the key's name is also for the certificate's name
	})
}
