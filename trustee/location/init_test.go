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

// TestTrusteeKeyLasts fails and cuts off each step of making a trustee's certificate:
// where its private key is, it is whole, and belongs to the certificate.
func TestTrusteeKeyLasts(t *testing.T) {
	files := func(dir string) (cert, key string) {
		return filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey)
	}
	durabletest.Run(t, durabletest.Case{
		Do: func(dir string) error {
			cert, key := files(dir)
			if _, err := os.Stat(key); err == nil {
				return nil // as init does
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
		NoRetry: true, // a folder whose name was lost is made again by init
		Spare:   1,    // the certificate's name lasts with the key's
	})
}
