package kms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"sync"

	"claviger"
	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/migrate"
	"claviger/owner"
	"claviger/provider"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
	"claviger/secret"
)

// Service is what a configuration folder describes: the providers, and the
// metastore where one is needed. The server and the migration's commands open
// the same.
type Service struct {
	Conf    *hadoopconf.Conf
	Log     *slog.Logger
	Primary provider.Provider
	Sources []keyring.Source
	// Store is nil where neither the primary provider nor a source needs one.
	Store metastore.Store

	certificateCheck certificateCheck

	self      owner.Owner
	access    hsm.Access // what of the token and the metastore may be changed
	release   func()     // the keystore file; nil: there is none
	storeName string     // see nameStore
	storeOnce sync.Once
	storeErr  error
}

// Open loads the configuration in dir, says on log what is odd about it,
// and opens what it names, for a command. command is what this process is called where it
// has the store to itself. A token and a metastore that do not fit together are an error
// of package claviger's kind RefusedError.
func Open(ctx context.Context, dir, command string, access hsm.Access, log *slog.Logger) (*Service, error) {
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	for _, w := range conf.Warnings() {
		log.Warn(w)
	}
	s, err := openConfigured(ctx, conf, command, access, log)
	return s, RefuseMisfit(err)
}

// RefuseMisfit makes a claviger.RefusedError of an error which says that a token and a metastore do not fit
// together: a person must decide what to do.
func RefuseMisfit(err error) error {
	if hsm.IsMisfit(err) {
		return &claviger.RefusedError{Err: err}
	}
	return err
}

// openConfigured opens what a loaded configuration names.
func openConfigured(ctx context.Context, conf *hadoopconf.Conf, command string, access hsm.Access,
	log *slog.Logger) (*Service, error) {
	s := &Service{Conf: conf, Log: log, self: owner.Self(command, conf.Dir()), access: access}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Service) open(ctx context.Context) error {
	if s.access.Writes() {
		if err := owner.RefuseRoot(builtin.Files(s.Conf)...); err != nil {
			return err
		}
	}
	negotiate, err := ClientKerberos(s.Conf)
	if err != nil {
		return err
	}
	registry := builtin.Registry(builtin.Options{Store: s.makeStore, Access: s.access, ClientTLS: s.ClientTLS,
		ClientKerberos: negotiate, StoreName: func() string { return s.storeName }})
	env := provider.Env{Get: s.Conf.Get, Getenv: os.Getenv, ConfDir: s.Conf.Dir(), User: OSUser(), Log: s.Log}

	list, err := s.uris(hadoopconf.ProviderURI)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return s.Conf.Refuse(hadoopconf.ProviderURI, "name the place of the keys in kms-site.xml, as in "+
			"cloudera.hsmkp://file@/etc/claviger/luna.keystore for an HSM; Hadoop's default, a Java keystore in the "+
			"user's home folder, is not taken. Known schemes: "+strings.Join(registry.Schemes(), ", "))
	}
	if s.Primary, err = registry.Open(ctx, list[0], env); err != nil {
		return s.Blame(hadoopconf.ProviderURI, err)
	}
	if err := s.nameStore(ctx); err != nil {
		return err
	}
	if err := s.noOtherKeys(ctx); err != nil {
		return err
	}
	if err := s.claimKeystore(); err != nil {
		return s.Blame(hadoopconf.ProviderURI, err)
	}
	env.Source = true
	for _, uri := range list[1:] {
		p, err := registry.Open(ctx, uri, env)
		if err != nil {
			return s.Blame(hadoopconf.ProviderURI, err)
		}
		s.Sources = append(s.Sources, keyring.Source{Provider: p})
	}
	sources, err := s.uris(hadoopconf.SourceURI)
	if err != nil {
		return err
	}
	for _, uri := range sources {
		p, err := registry.Open(ctx, uri, env)
		if err != nil {
			return s.Blame(hadoopconf.SourceURI, err)
		}
		s.Sources = append(s.Sources, keyring.Source{Provider: p, Reencryption: true})
	}
	if len(s.Sources) > 0 {
		// Who still uses a source must outlive this process.
		if _, err := s.store(ctx); err != nil {
			return err
		}
	}
	return nil
}

