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
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/secret"
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
func newProvider(ctx context.Context, uri, confDir string, tok *pkcs11.Token, store metastore.Store, access Access, searches int, log *slog.Logger) (*Provider, error) {
	background, stop := context.WithCancel(context.Background())
	p := &Provider{uri: uri, confDir: confDir, tok: &writing{token: tok}, store: store, access: access, log: log, stop: stop}
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
		p.log.Error("the server starts, and serves the keys that are there; no key is made or rolled until an operator "+
			"has decided", "err", err)
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

// EncryptBlocks encrypts blocks in the HSM. A version is verified by its check
// value before its first use, and after each time that the token was away.
func (p *Provider) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	const op = "hsm.EncryptBlocks"
	if err := p.ready(op, version); err != nil {
		return err
	}
	e, err := p.entry(ctx, version)
	if err != nil {
		return err
	}
	began := time.Since(start)
	if err := p.encrypt(ctx, op, e, blocks); err != nil {
		p.seen.broke(ctx, version, began, err)
		return err
	}
	p.seen.worked(e, began)
	return nil
}

func (p *Provider) encrypt(ctx context.Context, op string, e *entry, blocks []byte) error {
	if err := p.verify(ctx, e); err != nil {
		return p.gone(ctx, op, e, err)
	}
	err := p.tok.EncryptBlocks(ctx, e.id, e.name, blocks)
	if errors.Is(err, pkcs11.ErrSeveral) { // a login since the verification has forgotten which one is meant
		if err = p.verify(ctx, e); err == nil {
			err = p.tok.EncryptBlocks(ctx, e.id, e.name, blocks)
		}
	}
	if err != nil {
		return p.gone(ctx, op, e, err)
	}
	// The call itself may have brought a lost token back, and then have used a key
	// that nobody had looked at since.
	if err := p.verify(ctx, e); err != nil {
		return p.gone(ctx, op, e, err)
	}
	return nil
}

// gone looks after a key that the token does not hold: deleted by another
// process on the same store, or lost.
func (p *Provider) gone(ctx context.Context, op string, e *entry, err error) error {
	if err == nil || !claviger.Is(err, claviger.KeyNotFound) {
		return err
	}
	p.versions.Delete(e.name)
	if _, _, serr := p.store.ByVersion(ctx, e.name); claviger.Is(serr, claviger.VersionNotFound) {
		p.refused.Delete(e.name)
		return serr
	}
	p.refused.Store(e.name, struct{}{})
	// Another node's HSM may well hold it.
	if errors.Is(err, fs.ErrPermission) { // it may be among the files that the error names
		return claviger.E(op, claviger.Unavailable, e.name, unusable{err})
	}
	return claviger.E(op, claviger.Unavailable, e.name, unusable{fmt.Errorf("%w; the metastore knows it: is this the right token, and was it restored whole?", err)})
}

// entry returns a version's entry, from the cache or the store.
func (p *Provider) entry(ctx context.Context, version string) (*entry, error) {
	if v, ok := p.versions.Load(version); ok {
		e, _ := v.(*entry)
		return e, nil
	}
	m, v, err := p.store.ByVersion(ctx, version)
	if err != nil {
		return nil, p.missing(ctx, "hsm.entry", version, err)
	}
	e, err := newEntry(m, v)
	if err != nil {
		return nil, err
	}
	actual, _ := p.versions.LoadOrStore(version, e)
	e, _ = actual.(*entry)
	return e, nil
}

func newEntry(m *claviger.Metadata, v metastore.Version) (*entry, error) {
	name := claviger.VersionName(m.Name, v.ID)
	id, err := objectID("hsm.entry", name, v.Object)
	if err != nil {
		return nil, err
	}
	return &entry{key: m.Name, name: name, id: id, bits: m.BitLength, check: v.Check}, nil
}

// objectID decodes a CKA_ID as the metastore holds it.
func objectID(op, version, object string) ([]byte, error) {
	id, err := hex.DecodeString(object)
	if err != nil || len(id) == 0 {
		return nil, claviger.Errorf(op, claviger.Internal, version, "the metastore holds the CKA_ID %q, which is not hexadecimal", object)
	}
	return id, nil
}

