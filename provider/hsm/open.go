// Package hsm is the provider that keeps its keys in an HSM. Each key version is an AES key object. The token makes
// it, it can encrypt, and it never leaves the token. A metastore keeps what the token cannot: which versions belong to
// a key and in which order, the description, the attributes and the check values.
//
// The name of a version is NAME@N. N only rises: a name never gets the same number twice, not even after its key was
// deleted and created again. The CKA_ID of the object is 8 random bytes; the metastore keeps it beside N. All versions
// of one key share the first 4 bytes. A later key of the same name gets other bytes. CKA_LABEL is the full version
// name, so the vendor's own tools show which object is which. (Versions from before there were numbers have the CKA_ID,
// 16 hex digits, in place of N.)
//
// Where to read: binding.go binds a token and a metastore to each other; incarnation.go distinguishes copies of a
// metastore; objects.go says for each object on the token what uses it; unknown.go finds keys that the metastore does
// not know; prune.go destroys such keys and adopt.go adopts them; retake.go lets a migration take adopted keys again;
// lease.go says for which keys EDEKs may be made without the token.
//
// Before a step changes the token, it writes an intent to the metastore, with the CKA_IDs that it will use. A crash
// leaves at most an intent and the objects of these CKA_IDs. The same step, made again, uses them.
package hsm

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/shares"
)

// token has the methods of *pkcs11.Token that this package uses.
type token interface {
	Info() pkcs11.TokenInfo
	GenerateKey(ctx context.Context, id []byte, label string, bits int) error
	Find(ctx context.Context, id []byte) (*pkcs11.KeyInfo, error)
	FindLabel(ctx context.Context, label string) ([]pkcs11.KeyInfo, error)
	StartDate(ctx context.Context, id []byte, label string) (time.Time, error)
	Protection(ctx context.Context, id []byte, label string) ([]pkcs11.Protection, error)
	List(ctx context.Context) ([]pkcs11.KeyInfo, error)
	ListData(ctx context.Context, application string) ([]pkcs11.Data, error)
	PutData(ctx context.Context, d pkcs11.Data) error
	DestroyData(ctx context.Context, application, label string) error
	Destroy(ctx context.Context, id []byte, label string) error
	CheckValue(ctx context.Context, id []byte, label string) ([]byte, error)
	Prove(ctx context.Context, id []byte, label string, check []byte) error
	Unusable(ctx context.Context, id []byte, label string) (bool, error)
	Choose(ctx context.Context, id []byte, label string, check []byte) error
	EncryptBlocks(ctx context.Context, id []byte, label string, check, blocks []byte) error
	EncryptAlone(ctx context.Context, id []byte, label string, check, blocks []byte) error
	Ping(ctx context.Context) error
	Hidden() error
	OnReset(func())
	OnCall(func(pkcs11.Call))
	OnFunction(func(pkcs11.Function))
	Sessions() (used, limit int)
	Close() error
}

// Provider keeps keys in a token, and their records in a metastore ("the store").
type Provider struct {
	uri   string
	tok   *recordingToken
	store metastore.Store
	log   *slog.Logger
	soft  bool // Delete keeps the objects until Purge

	access Access
	// alone: the token is bound to this store and to no other store.
	alone atomic.Bool
	// keepsNoData: the token does not keep data objects.
	keepsNoData atomic.Bool
	// putIncarnation: this process has written an incarnation to the token.
	putIncarnation atomic.Bool
	// lastIncarnation is the newest incarnation that this process has written to the store's history. The binding
	// lock guards it.
	lastIncarnation string
	// changed: a step with a key has begun since the token got its last incarnation.
	changed         atomic.Bool
	id              string // of the store, as join read it
	confDir         string // directory of the configuration, for messages; "" if there is none
	misfits         error  // why token and store do not fit together, if access tolerates that
	fit             fitState
	survey          surveyState
	missingVersions missingVersions
	missingNames    missingNames
	// searches limits the searches of the token for names that the store does not know.
	searches searches

	// versions maps a version name to its *entry. It holds each version that was used. The number of objects on the
	// token limits its size.
	versions sync.Map
	// refused holds the names of versions that are missing on the token or differ there.
	refused     sync.Map
	encryptions encryptionState
	renewals    renewals
	failed      failedSteps
	// epoch counts how often the token came back. A version that was verified in an earlier epoch is verified again.
	epoch atomic.Uint64

	late    *lateToken // the token, if Open made the provider without it; else nil
	standby *standby   // nil if there is none
	// namedStandby is the standby that the configuration names; nil: none. If the provider changes no key, only an
	// inspection opens it.
	namedStandby *standby

	closed     atomic.Bool
	closeOnce  sync.Once
	stop       context.CancelFunc
	background sync.WaitGroup
}