// nameStore makes the name by which a server knows itself, and the other nodes of its
// metastore, at the end of a source's URI: a hash of the metastore's id, which tells a source
// nothing. A server without an HSM knows itself alone.
func (s *Service) nameStore(ctx context.Context) error {
	id := rand.Text()
	if _, ok := s.Primary.(*hsm.Provider); ok {
		store, err := s.store(ctx)
		if err != nil {
			return err
		}
		stored, bound, err := store.Setting(ctx, hsm.SettingID)
		if err != nil {
			return err
		}
		if bound {
			id = stored
		}
	}
	sum := sha256.Sum256([]byte("claviger store " + id))
	s.storeName = hex.EncodeToString(sum[:16])
	return nil
}

// noSourceIsItself refuses a source that answers that it is this server, which listens by
// now, or another node of its metastore: each migrated key would be another key there, too. A
// source that does not answer is no matter here.
func (s *Service) noSourceIsItself(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstComparison)
	defer cancel()
	for _, src := range s.Sources {
		health, ok := src.Provider.(provider.Health)
		if !ok || !strings.HasPrefix(src.URI(), "kms:") || !errors.Is(health.Check(ctx), provider.ErrItself) {
			continue
		}
		property := hadoopconf.ProviderURI
		if src.Reencryption {
			property = hadoopconf.SourceURI
		}
		return s.Blame(property, fmt.Errorf("the source %s cannot be used: %w", src.URI(), provider.ErrItself))
	}
	return nil
}

