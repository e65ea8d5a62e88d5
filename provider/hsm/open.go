// Package hsm is the provider whose keys live in an HSM. Each key version is an
// AES key object on the token, made there, that can encrypt and never leaves.
// What the token does not keep (which versions belong to a key, in which order,
// description, attributes, check values) is in a metastore.
//
// A version's name is NAME@N. N counts up for a name and is never used twice for
// it, not even after the key was deleted and made anew. The object's CKA_ID is 8
// random bytes, which the metastore keeps beside N; the first 4 are the same in all
// versions of a key, and others where a key of that name is made anew. Its CKA_LABEL
// is the full version name, so the vendor's own tools show which object is which.
// (Versions made before they were numbered have the CKA_ID, 16 hex digits, in N's
// place.)
//
// Where to read: binding.go binds token and metastore to each other; incarnation.go
// tells copies of a metastore apart; objects.go marks what is on the token; unknown.go
// finds keys that the metastore does not know; prune.go and adopt.go remove and adopt
// them; retake.go lets a migration take adopted keys over again.
//
// Every step that touches the token is first written down as an intent with the
// ids that it will use. A crash leaves at most an intent and objects under its
// ids; the same step, made again, uses them.
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

// token is what is used of a *pkcs11.Token.
type token interface {
	Info() pkcs11.TokenInfo
	GenerateKey(ctx context.Context, id []byte, label string, bits int) error
	Find(ctx context.Context, id []byte) (*pkcs11.KeyInfo, error)
	FindLabel(ctx context.Context, label string) ([]pkcs11.KeyInfo, error)
	StartDate(ctx context.Context, id []byte, label string) (time.Time, error)
	List(ctx context.Context) ([]pkcs11.KeyInfo, error)
	ListData(ctx context.Context, application string) ([]pkcs11.Data, error)
	PutData(ctx context.Context, d pkcs11.Data) error
	DestroyData(ctx context.Context, application, label string) error
	Destroy(ctx context.Context, id []byte, label string) error
	CheckValue(ctx context.Context, id []byte, label string) ([]byte, error)
	Choose(ctx context.Context, id []byte, label string, check []byte) error
	EncryptBlocks(ctx context.Context, id []byte, label string, blocks []byte) error
	Ping(ctx context.Context) error
	Hidden() error
	OnReset(func())
	OnCall(func(pkcs11.Call))
	OnFunction(func(pkcs11.Function))
	Sessions() (used, most int)
	Close() error
}

// Provider is a token with a metastore.
type Provider struct {
	uri   string
	tok   *writing
	store metastore.Store
	log   *slog.Logger
	soft  bool // Delete keeps objects until Purge

	access Access
	// alone: the token is bound to this store and to no other.
	alone atomic.Bool
	// keepsNone: the token keeps no data objects.
	keepsNone atomic.Bool
	// putIncarnation: the token has taken an incarnation of this process.
	putIncarnation atomic.Bool
	// begun is the newest incarnation that this process has written to the store's history;
	// guarded by the binding lock.
	begun string
	// changed: a step with a key was begun since.
	changed atomic.Bool
	id      string // of the store, as it was when it was joined
	confDir string // of the configuration, for messages; "" is none
	misfits error  // why they do not fit, where access tolerates that
	fit     fit
	survey  survey
	absent  absent
	names   lostNames
	// searches are those for what the store does not know.
	searches searches

	// versions maps a version name to its *entry. It grows with the versions that
	// are used, each of which is an object on the token.
	versions sync.Map
	// refused holds the names of versions that the token does not hold as it should.
	refused sync.Map
	seen    seen
	// epoch counts the times that the token came back; what was verified in an
	// earlier one is verified anew.
	epoch atomic.Uint64

	closed atomic.Bool
	once   sync.Once
	stop   context.CancelFunc
	sweep  sync.WaitGroup
}

var (
	_ provider.Provider       = (*Provider)(nil)
	_ provider.BlockEncrypter = (*Provider)(nil)
	_ provider.Conditional    = (*Provider)(nil)
	_ provider.Importer       = (*Provider)(nil)
	_ provider.Health         = (*Provider)(nil)
	_ provider.Losses         = (*Provider)(nil)
	_ provider.SoftDeleter    = (*Provider)(nil)
)

// entry is a version as far as its use goes.
type entry struct {
	key   string
	name  string
	id    []byte
	bits  int
	check []byte

	verified atomic.Uint64 // epoch+1 in which the check value was found right
	mu       sync.Mutex    // of the verification
}

// Access says what a provider may change.
type Access int

// The accesses.
const (
	// Serve may change all: it binds a store and a token at their first use.
	Serve Access = iota
	// Read changes neither the token nor the store, and refuses what Serve refuses.
	Read
	// Look is Read for commands that show what is on the token: a store and a token
	// that do not fit are no error to it.
	Look
	// Mend is Look, and may write: for commands that make records of what the token
	// holds. Nodes may serve meanwhile, where the store is one of several nodes.
	Mend
	// Rebind is Mend for commands that give the token to another store, while no node
	// serves.
	Rebind
	// Destroy is Serve for commands that destroy what nothing refers to, while no node
	// serves.
	Destroy
	// Note is Read, and may write what is no key: the journal of a migration, beside
	// a server that goes on. It makes no store where there is none.
	Note
	// Make is Serve for commands that make keys, which end.
	Make
)

// Writes tells whether a store may be written to.
func (a Access) Writes() bool { return a.Changes() || a == Note }