var (
	_ provider.Provider       = (*Provider)(nil)
	_ provider.BlockEncrypter = (*Provider)(nil)
	_ provider.Conditional    = (*Provider)(nil)
	_ provider.Importer       = (*Provider)(nil)
	_ provider.Health         = (*Provider)(nil)
	_ provider.Leaser         = (*Provider)(nil)
	_ provider.Losses         = (*Provider)(nil)
	_ provider.SoftDeleter    = (*Provider)(nil)
)

// entry has the facts that an encryption with a version needs.
type entry struct {
	key   string
	name  string
	id    []byte
	bits  int
	check []byte

	verified atomic.Uint64 // 1 + the epoch in which the check value was last verified
	mu       sync.Mutex    // held during a verification
	lease    lease
	first    firstDown // used only if there is a standby
}

// Access says what a provider may change.
type Access int

// The accesses.
const (
	// Serve may change everything: it binds a store and a token at their first use.
	Serve Access = iota
	// Read changes neither the token nor the store. It refuses everything that Serve refuses.
	Read
	// Inspect is Read for commands that show what is on the token. It accepts a store and a token that do not fit
	// together.
	Inspect
	// Repair is Inspect for commands that write records of keys that the token holds. Nodes may serve meanwhile, if
	// several nodes can share the store.
	Repair
	// Rebind is Repair for commands that give the token to another store. No node may serve meanwhile.
	Rebind
	// Destroy is Serve for commands that destroy objects that nothing refers to. No node may serve meanwhile.
	Destroy
	// Journal is Read, and may also write the journal of a migration while a server runs. It never creates a store.
	Journal
	// Make is Serve for a command that makes keys and then ends.
	Make
)

// Writes reports whether the access may write to a store.
func (a Access) Writes() bool { return a.Changes() || a == Journal }

// Changes reports whether the access may change keys or the binding of store and token. A process with such an access
// claims the store, see metastore.Claims.
func (a Access) Changes() bool { return a.makesKeys() || a == Repair || a == Rebind || a == Destroy }

// Exclusive reports whether no node may serve meanwhile.
func (a Access) Exclusive() bool { return a == Rebind || a == Destroy }

// toleratesMisfit reports whether a store and a token that do not fit together are not an error.
func (a Access) toleratesMisfit() bool { return a == Inspect || a.repairs() }

// makesKeys reports whether the access may make keys.
func (a Access) makesKeys() bool { return a == Serve || a == Make }

// repairs reports whether the access may write records of keys that the store does not know.
func (a Access) repairs() bool { return a == Repair || a == Rebind }

// Options are what Open needs beside the URI.
type Options struct {
	// Store opens the store. Open calls it once the token is open, or does not answer. The caller of Open closes the
	// store. If there is no store yet, Store must call create before it makes one.
	Store  func(ctx context.Context, create func(ctx context.Context, uri string) error) (metastore.Store, error)
	Access Access
	// MaxWait, if positive, is how long Open waits for an HSM that does not answer. If the store is bound to a token
	// already, Open then returns a Provider without its token, which the Provider opens in the background, see
	// Provider.Missing. If MaxWait is 0, Open fails.
	MaxWait time.Duration
	// Careful is pkcs11.Config.Careful.
	Careful bool
	// Wrap, if not nil, wraps the calls of the library.
	Wrap func(pkcs11.Boundary) pkcs11.Boundary
}

