package host

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"claviger/console"
	"claviger/tlskey"
	"claviger/trustee"
	"claviger/web"
)

// ownTLS is the TLS of a trustee.
type ownTLS struct {
	*web.TLS
	keys *tlskey.Keys // nil if the private key is in the folder
}

// Close stops following the files, and closes the tokens.
func (t *ownTLS) Close() {
	t.TLS.Close()
	if t.keys != nil {
		_ = t.keys.Close() // the handshakes are over
	}
}

// serverTLS reads the certificate, and reads it again when its files change. In place of a private key, the file of the
// key may hold the URIs of keys in an HSM. careful is tlskey.Config.Careful.
func serverTLS(dir string, careful bool, log *slog.Logger) (*ownTLS, error) {
	cert, key := filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey)
	for _, file := range []string{cert, key} {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing: a copy of a folder without .ssl, as rsync --exclude .ssl makes it, "+
				"needs its own certificate for this host; claviger trustee init makes one", file)
		}
	}
	uris, inHSM, err := tlskey.ReadURIs(key)
	if err != nil {
		return nil, err
	}
	t, files := new(ownTLS), []string{cert, key}
	load := func() ([]tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(cert, key)
		return []tls.Certificate{c}, err
	}
	if inHSM {
		t.keys, err = tlskey.Open(context.Background(), tlskey.Config{URIs: uris, Certificates: cert, Careful: careful,
			Log: log})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		files = t.keys.Files()
		load = func() ([]tls.Certificate, error) {
			list, _, err := t.keys.Certificates()
			return list, err
		}
	}
	if t.TLS, err = web.FollowCertificate(files, load, log); err != nil {
		err = fmt.Errorf("%s and %s: %w", cert, key, err)
		if t.keys != nil {
			err = errors.Join(err, t.keys.Close())
		}
		return nil, err
	}
	return t, nil
}

// InspectCertificate reads the certificate of a trustee as a start does, and lets a key in an HSM sign.
func InspectCertificate(ctx context.Context, dir string, log *slog.Logger) (*x509.Certificate, error) {
	t, err := serverTLS(dir, true, log)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	if t.keys != nil {
		if err := t.keys.Check(ctx); err != nil {
			return nil, err
		}
	}
	return t.Certificate()
}

// keyChecks is about a private key in an HSM.
func (t *ownTLS) keyChecks() []console.Check {
	if t.keys == nil {
		return nil
	}
	return []console.Check{{Name: "TLS key in the HSM", Run: t.keys.Check, Last: func() (console.Observation, bool) {
		last, ok := t.keys.Last()
		return console.Observation(last), ok
	}}}
}
