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

// watchPause lies between two attempts to hear of other nodes' changes.
const watchPause = 5 * time.Second

// sharedKeys is the store by which other nodes change the primary's keys, too; nil
// where nobody else does. Only the HSM provider keeps its keys in the metastore.
func (s *Service) sharedKeys() keyring.Shared {
	if _, ok := s.Primary.(*hsm.Provider); !ok {
		return nil
	}
	shared, _ := s.Store.(keyring.Shared)
	return shared
}

// signerSQL as the provider of signer secrets keeps them in the metastore.
const signerSQL = "sql"

// shareByMetastore keeps delegation tokens in the metastore, unless they are kept
// elsewhere: jobs then outlive a restart, and with a metastore of several nodes go
// to any of them. There signer secrets are kept too, if the configuration says so.
// It has connections of its own, for who is asking is found out also where no
// provider needs a metastore.
func (c *cluster) shareByMetastore(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger, tokens bool) error {
	signers := conf.String(signerKind) == signerSQL
	p, _ := conf.Lookup(hadoopconf.MetastoreURI)
	if signers && !location.IsPostgres(conf.String(hadoopconf.MetastoreURI)) {
		return conf.Refuse(signerKind, "secrets that nodes share need a metastore that they share: set "+
			hadoopconf.MetastoreURI+" to postgresql://USER@HOST:PORT/DATABASE")
	}
	if !signers && (!tokens || p.File == "") { // no file is made by default for tokens alone
		return nil
	}
	store, err := location.Open(ctx, conf, location.Options{Log: log})
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
		c.tokens, c.digests = kept, true // no Java KMS reads them there
	}
	// Not a condition of readiness: cookies hold without it, and the other nodes are
	// no better off.
	c.checks = append(c.checks, console.Check{Name: "shared tokens and secrets", Informational: true, Run: store.Check})
	return nil
}

// heedOthers makes the ring and the HSM's provider forget what other nodes change, until
// ctx ends.
func (s *server) heedOthers(ctx context.Context) {
	shared := s.svc.sharedKeys()
	for shared != nil {
		err := shared.Watch(ctx, func(n metastore.Notice) {
			if p, ok := s.svc.Primary.(*hsm.Provider); ok {
				p.HandleNotice(n) // before the ring, which may ask it again
			}
			s.ring.Heed(n)
		})
		if ctx.Err() != nil {
			return
		}
		// No more than speed is lost: what is current is asked for at each use.
		s.log.Error("other nodes' changes are not heard of", "metastore", s.svc.Store.URI(), "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
	}
}
