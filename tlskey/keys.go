package tlskey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/pkcs11"
)

// Config says which keys a server has.
type Config struct {
	URIs         []string // of the keys: one, or one for each kind of key
	Certificates string   // path of a PEM file with the certificates
	// Timeout is how long a handshake waits for its signature; 0 means DefaultTimeout.
	Timeout time.Duration
	// AtOnce is how many signatures each token makes at the same time; 0 means DefaultAtOnce.
	AtOnce int
	// Careful is pkcs11.Config.Careful.
	Careful bool
	// Worker says where the HSM's library runs.
	Worker pkcs11.WorkerMode
	Log    *slog.Logger
	// Wrap is pkcs11.Config.Wrap.
	Wrap func(pkcs11.Boundary) pkcs11.Boundary
}

// The defaults of Config.
const (
	DefaultTimeout = 5 * time.Second
	DefaultAtOnce  = 8
)

// openTimeout is how long a start waits for an HSM.
const openTimeout = 20 * time.Second

// Pauses between attempts to open a token that does not answer.
const (
	firstPause = time.Second
	maxPause   = 10 * time.Second
)

// Keys are the private keys of a server. Methods may be called from many goroutines.
type Keys struct {
	cfg    Config
	log    *slog.Logger
	tokens []*token
	keys   []*key

	onSign atomic.Pointer[func(Signature)]

	// served has the signers of the certificates that were loaded last.
	served  atomic.Pointer[[]*Signer]
	refused atomic.Pointer[error] // why the last file with certificates was refused; nil if it was accepted

	made, failed atomic.Uint64

	stop       context.CancelFunc
	background sync.WaitGroup
}

// key is a private key that a URI names.
type key struct {
	name  pkcs11.PrivateKeyName
	token *token
}

// token is a token with keys.
type token struct {
	cfg  pkcs11.Config
	open atomic.Pointer[pkcs11.Token] // nil if the token did not answer yet
	why  atomic.Pointer[error]        // why open is nil
}

// get returns the token, or an error of kind Unavailable.
func (t *token) get() (*pkcs11.Token, error) {
	if tok := t.open.Load(); tok != nil {
		return tok, nil
	}
	err := errors.New("it is being opened")
	if why := t.why.Load(); why != nil {
		err = *why
	}
	return nil, claviger.Errorf("tlskey.token", claviger.Unavailable, "", "the token of the TLS key is not open: %w",
		err)
}

// Open opens the tokens of the keys, and finds each key. A token that does not answer is opened later, in the
// background. Call Certificates before a handshake, and Close at the end.
func Open(ctx context.Context, cfg Config) (_ *Keys, err error) {
	cfg.Timeout, cfg.AtOnce = cmp.Or(cfg.Timeout, DefaultTimeout), cmp.Or(cfg.AtOnce, DefaultAtOnce)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	background, stop := context.WithCancel(context.Background())
	k := &Keys{cfg: cfg, log: claviger.LimitLog(cfg.Log), stop: stop}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	for _, uri := range cfg.URIs {
		if err := k.add(uri); err != nil {
			return nil, err
		}
	}
	if len(k.keys) == 0 {
		return nil, errors.New("no key is named")
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for _, t := range k.tokens {
		if err := k.openToken(ctx, t); err != nil {
			if !claviger.IsUnreachable(err) {
				return nil, err
			}
			k.log.Error("the HSM with the key of TLS does not answer; TLS handshakes fail until it does", "err", err)
			k.background.Go(func() { k.openLater(background, t) })
		}
	}
	return k, nil
}

// add adds the key of a URI. Keys of one token share its sessions.
func (k *Keys) add(uri string) error {
	c, name, warnings, err := pkcs11.ParseKeyURI(uri)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		k.log.Warn(w)
	}
	for _, t := range k.tokens {
		if sameToken(&t.cfg, &c) {
			k.keys = append(k.keys, &key{name, t})
			return nil
		}
	}
	c.SignOnly, c.OwnWorker, c.Careful = true, true, k.cfg.Careful
	c.MaxSessions = k.cfg.AtOnce + 1 // one session holds the login
	c.CallLimit = max(2*k.cfg.Timeout, time.Second)
	c.Worker, c.Log, c.Wrap = k.cfg.Worker, k.cfg.Log, k.cfg.Wrap
	t := &token{cfg: c}
	k.tokens, k.keys = append(k.tokens, t), append(k.keys, &key{name, t})
	return nil
}