// Keys returns all names.
func (p *Provider) Keys(ctx context.Context) ([]string, error) {
	if err := p.ready("hsm.Keys", ""); err != nil {
		return nil, err
	}
	return p.store.Names(ctx)
}

// Metadata returns one entry per name. A name that the store has lost is an error where
// it alone is asked for; among others it is nil, so that one lost key does not shut the
// lists of all the others.
func (p *Provider) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	if err := p.ready("hsm.Metadata", ""); err != nil {
		return nil, err
	}
	keys, err := p.store.Get(ctx, names...)
	if err != nil {
		return nil, err
	}
	if len(names) == 1 && keys[0] == nil {
		if err := p.ifLost(ctx, "hsm.Metadata", names[0]); err != nil {
			return nil, err
		}
	}
	list := make([]*claviger.Metadata, len(keys))
	for i, k := range keys {
		if k != nil {
			m := k.Metadata
			m.Attributes = maps.Clone(m.Attributes)
			if m.Attributes == nil {
				m.Attributes = map[string]string{}
			}
			list[i] = &m
		}
	}
	return list, nil
}

// Versions returns all versions of a key.
func (p *Provider) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	if err := p.ready("hsm.Versions", key); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, p.ifLost(ctx, "hsm.Versions", key)
	}
	return versionsOf(k), nil
}

// Describe is Versions, with the objects that hold the keys.
func (p *Provider) Describe(ctx context.Context, key string) ([]provider.VersionFacts, error) {
	if err := p.ready("hsm.Describe", key); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, p.ifLost(ctx, "hsm.Describe", key)
	}
	facts := make([]provider.VersionFacts, len(k.List))
	for i, v := range k.List {
		name := claviger.VersionName(k.Name, v.ID)
		facts[i] = provider.VersionFacts{Name: name, Created: v.Created, Label: name, ID: v.Object}
	}
	return facts, nil
}

// key returns a key of the store, nil where there is none.
func (p *Provider) key(ctx context.Context, name string) (*metastore.Key, error) {
	keys, err := p.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

func versionsOf(k *metastore.Key) []claviger.KeyVersion {
	vs := make([]claviger.KeyVersion, len(k.List))
	of := shared(&k.Metadata)
	for i, v := range k.List {
		vs[i] = claviger.KeyVersion{Key: k.Name, Name: claviger.VersionName(k.Name, v.ID), BitLength: k.BitLength, Of: of}
	}
	return vs
}

// shared is a key's metadata as KeyVersion.Of holds it.
func shared(m *claviger.Metadata) *claviger.Metadata {
	of := *m
	if of.Attributes == nil {
		of.Attributes = map[string]string{}
	}
	return &of
}

// Current returns a key's newest version.
func (p *Provider) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	vs, err := p.Versions(ctx, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if len(vs) == 0 {
		return claviger.KeyVersion{}, claviger.E("hsm.Current", claviger.KeyNotFound, key, nil)
	}
	return vs[len(vs)-1], nil
}

// Version returns the version of that name.
func (p *Provider) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	if err := p.ready("hsm.Version", version); err != nil {
		return claviger.KeyVersion{}, err
	}
	m, _, err := p.store.ByVersion(ctx, version)
	if err != nil {
		return claviger.KeyVersion{}, p.missing(ctx, "hsm.Version", version, err)
	}
	return claviger.KeyVersion{Key: m.Name, Name: version, BitLength: m.BitLength, Of: shared(m)}, nil
}

func tokenName(i pkcs11.TokenInfo) string { return fmt.Sprintf("%q (serial %s)", i.Label, i.Serial) }

// refuseMaterial is the answer to given material.
func refuseMaterial(op, key string, material secret.Bytes) error {
	if material == nil {
		return nil
	}
	return claviger.Errorf(op, claviger.Unsupported, key, "key material cannot be put into an HSM, where keys are made and stay: create or roll key %q without material", key)
}
