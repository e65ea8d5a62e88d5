package authn

import (
	"crypto/rand"
	"io"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"claviger"
	"claviger/secret"
)

// SecretProvider has the secrets that sign cookies. Its method is called for each request, from many goroutines. The
// caller must not change the slices.
type SecretProvider interface {
	// Secrets returns the current secret, which signs new cookies, and all valid secrets, with the current one. A
	// signature by any valid secret is good.
	Secrets() (current secret.Bytes, valid []secret.Bytes)
}

// RandomSecrets is the secret provider "random": a secret of 32 random bytes that is replaced once each period. The
// previous secret stays valid for one more period. A cookie lives for one period, so it is good until it expires.
type RandomSecrets struct {
	period time.Duration
	now    func() time.Time

	mu    sync.Mutex
	valid []secret.Bytes // the current secret, then the previous one, if there is one; replaced as a whole
	next  time.Time      // when the current secret is replaced
}

// NewRandomSecrets makes a provider. The period is token.validity. If now is nil, time.Now is used.
func NewRandomSecrets(period time.Duration, now func() time.Time) *RandomSecrets {
	if now == nil {
		now = time.Now
	}
	return &RandomSecrets{period: period, now: now, valid: []secret.Bytes{randomSecret()}, next: now().Add(period)}
}

// Secrets also replaces the secrets when a period has passed, so no timer is needed.
func (r *RandomSecrets) Secrets() (current secret.Bytes, valid []secret.Bytes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if late := r.now().Sub(r.next); late >= 0 {
		valid = []secret.Bytes{randomSecret()}
		if late < r.period { // otherwise no call came for more than a period, and the old secret has expired too
			valid = append(valid, r.valid[0])
		}
		r.valid = valid
		r.next = r.next.Add(late.Truncate(r.period) + r.period)
	}
	return r.valid[0], r.valid
}

func randomSecret() secret.Bytes {
	const size = 32 // bytes, as Hadoop's
	b := make(secret.Bytes, size)
	_, _ = rand.Read(b) // never returns an error: on failure it ends the process
	return b
}

// FileSecret is the secret provider "file": one secret for all nodes. The secret does not change while the process
// runs.
type FileSecret struct{ valid []secret.Bytes }

// maxSecretFile is the maximum size of the file in bytes. A signing secret is a line of text.
const maxSecretFile = 64 << 10

// NewFileSecret reads the secret. It is the whole content of the file, with a newline at the end. If Hadoop cannot
// read the file, it silently uses random secrets, and then nodes refuse each other's cookies; here that is an error.
// Bytes that are not UTF-8 are refused because Hadoop would sign with other bytes than those of the file.
func NewFileSecret(path string) (*FileSecret, error) {
	const property = "hadoop.kms.authentication.signature.secret.file"
	f, err := os.Open(path)
	if err != nil {
		return nil,
			claviger.BadProperty(property, err, "%v; make the file readable, or remove the property for "+
				"random secrets", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		return nil, claviger.BadProperty(property, err, "%v", err)
	case len(b) == 0:
		return nil, claviger.BadProperty(property, nil, "%s is empty; write a secret into it, the same on every node",
			path)
	case len(b) > maxSecretFile:
		return nil, claviger.BadProperty(property, nil, "%s is longer than %d bytes; is it the right file?", path,
			maxSecretFile)
	case !utf8.Valid(b):
		return nil,
			claviger.BadProperty(property, nil,
				"%s is not UTF-8 text, as Hadoop needs; write the secret as text, for example in base64", path)
	}
	return &FileSecret{valid: []secret.Bytes{b}}, nil
}

// Secrets returns the file's content.
func (s *FileSecret) Secrets() (current secret.Bytes, valid []secret.Bytes) {
	return s.valid[0], s.valid
}