// Changes tells whether keys may be changed, or the binding of store and token. Who
// does claims the store, see metastore.Claims.
func (a Access) Changes() bool { return a.makes() || a == Mend || a == Rebind || a == Destroy }

// Alone tells whether no node may serve meanwhile.
func (a Access) Alone() bool { return a == Rebind || a == Destroy }

// tolerates tells whether a store and a token that do not fit are no error.
func (a Access) tolerates() bool { return a == Look || a.mends() }

// makes tells whether keys may be made.
func (a Access) makes() bool { return a == Serve || a == Make }

// mends tells whether records may be made of keys that the store does not know.
func (a Access) mends() bool { return a == Mend || a == Rebind }

// Options are what Open needs beside the URI.
type Options struct {
	// Store is called when the token is open; the store stays the caller's to close.
	// Where there is no store yet, Store asks create before it makes one.
	Store  func(ctx context.Context, create func(ctx context.Context, uri string) error) (metastore.Store, error)
	Access Access
	// Wrap, if not nil, is put around the library's calls.
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
	most, err := searchLimit(env)
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
	cfg.Log, cfg.Wrap = log, o.Wrap
	// A KMS must not wait for ever for an HSM that swallows packets.
	const patience = time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	store, err := o.Store(ctx, func(ctx context.Context, uri string) error {
		if o.Access.mends() {
			return nil
		}
		return mayBeMade(ctx, tok, uri, env.ConfDir)
	})
	if err != nil {
		return nil, errors.Join(err, tok.Close())
	}
	p, err := newProvider(ctx, uri, env.ConfDir, tok, store, o.Access, most, log)
	if err != nil {
		if claviger.Is(err, claviger.Unavailable) && tok.Ping(ctx) != nil { // it has gone since it was opened
			err = claviger.Away(err)
		}
		return nil, errors.Join(err, tok.Close())
	}
	p.soft = soft
	return p, nil
}

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

// newProvider makes a provider of an open token, which it closes, and a store, which
// it does not. It refuses a store that belongs to another token.
func newProvider(ctx context.Context, uri, confDir string, tok *pkcs11.Token, store metastore.Store, access Access,
	searches int, log *slog.Logger) (*Provider, error) {
	background, stop := context.WithCancel(context.Background())
	p := &Provider{uri: uri, confDir: confDir, tok: &writing{token: tok}, store: store, access: access, log: log,
		stop: stop}
	p.searches.most = searches
	tok.OnReset(func() { p.epoch.Add(1) })
	later, err := p.join(ctx)
	if err == nil && access.makes() {
		err = p.finishPending(ctx)
	}
	if err != nil {
		stop()
		return nil, err
	}
	p.sweep.Go(func() { p.verifyLater(background, later) })
	if access.makes() {
		p.searches.turns = shares.New(searchesAtOnce, true)
		p.beginSurveys(ctx, background)
		p.sweep.Go(func() { p.watch(background) })
	}
	return p, nil
}

// join brings store and token together, or refuses to.
func (p *Provider) join(ctx context.Context) (later []string, err error) {
	tolerate := func(err error) error {
		if !claviger.Is(err, claviger.Invalid) && !IsMisfit(err) {
			return err
		}
		if !p.access.tolerates() {
			return misfitError{err}
		}
		if p.misfits == nil { // the second follows from the first
			p.misfits = err
		}
		return nil
	}
	later, st, err := p.bind(ctx)
	if err = tolerate(err); err != nil {
		return nil, err
	}
	err = p.bindIDs(ctx, st)
	if p.access == Serve && isHere(err) {
		p.log.Error("the server starts, and serves the keys that are there; no key is made or rolled until an "+
			"operator has decided", "err", err)
		p.fit.bad, p.fit.at = err, time.Now()
		p.id, _, err = p.store.Setting(ctx, SettingID)
		return later, err
	}
	if err = tolerate(err); err != nil {
		return nil, err
	}
	if st.moved {
		err = p.noteToken(ctx)
	}
	if err == nil {
		p.id, _, err = p.store.Setting(ctx, SettingID)
	}
	return later, err
}

// Misfit says why token and store do not fit together; nil where they do. Accesses
// that do not tolerate that have failed to open.
func (p *Provider) Misfit() error { return p.misfits }

// URI names the provider.
func (p *Provider) URI() string { return p.uri }

// Info tells which token it is.
func (p *Provider) Info() pkcs11.TokenInfo { return p.tok.Info() }

// OnCall sets who is told of each call of the HSM; see pkcs11.Token.
func (p *Provider) OnCall(f func(pkcs11.Call)) { p.tok.OnCall(f) }

// OnFunction sets who is told of each call of the vendor's library.
func (p *Provider) OnFunction(f func(pkcs11.Function)) { p.tok.OnFunction(f) }

// Sessions returns how many sessions of the HSM are in use now, and how many may
// be.
func (p *Provider) Sessions() (used, most int) { return p.tok.Sessions() }

// closePatience bounds what Close writes to the token.
const closePatience = 5 * time.Second

// Close closes the token.
func (p *Provider) Close() error {
	var err error
	p.once.Do(func() {
		p.closed.Store(true)
		p.stop()
		p.sweep.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		defer cancel()
		p.renewChanged(ctx)
		err = p.tok.Close()
	})
	return err
}

func (p *Provider) ready(op, key string) error {
	if p.closed.Load() {
		return claviger.E(op, claviger.Closed, key, nil)
	}
	return nil
}