// noOtherKeys refuses a first provider that keeps keys in a place of its own beside a
// metastore that holds keys of an HSM: an operator has changed the property by mistake,
// and new keys would be made under the names, and the version names, of those.
func (s *Service) noOtherKeys(ctx context.Context) error {
	if _, ok := s.Primary.(*hsm.Provider); ok {
		return nil
	}
	place, err := location.Of(s.Conf)
	if err != nil || place.Missing() {
		return nil //nolint:nilerr // where a metastore is needed, its opening says it
	}
	if s.keepsSeen() { // before a metastore that is away is waited for
		if _, err := location.SeenFile(s.Conf, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
	}
	var names []string
	err = location.Read(ctx, s.Conf, func(store metastore.Store) (err error) {
		names, err = store.Names(ctx)
		return err
	})
	switch {
	case err != nil && claviger.IsAway(err):
		return err
	case err != nil:
		s.Log.Warn("whether the metastore holds keys of an HSM cannot be told", "err", err)
	case len(names) > 0:
		return s.Blame(hadoopconf.ProviderURI, fmt.Errorf("%s keeps no key in the HSM, but the metastore %s (%s) "+
			"holds %d keys of an HSM, %s for one: name the HSM's keystore file, as in "+
			"cloudera.hsmkp://file@/etc/claviger/luna.keystore; or, where other keys are meant, set %s to a "+
			"metastore of their own", s.Primary.URI(), secret.Value(place.URI), place.Where(), len(names),
			claviger.Printable(names[0]),
			hadoopconf.MetastoreURI))
	}
	return nil
}

func (s *Service) uris(property string) ([]string, error) {
	v, ok := s.Conf.Get(property)
	if !ok {
		return nil, nil
	}
	list, err := provider.SplitURIs(v)
	if err != nil {
		return nil, s.Blame(property, err)
	}
	return list, nil
}

// Blame says which property led to an error: the one that the provider names, with
// the place where it is set, or else the provider's URI.
func (s *Service) Blame(property string, err error) error {
	if s.storeErr != nil {
		return s.storeErr // the metastore's own property is named in it
	}
	var there *hadoopconf.ValueError
	if errors.As(err, &there) {
		return err // of kts-site.xml, ssl-client.xml: it names its own line
	}
	if of := s.Conf.Placed(err); of != nil {
		return of
	}
	p, _ := s.Conf.Lookup(property)
	return fmt.Errorf("%s: property %s: %w", p.Where(), property, err)
}

// store opens the metastore, once.
func (s *Service) store(ctx context.Context) (metastore.Store, error) { return s.makeStore(ctx, nil) }

// makeStore is store; where there is none, create is asked before one is made.
func (s *Service) makeStore(ctx context.Context, create func(context.Context, string) error) (metastore.Store, error) {
	s.storeOnce.Do(func() {
		if s.access.Writes() {
			seen := ""
			if s.keepsSeen() {
				if seen, s.storeErr = location.SeenFile(s.Conf, s.Log); s.storeErr != nil {
					return
				}
			}
			if s.Store, s.storeErr = location.Open(ctx, s.Conf, location.Options{Create: s.mayMake(create), Seen: seen,
				Log: s.Log}); s.storeErr == nil {
				// Before a step that another process is at is taken for one that was broken off.
				s.storeErr = claimStore(ctx, s.Store, s.self, s.access)
			}
		} else {
			s.Store, s.storeErr = location.OpenReadOnly(ctx, s.Conf, s.Log)
		}
		if errors.Is(s.storeErr, location.ErrNone) {
			s.Log.Warn("the metastore is not there; no key is known, and none is made by this command", "err",
				s.storeErr)
			s.Store, s.storeErr = location.OpenEmpty(ctx, s.Conf)
		}
	})
	return s.Store, s.storeErr
}

// keepsSeen tells whether this process is a node, which keeps what it sees of the metastore.
func (s *Service) keepsSeen() bool { return s.access == hsm.Serve && s.self.What == Command }

// mayMake is create for a server and for commands that change keys. A command that
// writes the journal alone makes no store: an empty journal says nothing.
func (s *Service) mayMake(create location.Creator) location.Creator {
	if s.access.Changes() {
		return create
	}
	return func(ctx context.Context, uri string) error {
		if create != nil {
			if err := create(ctx, uri); err != nil {
				return err
			}
		}
		return location.MakeNone(ctx, uri)
	}
}

// Close closes the providers, then the store.
func (s *Service) Close() error {
	var errs []error
	for _, src := range s.Sources {
		errs = append(errs, src.Close())
	}
	if s.Primary != nil {
		errs = append(errs, s.Primary.Close())
	}
	if s.Store != nil {
		errs = append(errs, s.Store.Close())
	}
	if s.release != nil {
		s.release()
	}
	return errors.Join(errs...)
}

// OSUser is the name that we go by at a KMS with simple authentication.
// HADOOP_USER_NAME overrides it, as for every Hadoop client.
func OSUser() string {
	if u := os.Getenv("HADOOP_USER_NAME"); u != "" {
		return u
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "claviger"
}

// Engine makes the migration's engine over what is open. cfg brings what is the
// caller's own; of the probes only what HDFS says, and the users to ask for.
func (s *Service) Engine(ctx context.Context, cfg migrate.Config) (*migrate.Engine, error) {
	target, ok := s.Primary.(migrate.Target)
	if !ok {
		return nil, s.Blame(hadoopconf.ProviderURI, fmt.Errorf("the first provider, %s, cannot take over keys; it "+
			"must be an HSM (cloudera.hsmkp:// or pkcs11:) or a jceks:// keystore", s.Primary.URI()))
	}
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	cfg.Target, cfg.Store = target, store
	given := cfg.Probes
	if cfg.Probes, err = s.probes(ctx); err != nil {
		return nil, err
	}
	cfg.Probes.HDFS, cfg.Probes.AsUser = given.HDFS, given.AsUser
	cfg.Probes.NameNode = nameNode(s.Conf, given.NameNode.User, given.HDFS)
	if src, ok := s.ReencryptionSource(); ok {
		cfg.Source = src
		for _, other := range s.Sources {
			if other.Provider != src {
				cfg.Beside = append(cfg.Beside, other.Provider)
			}
		}
	}
	r := &reader{conf: s.Conf}
	set := r.migration()
	if r.err != nil {
		return nil, r.err
	}
	if cfg.Gap, cfg.Ours, cfg.Theirs = set.gap, set.ours, set.theirs; cfg.Versions == "" {
		cfg.Versions = set.versions
	}
	return migrate.New(cfg)
}

// ReencryptionSource is the source that a migration reads: the one of
// hadoop.kms.key.provider.reencryption.source.uri, else the last of the
// provider list.
func (s *Service) ReencryptionSource() (provider.Provider, bool) {
	for _, src := range s.Sources {
		if src.Reencryption {
			return src.Provider, true
		}
	}
	if n := len(s.Sources); n > 0 {
		return s.Sources[n-1].Provider, true
	}
	return nil, false
}