// Open opens the provider of a cloudera.hsmkp:// or pkcs11: URI.
func Open(ctx context.Context, uri string, env provider.Env, o Options) (*Provider, error) {
	cfg, warnings, err := tokenConfig(uri)
	if err != nil {
		return nil, err
	}
	soft, err := softDelete(env)
	if err != nil {
		return nil, err
	}
	searches, err := searchLimit(env)
	if err != nil {
		return nil, err
	}
	log := env.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	cfg.Log, cfg.Wrap, cfg.Careful = log, o.Wrap, o.Careful
	opener := opener{Options: o, cfg: cfg, uri: uri, confDir: env.ConfDir, soft: soft, searches: searches, log: log}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if o.MaxWait > 0 {
		return opener.openForServer(ctx)
	}
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	store, err := o.Store(ctx, func(ctx context.Context, uri string) error {
		if o.Access.repairs() {
			return nil
		}
		return mayBeMade(ctx, tok, uri, env.ConfDir)
	})
	if err != nil {
		return nil, errors.Join(err, tok.Close())
	}
	return opener.open(ctx, tok, store)
}

// CheckSettings checks the properties that Open reads, without opening anything.
func CheckSettings(env provider.Env) error {
	_, err := softDelete(env)
	_, failed := searchLimit(env)
	return errors.Join(err, failed)
}

// openTimeout bounds Open: an HSM that drops packets must not block the start of a KMS for ever.
const openTimeout = time.Minute

// TokenConfig reads the configuration of the token that a URI names. warnings name doubtful things that are no errors.
func TokenConfig(uri string) (c pkcs11.Config, warnings []string, err error) { return tokenConfig(uri) }

func tokenConfig(uri string) (pkcs11.Config, []string, error) {
	if scheme, _, _ := strings.Cut(uri, ":"); strings.EqualFold(scheme, "pkcs11") {
		return pkcs11.ParseURI(uri)
	}
	path, err := provider.UnnestPath(uri)
	if err != nil {
		return pkcs11.Config{}, nil, err
	}
	return pkcs11.ReadKeystoreFile(path)
}

// opener opens a provider.
type opener struct {
	Options
	cfg      pkcs11.Config
	uri      string
	confDir  string
	soft     bool
	searches int
	log      *slog.Logger
}

// open opens the provider of an open token and a store. It refuses a store that belongs to another token. If it fails,
// it closes the token, and never the store.
func (o *opener) open(ctx context.Context, tok token, store metastore.Store) (*Provider, error) {
	p, background := o.newProvider(tok, store)
	tok.OnReset(func() { p.epoch.Add(1) })
	if err := p.fitTogether(ctx, tok); err != nil {
		p.stop()
		p.background.Wait()
		return nil, errors.Join(err, tok.Close(), p.closeStandby())
	}
	p.begin(ctx, background)
	return p, nil
}

// newProvider makes a provider, which closes the token and not the store. background ends when the provider is closed.
func (o *opener) newProvider(tok token, store metastore.Store) (p *Provider, background context.Context) {
	background, stop := context.WithCancel(context.Background())
	p = &Provider{uri: o.uri, confDir: o.confDir, tok: &recordingToken{token: tok}, store: store, access: o.Access,
		soft: o.soft, log: claviger.LimitLog(o.log), stop: stop}
	p.searches.max, p.renewals.ctx = o.searches, background
	o.addStandby(background, p)
	if p.access == Serve {
		p.background.Go(func() { p.probeRegularly(background) })
	}
	return p, background
}

