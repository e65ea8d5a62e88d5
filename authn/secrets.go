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

// SecretProvider knows the secrets that sign cookies. Its method is called for
// every request, from many goroutines. The slices must not be changed.
type SecretProvider interface {
	// Secrets returns the secret to sign with, and all those whose signatures
	// are good, the former among them.
	Secrets() (current secret.Bytes, valid []secret.Bytes)
}

// RandomSecrets is the secret provider "random": a secret of 32 random bytes
// that is replaced once every period. The one before it stays good, so that a
// cookie that lives for one period is good until it expires.
type RandomSecrets struct {
	period time.Duration
	now    func() time.Time

	mu       sync.Mutex
	current  secret.Bytes
	previous secret.Bytes // nil: none yet
	next     time.Time    // when current is replaced
}

// NewRandomSecrets makes a provider whose period is token.validity. now may be
// nil for time.Now.
func NewRandomSecrets(period time.Duration, now func() time.Time) *RandomSecrets {
	if now == nil {
		now = time.Now
	}
	return &RandomSecrets{period: period, now: now, current: randomSecret(), next: now().Add(period)}
}

// Secrets rolls over when it is time, so that no timer has to run.
func (r *RandomSecrets) Secrets() (current secret.Bytes, valid []secret.Bytes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if late := r.now().Sub(r.next); late >= 0 {
		r.previous = r.current
		if late >= r.period { // unasked for more than a period: that one is over, too
			r.previous = nil
		}
		r.current = randomSecret()
		r.next = r.next.Add(late.Truncate(r.period) + r.period)
	}
	valid = []secret.Bytes{r.current}
	if r.previous != nil {
		valid = append(valid, r.previous)
	}
	return r.current, valid
}

func randomSecret() secret.Bytes {
	const size = 32 // bytes, as Hadoop's
	b := make(secret.Bytes, size)
	_, _ = rand.Read(b) // never fails: it ends the process first
	return b
}

// FileSecret is the secret provider "file": one secret for all nodes, that
// never changes while the process runs.
type FileSecret struct{ secret secret.Bytes }

// maxSecretFile in bytes; a signing secret is a line of text.
const maxSecretFile = 64 << 10

// NewFileSecret reads the secret: the whole content of the file, a newline at
// its end included. Where Hadoop falls back to random secrets in silence (and
// nodes then refuse each other's cookies) it is an error here. Bytes that are
// not UTF-8 are refused because Hadoop would sign with something else than what
// the file holds.
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
				"%s is not UTF-8 text, which Hadoop takes it for; write the secret as text (base64, say)", path)
	}
	return &FileSecret{secret: b}, nil
}

// Secrets returns the file's content.
func (s *FileSecret) Secrets() (current secret.Bytes, valid []secret.Bytes) {
	return s.secret, []secret.Bytes{s.secret}
}
