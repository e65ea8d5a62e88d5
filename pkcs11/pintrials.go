package pkcs11

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"
	"time"

	"claviger/filestamp"
	"claviger/secret"
)

// triedPINs are the PINs that were tried at tokens in this process.
var triedPINs = newPINTrials()

// pinTrials remembers the PINs that a token refused, and those that it may have refused. After a few wrong PINs a token
// locks, and a process opens one token many times: at each reload, for each provider, and after each loss of the token.
//
// A refused PIN is tried once more after each change of its file, because a person has looked at it, but no more than
// mostLogins times: a program may touch the file again and again, such as a backup by hard links. A login that the
// token accepts ends the token's own count of wrong PINs, so pinTrials then forgets all refusals of that token.
//
// It holds no PIN, but a keyed hash of each. The key of the hash exists only in this process.
type pinTrials struct {
	once    sync.Once
	key     [sha256.Size]byte
	mu      sync.Mutex
	running map[pinHash]*flight
	refused map[pinHash]*refusedPIN
	doubts  map[pinHash]*doubt
	tokens  map[string]*pinState // by trial.name
}

type pinHash [sha256.Size]byte

func newPINTrials() *pinTrials {
	return &pinTrials{running: map[pinHash]*flight{}, refused: map[pinHash]*refusedPIN{}, doubts: map[pinHash]*doubt{},
		tokens: map[string]*pinState{}}
}

// mostLogins is how often a process tries a PIN that a token refuses, or may refuse. Tokens are known that lock after
// ten wrong tries.
const mostLogins = 8

// spentPIN is the error of a PIN that was tried mostLogins times.
type spentPIN struct{ error }

func (e spentPIN) Unwrap() error { return e.error }

// refusedPIN is the record of a PIN that a token refused.
type refusedPIN struct {
	tries int
	files pinFiles // when the PIN was tried last
	err   error
	token string // see trial.name
}

// pinFiles has the stamps of PIN files, by the name of the file for messages. Two files may hold one PIN.
type pinFiles map[string]filestamp.Stamp

// changed reports whether a file was changed since its stamp was stored. A file that is new to f has not
// changed: otherwise each further file with the same wrong PIN would cause one more wrong try.
func (f pinFiles) changed(source string, file filestamp.Stamp) bool {
	known, ok := f[source]
	if !ok {
		f[source] = file
	}
	return ok && file.Exists() && file != known
}

// with returns a copy of f with another stamp of one file.
func (f pinFiles) with(source string, file filestamp.Stamp) pinFiles {
	files := maps.Clone(f)
	if files == nil {
		files = pinFiles{}
	}
	files[source] = file
	return files
}

// pinState is the record of a token at which a PIN was tried.
type pinState struct {
	files pinFiles  // when a PIN was tried last
	fresh time.Time // a library that was started before this time may compare a PIN with an old one
}

// staleLibrary is the error of a login that was not tried, because the library may know an old PIN of the token only.
// SoftHSM reads the data of a PIN when it is initialised, and another process may have changed the PIN since.
type staleLibrary struct{}

func (staleLibrary) Error() string {
	return "the PIN file was changed, or a PIN was refused before, " +
		"so the library is started again before the PIN is tried"
}

// trial is the trial of a PIN at a token.
type trial struct {
	module  string
	token   candidate
	pin     secret.Bytes
	source  string          // place of the PIN, for messages
	file    filestamp.Stamp // of the PIN file, before the PIN was read; zero if the PIN is in no file
	started time.Time       // when the library was initialised
}

// name names the token of the trial.
func (t *trial) name() string {
	return fmt.Sprintf("%q %q %q ", t.module, t.token.info.SerialNumber, t.token.info.Label)
}

// hash returns the hash of the PIN and its token.
func (b *pinTrials) hash(t *trial) pinHash {
	b.once.Do(func() { _, _ = rand.Read(b.key[:]) }) // it never fails
	h := hmac.New(sha256.New, b.key[:])
	h.Write([]byte(t.name()))
	h.Write(t.pin)
	return pinHash(h.Sum(nil))
}

// try calls attempt, unless the token refused the same PIN before: then it returns the earlier error. It also returns
// an error and does not call attempt while the PIN is in doubt (see doubt.holdsBack), or if the library may know an old
// PIN only (staleLibrary). Of several callers with one PIN, one calls attempt and the others wait for its result.
// doubted says whether the last login with the PIN may have been a wrong try, and accepted whether the token has
// compared the PIN and accepted it.
func (b *pinTrials) try(ctx context.Context, t trial, attempt func(doubted bool) (accepted bool, _ error)) error {
	hash := b.hash(&t)
	for {
		b.mu.Lock()
		f, ok := b.running[hash]
		if ok {
			b.mu.Unlock()
			if err := f.wait(ctx); isPIN(err) || ctx.Err() != nil {
				return err
			}
			continue
		}
		if err := b.holdsBack(hash, &t); err != nil {
			b.mu.Unlock()
			return err
		}
		doubted := b.doubts[hash] != nil
		f = newFlight()
		b.running[hash] = f
		b.mu.Unlock()
		accepted, err := attempt(doubted)
		b.mu.Lock()
		b.record(hash, &t, accepted, err)
		delete(b.running, hash)
		b.mu.Unlock()
		f.finish(err)
		return err
	}
}

// holdsBack returns why a PIN is not tried now, or nil. The caller holds b.mu.
func (b *pinTrials) holdsBack(hash pinHash, t *trial) error {
	switch r := b.refused[hash]; {
	case r == nil:
	case r.tries >= mostLogins:
		return spentPIN{r.err}
	case !r.files.changed(t.source, t.file):
		return r.err
	}
	if d := b.doubts[hash]; d != nil {
		if err := d.holdsBack(t.source, t.file); err != nil {
			return err
		}
	}
	s := b.tokens[t.name()]
	if s == nil {
		return nil
	}
	if s.files.changed(t.source, t.file) {
		s.files[t.source], s.fresh = t.file, time.Now()
	}
	if t.started.Before(s.fresh) {
		return staleLibrary{}
	}
	return nil
}

// record stores the result of a trial. The caller holds b.mu.
func (b *pinTrials) record(hash pinHash, t *trial, accepted bool, err error) {
	token := t.name()
	s := b.tokens[token]
	if s == nil {
		s = &pinState{files: pinFiles{}}
		b.tokens[token] = s
	}
	s.files[t.source] = t.file
	switch {
	case accepted:
		maps.DeleteFunc(b.refused, func(_ pinHash, r *refusedPIN) bool { return r.token == token })
		maps.DeleteFunc(b.doubts, func(_ pinHash, d *doubt) bool { return d.token == token })
	case isPIN(err):
		r := b.refused[hash]
		if r == nil {
			r = &refusedPIN{token: token}
			b.refused[hash] = r
		}
		r.tries++
		r.files, r.err = r.files.with(t.source, t.file), err
		delete(b.doubts, hash)
		s.fresh = time.Now() // the PIN of the token may be changed from now on
	case MayBeWrongPIN(err):
		d := &doubt{logins: 1, last: time.Now(), err: err, token: token}
		if before := b.doubts[hash]; before != nil {
			d.logins += before.logins
			d.files = before.files
		}
		d.files = d.files.with(t.source, t.file)
		b.doubts[hash] = d
	}
}
