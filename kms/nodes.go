package kms

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"claviger/console"
	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/provider/hsm"
)

// watchPause is the time between two attempts to watch other nodes' changes.
const watchPause = 5 * time.Second

// sharedKeys returns the store through which other nodes change the primary's keys;
// nil if there are no other nodes. Only the HSM provider keeps its keys in the
// metastore.
func (s *Service) sharedKeys() keyring.Shared {
	if _, ok := s.Primary.(*hsm.Provider); !ok {
		return nil
	}
	shared, _ := s.Store.(keyring.Shared)
	return shared
}

// signerSQL is the provider of signer secrets that keeps them in the metastore.
const signerSQL = "sql"

// shareByMetastore keeps delegation tokens in the metastore, if tokens is true. Jobs
// then survive a restart, and can use any node of the metastore. It keeps signer
// secrets there, too, if the configuration says so. It opens its own connections,
// because authentication needs them even if no provider needs a metastore.
func (c *cluster) shareByMetastore(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger, tokens bool) error {
	signers := conf.String(signerKind) == signerSQL
	p, _ := conf.Lookup(hadoopconf.MetastoreURI)
	if signers && !location.IsPostgres(conf.String(hadoopconf.MetastoreURI)) {
		return noSharedStore(conf)
	}
	if !signers && (!tokens || p.File == "") { // for tokens alone, the default file is not made
		return nil
	}
	// Node: this open does not check the pages of a large file, because the server checks them after its claim.
	store, err := location.Open(ctx, conf, location.Options{Log: log, Node: true})
	if err != nil {
		return err
	}
	c.close, c.store = append(c.close, store.Close), store
	if signers {
		shared, ok := store.(metastore.Signers)
		if !ok {
			return fmt.Errorf("the metastore %s keeps no signer secrets", store.URI())
		}
		c.signers = shared
	}
	if tokens {
		kept, ok := store.(metastore.Delegations)
		if !ok {
			return fmt.Errorf("the metastore %s keeps no delegation tokens", store.URI())
		}
		c.tokens, c.digests = kept, true // no Java KMS reads this store, so digests are enough
		c.remember = rememberOwn
		if _, shared := store.(metastore.Notices); shared {
			c.remember = rememberShared
		}
	}
	// Informational: cookies stay valid without the store, and the other nodes have the same
	// problem.
	c.checks = append(c.checks, console.Check{Name: "shared tokens and secrets", Informational: true, Run: store.Check})
	return nil
}

// noSharedStore is the error for secrets that nodes share, if the nodes cannot share the metastore.
func noSharedStore(conf *hadoopconf.Conf) error {
	return conf.Refuse(signerKind, "secrets that nodes share need a metastore that they share: set "+
		hadoopconf.MetastoreURI+" to postgresql://USER@HOST:PORT/DATABASE")
}

// watchOtherNodes waits for changes of keys and delegation tokens by other nodes, until ctx ends. It
// drops each changed key from the caches of the ring and of the HSM's provider, and forgets removed tokens.
func (s *server) watchOtherNodes(ctx context.Context) {
	shared := s.svc.sharedKeys()
	for shared != nil {
		err := shared.Watch(ctx, func(n metastore.Notice) {
			if n.Change == metastore.TokenRemoved {
				s.auth.tokens.Forget(n.Token)
				return
			}
			if p, ok := s.svc.Primary.(*hsm.Provider); ok {
				p.HandleNotice(n) // before the ring, which may read from the provider again
			}
			s.ring.HandleNotice(n)
		})
		if ctx.Err() != nil {
			return
		}
		// The server only becomes slower: without notices it reads the current state at each use.
		s.log.Error("changes of other nodes are not reported to this node; it reads the metastore at each use",
			"metastore", s.svc.Store.URI(), "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
	}
}