// fitTogether binds store and token to each other, or refuses to. If they fit, it finishes interrupted deletions.
func (p *Provider) fitTogether(ctx context.Context, tok token) error {
	err := p.join(ctx)
	if err == nil && p.access.makesKeys() && p.fit.misfit() == nil {
		err = p.finishPending(ctx)
	}
	if claviger.Is(err, claviger.Unavailable) && tok.Ping(ctx) != nil { // the token went away after it was opened
		err = claviger.Unreachable(err)
	}
	return err
}

// begin begins the work in the background, on a store and a token that fit together. It waits for the first survey of
// the token (see surveyAtStart), but not longer than until ctx ends.
func (p *Provider) begin(ctx, background context.Context) {
	if p.access == Serve {
		p.background.Go(func() { p.verifyLater(background) })
	}
	if !p.access.makesKeys() {
		return
	}
	if p.searches.slots == nil {
		p.allowSearches()
	}
	p.beginSurveys(ctx, background)
	p.background.Go(func() { p.watch(background) })
}

// allowSearches lets clients search the token for names that the store does not know.
func (p *Provider) allowSearches() {
	p.searches.slots = shares.New(searchConcurrency, true)
	p.survey.first, p.survey.wake = make(chan struct{}), make(chan struct{}, 1)
}

// join binds store and token to each other, or refuses to.
func (p *Provider) join(ctx context.Context) error {
	tolerate := func(err error) error {
		if !claviger.Is(err, claviger.Invalid) && !IsMisfit(err) {
			return err
		}
		if !p.access.toleratesMisfit() {
			return misfitError{err}
		}
		if p.misfits == nil { // a second error would only follow from the first
			p.misfits = err
		}
		return nil
	}
	r, err := p.bind(ctx)
	if err = tolerate(err); err != nil {
		return err
	}
	err = p.bindIDs(ctx, r)
	if p.access == Serve && isSamePlace(err) {
		p.log.Error("the server starts, and serves the keys that are there; no key is made or rolled until an "+
			"operator has decided", "err", err)
		p.fit.err, p.fit.errAt = err, time.Now()
		p.id, _, err = p.store.Setting(ctx, SettingID)
		return err
	}
	if err = tolerate(err); err != nil {
		return err
	}
	if r.moved {
		err = p.recordToken(ctx)
	}
	if err == nil {
		p.id, _, err = p.store.Setting(ctx, SettingID)
	}
	return err
}

// Misfit says why token and store do not fit together; nil if they do. With an access that does not tolerate a misfit,
// Open has failed.
func (p *Provider) Misfit() error { return p.misfits }

// URI returns the URI of the provider.
func (p *Provider) URI() string { return p.uri }

// Info describes the token.
func (p *Provider) Info() pkcs11.TokenInfo { return p.tok.Info() }

// OnCall sets the function that gets each call of the HSM; see pkcs11.Token.
func (p *Provider) OnCall(f func(pkcs11.Call)) { p.tok.OnCall(f) }

// OnFunction sets the function that gets each call of the vendor's library.
func (p *Provider) OnFunction(f func(pkcs11.Function)) { p.tok.OnFunction(f) }

// Sessions returns how many sessions of the HSM are in use, and how many there may be.
func (p *Provider) Sessions() (used, limit int) { return p.tok.Sessions() }

// closeTimeout bounds the time that Close takes to write to the token.
const closeTimeout = 5 * time.Second

// Close closes the token.
func (p *Provider) Close() error {
	var err error
	p.closeOnce.Do(func() {
		p.closed.Store(true)
		p.stop()
		p.renewals.close()
		p.background.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		p.renewAfterChanges(ctx)
		err = errors.Join(p.tok.Close(), p.closeStandby())
	})
	return err
}

func (p *Provider) ready(op, key string) error {
	if p.closed.Load() {
		return claviger.E(op, claviger.Closed, key, nil)
	}
	return nil
}
