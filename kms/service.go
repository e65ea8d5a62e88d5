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

// Service holds the parts that a configuration folder describes: the providers, and
// the metastore if one is needed. The server and the commands open the same parts.
type Service struct {
	Conf    *hadoopconf.Conf
	Log     *slog.Logger
	Primary provider.Provider
	Sources []keyring.Source
	// Store is nil if neither the primary provider nor a source needs it.
	Store metastore.Store

	certificateCheck certificateCheck

	self      owner.Owner
	access    hsm.Access // what this process may change in the token and the metastore
	careful   bool       // see hsm.Options.Careful
	release   func()     // ends the claim on the keystore file; nil: there is none
	storeName string     // see nameStore
	storeOnce sync.Once
	storeErr  error
}

// Open loads the configuration in dir, logs its warnings, and opens the parts that it
// names, for a command. command is the name of this process in its claim on the
// store. If a token and a metastore do not fit together, the error is a
// claviger.RefusedError.
func Open(ctx context.Context, dir, command string, access hsm.Access, log *slog.Logger) (*Service, error) {
	conf, err := load(dir, log)
	if err != nil {
		return nil, err
	}
	s, err := openConfigured(ctx, conf, command, access, log)
	return s, RefuseMisfit(err)
}

// OpenDirCarefully is Open for work that can be left out, see OpenCarefully.
func OpenDirCarefully(ctx context.Context, dir, command string, access hsm.Access, log *slog.Logger) (*Service,
	error) {
	conf, err := load(dir, log)
	if err != nil {
		return nil, err
	}
	return OpenCarefully(ctx, conf, command, access, log)
}

// load loads the configuration in dir, and logs its warnings.
func load(dir string, log *slog.Logger) (*hadoopconf.Conf, error) {
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	for _, w := range conf.Warnings() {
		log.Warn(w)
	}
	return conf, nil
}

// OpenCarefully is Open for work that can be left out, with a loaded configuration: a PIN is not tried at a token that
// reports a wrong try, because the token locks after a few.
func OpenCarefully(ctx context.Context, conf *hadoopconf.Conf, command string, access hsm.Access, log *slog.Logger) (
	*Service, error) {
	s, err := opened(ctx, &Service{Conf: conf, Log: log, self: owner.Self(command, conf.Dir()), access: access,
		careful: true})
	return s, RefuseMisfit(err)
}

// RefuseMisfit makes a claviger.RefusedError of an error which says that a token and
// a metastore do not fit together: a person must decide what to do.
func RefuseMisfit(err error) error {
	if hsm.IsMisfit(err) {
		return &claviger.RefusedError{Err: err}
	}
	return err
}

// openConfigured opens the parts that a loaded configuration names.
func openConfigured(ctx context.Context, conf *hadoopconf.Conf, command string, access hsm.Access,
	log *slog.Logger) (*Service, error) {
	return opened(ctx, &Service{Conf: conf, Log: log, self: owner.Self(command, conf.Dir()), access: access})
}

// opened opens the parts of s, or closes those that are open if another one fails.
func opened(ctx context.Context, s *Service) (*Service, error) {
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
	if err := s.openPrimary(ctx); err != nil {
		return err
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
	return s.openSources(ctx)
}

// registry returns the providers that the configuration may name.
func (s *Service) registry() (*provider.Registry, error) {
	negotiate, err := ClientKerberos(s.Conf)
	return builtin.Registry(builtin.Options{Store: s.makeStore, Access: s.access, Careful: s.careful,
		ClientTLS: s.ClientTLS, ClientKerberos: negotiate, StoreName: func() string { return s.storeName }}), err
}

func (s *Service) env() provider.Env {
	return provider.Env{Get: s.Conf.Get, Getenv: os.Getenv, ConfDir: s.Conf.Dir(), User: OSUser(), Log: s.Log}
}

// openPrimary opens the first provider.
func (s *Service) openPrimary(ctx context.Context) error {
	registry, err := s.registry()
	if err != nil {
		return err
	}
	list, err := s.uris(hadoopconf.ProviderURI)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return noProvider(s.Conf, registry)
	}
	env := s.env()
	env.Source = s.careful // a check makes no folder of a Key Trustee KMS, and does not register it
	if s.Primary, err = registry.Open(ctx, list[0], env); err != nil {
		return s.Blame(hadoopconf.ProviderURI, err)
	}
	return nil
}

// noProvider is the error of a configuration without a provider.
func noProvider(conf *hadoopconf.Conf, registry *provider.Registry) error {
	return conf.Refuse(hadoopconf.ProviderURI, "name the place of the keys in kms-site.xml, as in "+
		"cloudera.hsmkp://file@/etc/claviger/luna.keystore for an HSM; Hadoop's default, a Java keystore in the "+
		"user's home folder, is not used. Known schemes: "+strings.Join(registry.Schemes(), ", "))
}

// openSources opens the providers after the first one, and the sources of a
// re-encryption.
func (s *Service) openSources(ctx context.Context) error {
	registry, err := s.registry()
	if err != nil {
		return err
	}
	env := s.env()
	env.Source = true
	listed, err := s.uris(hadoopconf.ProviderURI)
	if err != nil {
		return err
	}
	for _, uri := range listed[min(1, len(listed)):] {
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
		// The metastore keeps the uses of sources, which must survive this process.
		if _, err := s.store(ctx); err != nil {
			return err
		}
	}
	return nil
}