// sameToken reports whether two URIs name one token in the same way.
func sameToken(a, b *pkcs11.Config) bool {
	slot := func(c *pkcs11.Config) int {
		if c.Slot == nil {
			return -1
		}
		return int(*c.Slot) //nolint:gosec // below 2^32
	}
	return a.Module == b.Module && a.TokenLabel == b.TokenLabel && a.Serial == b.Serial && slot(a) == slot(b) &&
		a.PINFile == b.PINFile && a.Profile == b.Profile
}

// openToken opens a token, and finds its keys.
func (k *Keys) openToken(ctx context.Context, t *token) error {
	tok, err := pkcs11.Open(ctx, t.cfg)
	if err == nil {
		if err = k.findKeys(ctx, t, tok); err != nil {
			err = errors.Join(err, tok.Close())
		}
	}
	if err != nil {
		t.why.Store(&err)
		return err
	}
	t.open.Store(tok)
	return nil
}

// findKeys returns an error if a key of a token is not there, or cannot sign.
func (k *Keys) findKeys(ctx context.Context, t *token, tok *pkcs11.Token) error {
	for _, of := range k.keys {
		if of.token != t {
			continue
		}
		found, err := tok.SigningKey(ctx, of.name)
		if err != nil {
			return err
		}
		if !found.Sign {
			return fmt.Errorf("the private key with %v may not sign (CKA_SIGN is false); make a key for TLS: claviger "+
				"hsm tls-key", of.name)
		}
		if found.Extractable || !found.Sensitive {
			k.log.Warn("a private key of TLS can leave the HSM; make one that cannot: claviger hsm tls-key", "key",
				of.name.String(), "extractable", found.Extractable, "sensitive", found.Sensitive)
		}
	}
	return nil
}

// openLater tries to open a token that did not answer, until it succeeds or ctx ends. When the token is open, it checks
// the certificates.
func (k *Keys) openLater(ctx context.Context, t *token) {
	t.cfg.Serving = true
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		opening, cancel := context.WithTimeout(ctx, openTimeout)
		err := k.openToken(opening, t)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			k.log.Error("the HSM with the key of TLS cannot be used; TLS handshakes fail", "err", err)
		}
	}
	if err := k.Check(ctx); err != nil {
		k.log.Error("the HSM with the key of TLS answers, and TLS handshakes fail", "err", err)
		return
	}
	k.log.Info("the HSM with the key of TLS answers; TLS handshakes are signed")
}

// Close ends the work in the background, and closes the tokens.
func (k *Keys) Close() error {
	k.stop()
	k.background.Wait()
	var errs []error
	for _, t := range k.tokens {
		if tok := t.open.Load(); tok != nil {
			errs = append(errs, tok.Close())
		}
	}
	return errors.Join(errs...)
}

// Signature is a signature of a handshake, or the failure to make it.
type Signature struct {
	At   time.Time // when it was made
	Took time.Duration
	Err  error
}

// OnSign sets f to be called after each signature of a handshake. f must be quick.
func (k *Keys) OnSign(f func(Signature)) { k.onSign.Store(&f) }

// Counts returns how many signatures of handshakes were made, and how many failed.
func (k *Keys) Counts() (made, failed uint64) { return k.made.Load(), k.failed.Load() }

// Sessions returns how many calls to the HSM run now, and how many may run at the same time.
func (k *Keys) Sessions() (used, limit int) {
	for _, t := range k.tokens {
		if tok := t.open.Load(); tok != nil {
			u, l := tok.Sessions()
			used, limit = used+u, limit+l
		}
	}
	return used, limit
}
