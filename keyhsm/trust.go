package keyhsm

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"claviger/durable"
)

// maxPEM bounds a file of certificates, and maxTrusted how many there may be.
const (
	maxPEM     = 256 << 10
	maxTrusted = 1000
)

// fingerprint is SHA-256 over a certificate.
type fingerprint [sha256.Size]byte

// Trust is a set of certificates of trustees: those very certificates, and none
// that they may have issued. The zero Trust trusts nobody.
type Trust struct {
	certs map[fingerprint]*x509.Certificate
}

// ReadTrust reads all *.pem of a folder. One that is not there trusts nobody.
func ReadTrust(dir string) (*Trust, error) {
	names, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.pem"))
	if err != nil {
		return nil, err
	}
	if len(names) > maxTrusted {
		return nil, fmt.Errorf("%s holds %d files of certificates; at most %d are read", dir, len(names), maxTrusted)
	}
	t := &Trust{map[fingerprint]*x509.Certificate{}}
	for _, name := range names {
		cert, err := ReadCertificate(name)
		if err != nil {
			return nil, err
		}
		t.certs[sha256.Sum256(cert.Raw)] = cert
	}
	return t, nil
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// Len is how many certificates are trusted.
func (t *Trust) Len() int { return len(t.certs) }

// Certificates returns them in no order.
func (t *Trust) Certificates() []*x509.Certificate {
	var list []*x509.Certificate
	for _, c := range t.certs {
		list = append(list, c)
	}
	return list
}

// check says why a certificate is not trusted now.
func (t *Trust) check(cert *x509.Certificate, now time.Time) error {
	if _, ok := t.certs[sha256.Sum256(cert.Raw)]; !ok {
		return fmt.Errorf("certificate %s of %q is not trusted; cure: claviger keyhsm trust FILE, with the file of that certificate, then claviger keyhsm reload", short(cert), cert.Subject)
	}
	return inTime(cert, now)
}

func inTime(cert *x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("certificate %s of %q is good from %s to %s, and it is %s now", short(cert), cert.Subject,
			cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// short names a certificate by the beginning of its fingerprint.
func short(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:8])
}

// AddTrusted copies the certificate of a file into the folder, and returns it and
// the file that it is in now. added is false where it was there before.
func AddTrusted(dir, path string) (cert *x509.Certificate, file string, added bool, err error) {
	if cert, err = ReadCertificate(path); err != nil {
		return nil, "", false, err
	}
	if err := inTime(cert, time.Now()); err != nil {
		return nil, "", false, fmt.Errorf("%s: %w", path, err)
	}
	if err := durable.MakeFolder(dir, 0o755); err != nil { // certificates are public
		return nil, "", false, err
	}
	file = filepath.Join(dir, short(cert)+".pem")
	var out bytes.Buffer
	fmt.Fprintf(&out, "# %q, until %s\n", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
	if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
		return nil, "", false, err
	}
	// It is *.pem only when it is whole: a reload may come at any time.
	err = durable.Create(file, out.Bytes(), 0o644)
	if errors.Is(err, fs.ErrExist) {
		return cert, file, false, durable.SyncFolder(dir) // its maker may have been killed before that
	}
	if err != nil {
		return nil, "", false, err
	}
	return cert, file, true, nil
}

// ReadCertificate reads a file that holds a certificate, in PEM or DER. Of
// several in PEM it is the first: that of the peer itself, where the rest is its
// chain.
func ReadCertificate(path string) (*x509.Certificate, error) {
	data, err := readFile(path, maxPEM)
	if err != nil {
		return nil, err
	}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return cert, nil
	}
	cert, err := x509.ParseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("%s holds no certificate, in PEM or DER", path)
	}
	return cert, nil
}

// readFile reads a file of at most so many bytes.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s is longer than %d bytes, which is no file of that kind", path, most)
	}
	return data, err
}

// Identity is what a server shows and whom it trusts; both may change while it
// runs.
type Identity struct {
	Certificate tls.Certificate
	Trust       *Trust
}

// admits says why a peer may not speak to a server of that identity. One who has
// the server's own certificate, and so its private key, is its administrator.
func (i *Identity) admits(peers []*x509.Certificate) (admin bool, err error) {
	if len(peers) == 0 {
		return false, errors.New("the client shows no certificate")
	}
	if len(i.Certificate.Certificate) > 0 && bytes.Equal(peers[0].Raw, i.Certificate.Certificate[0]) {
		return true, nil
	}
	return false, i.Trust.check(peers[0], time.Now())
}