// nameStore sets the name of the metastore that this server sends with its requests
// to a source. A server that gets a request with its own name refuses it: the source
// is the server itself, or another node of its metastore. The name is a hash of the
// metastore's id, so it reveals nothing. A server without an HSM has a random name,
// and so recognizes only itself.
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

// checkSourcesNotSelf refuses a source that is this server, which already listens, or
// another node of its metastore: each key of this server would also be a key of the
// source. A source that does not answer is not refused.
func (s *Service) checkSourcesNotSelf(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstComparison)
	defer cancel()
	for _, src := range s.Sources {
		health, ok := src.Provider.(provider.Health)
		if !ok || !strings.HasPrefix(src.URI(), "kms:") || !errors.Is(health.Check(ctx), provider.ErrSourceIsSelf) {
			continue
		}
		property := hadoopconf.ProviderURI
		if src.Reencryption {
			property = hadoopconf.SourceURI
		}
		return s.Blame(property, fmt.Errorf("the source %s cannot be used: %w", src.URI(), provider.ErrSourceIsSelf))
	}
	return nil
}

// noOtherKeys refuses a first provider without an HSM if the metastore holds keys of
// an HSM. An operator probably changed the property by mistake, and new keys would
// get the names and version names of the existing keys.
func (s *Service) noOtherKeys(ctx context.Context) error {
	if _, ok := s.Primary.(*hsm.Provider); ok {
		return nil
	}
	place, err := location.Of(s.Conf)
	if err != nil || place.Missing() {
		return nil //nolint:nilerr // if a metastore is needed, opening it returns the error
	}
	if s.keepsSeen() { // before the process waits for a metastore that does not answer
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
	case err != nil && claviger.IsUnreachable(err):
		return err
	case err != nil:
		s.Log.Warn("it is not known whether the metastore holds keys of an HSM", "err", err)
	case len(names) > 0:
		return s.Blame(hadoopconf.ProviderURI, fmt.Errorf("%s keeps no key in the HSM, but the metastore %s (%s) "+
			"holds %d keys of an HSM, for example %s: name the HSM's keystore file, as in "+
			"cloudera.hsmkp://file@/etc/claviger/luna.keystore; or, if this server is for other keys, set %s to "+
			"another metastore", s.Primary.URI(), secret.Value(place.URI), place.Where(), len(names),
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

// Blame adds to an error the property that caused it, and the place where it is set. If the provider's error names a
// property, that property counts; otherwise the argument counts.
func (s *Service) Blame(property string, err error) error {
	if s.storeErr != nil {
		return s.storeErr // it names the metastore's property
	}
	var value *hadoopconf.ValueError
	if errors.As(err, &value) {
		return err // it names the line, of kts-site.xml or ssl-client.xml
	}
	if placed := s.Conf.WithPlace(err); placed != nil {
		return placed
	}
	p, _ := s.Conf.Lookup(property)
	return fmt.Errorf("%s: property %s: %w", p.Where(), property, err)
}

// store returns the metastore. The first call opens it.
func (s *Service) store(ctx context.Context) (metastore.Store, error) { return s.makeStore(ctx, nil) }

// makeStore is store, but calls create before it makes a metastore that does not exist. If create returns an error, no
// metastore is made.
func (s *Service) makeStore(ctx context.Context, create func(context.Context, string) error) (metastore.Store, error) {
	s.storeOnce.Do(func() {
		if s.access.Writes() {
			seen := ""
			if s.keepsSeen() {
				if seen, s.storeErr = location.SeenFile(s.Conf, s.Log); s.storeErr != nil {
					return
				}
			}
			if s.Store, s.storeErr = location.Open(ctx, s.Conf, location.Options{Create: s.creator(create), Seen: seen,
				Log: s.Log, Node: s.keepsSeen()}); s.storeErr == nil {
				// Claim the store at once: otherwise this process could take another process' running step
				// for an interrupted one.
				s.storeErr = claimStore(ctx, s.Store, s.self, s.access)
			}
		} else {
			s.Store, s.storeErr = location.OpenReadOnly(ctx, s.Conf, s.Log)
		}
		if errors.Is(s.storeErr, location.ErrNone) {
			s.Log.Warn("the metastore does not exist, so no key is known; this command makes no metastore", "err",
				s.storeErr)
			s.Store, s.storeErr = location.OpenEmpty(ctx, s.Conf)
		}
	})
	return s.Store, s.storeErr
}

// keepsSeen reports whether this process is a node. A node keeps a file about the
// state of the metastore.
func (s *Service) keepsSeen() bool { return s.access == hsm.Serve && s.self.What == Command }

// creator returns create for a server and for commands that change keys. Other
// commands make no store: an empty journal would be useless.
func (s *Service) creator(create location.Creator) location.Creator {
	if s.access.Changes() {
		return create
	}
	return func(ctx context.Context, uri string) error {
		if create != nil {
			if err := create(ctx, uri); err != nil {
				return err
			}
		}
		return location.RefuseCreation(ctx, uri)
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

// OSUser returns this process' user name at a KMS with simple authentication.
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

// Engine makes the migration's engine for the open parts. cfg holds the caller's own
// settings; of its Probes only those about HDFS and users are used.
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
				cfg.OtherSources = append(cfg.OtherSources, other.Provider)
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

// ReencryptionSource returns the source of a migration: the source of
// hadoop.kms.key.provider.reencryption.source.uri, or else the last provider of the
// list.
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
