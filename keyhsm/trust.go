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

// maxPEM is the size limit of a file of certificates, and maxTrusted limits the number of files.
const (
	maxPEM     = 256 << 10
	maxTrusted = 1000
)

// fingerprint is the SHA-256 of a certificate.
type fingerprint [sha256.Size]byte

// Trust is a set of trusted certificates of trustees. A certificate that such a certificate has issued is
// not trusted. The zero Trust is empty.
type Trust struct {
	certs map[fingerprint]*x509.Certificate
}

// ReadTrust reads all files *.pem of a folder. If the folder is missing, the Trust is empty.
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

// Len returns the number of trusted certificates.
func (t *Trust) Len() int { return len(t.certs) }

// Certificates returns the trusted certificates, in no order.
func (t *Trust) Certificates() []*x509.Certificate {
	var list []*x509.Certificate
	for _, c := range t.certs {
		list = append(list, c)
	}
	return list
}

// check returns why a certificate is not trusted now.
func (t *Trust) check(cert *x509.Certificate, now time.Time) error {
	if _, ok := t.certs[sha256.Sum256(cert.Raw)]; !ok {
		return fmt.Errorf("certificate %s of %q is not trusted; cure: claviger keyhsm trust FILE, with the file of "+
			"that certificate, then claviger keyhsm reload", shortFingerprint(cert), cert.Subject)
	}
	return inTime(cert, now)
}

// inTime returns why a certificate is not valid now.
func inTime(cert *x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("certificate %s of %q is valid from %s to %s, and it is %s now", shortFingerprint(cert),
			cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339),
			now.UTC().Format(time.RFC3339))
	}
	return nil
}

// shortFingerprint returns the beginning of the fingerprint of a certificate, in hexadecimal.
func shortFingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:8])
}

// AddTrusted copies the certificate of the file path into the folder dir, and returns the
// certificate and the new file. added is false if the certificate was in the folder before.
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
	file = filepath.Join(dir, shortFingerprint(cert)+".pem")
	var out bytes.Buffer
	fmt.Fprintf(&out, "# %q, until %s\n", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
	if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
		return nil, "", false, err
	}
	// A server may reload at any time, so the file gets its name only when it is complete.
	err = durable.Create(file, out.Bytes(), 0o644)
	if errors.Is(err, fs.ErrExist) {
		// The process that made the file may have been killed before it synced the folder.
		return cert, file, false, durable.SyncFolder(dir)
	}
	if err != nil {
		return nil, "", false, err
	}
	return cert, file, true, nil
}

// ReadCertificate reads the certificate of a file in PEM or DER. If a PEM file has several certificates, it
// returns the first, which in a chain is the certificate of the peer itself.
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

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes, so it is not a file of that kind", path, limit)
	}
	return data, err
}

// Identity is the certificate of a server and the certificates that it trusts.
type Identity struct {
	Certificate tls.Certificate
	Trust       *Trust
}

// admits returns an error if a server with this identity refuses a peer. A peer with the server's own
// certificate has the server's private key, and is an administrator.
func (i *Identity) admits(peers []*x509.Certificate) (admin bool, err error) {
	if len(peers) == 0 {
		return false, errors.New("the client shows no certificate")
	}
	if len(i.Certificate.Certificate) > 0 && bytes.Equal(peers[0].Raw, i.Certificate.Certificate[0]) {
		return true, nil
	}
	return false, i.Trust.check(peers[0], time.Now())
}
