package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/owner"
	"claviger/provider/hsm"
)

// claimStore claims a metastore for this process until the store is closed. A
// process may change keys only with a claim: a server holds one while it runs, and
// a command that changes keys while it works. A command that only reads, or writes
// only the journal, needs no claim and may run beside both. A command that destroys
// keys, or binds a token to another store, needs the store alone: no node may serve.
func claimStore(ctx context.Context, store metastore.Store, self owner.Owner, access hsm.Access) error {
	if !access.Changes() {
		return nil
	}
	_, err := store.Claim(ctx, self, access.Exclusive())
	return InUse(err, self, "give each server a "+hadoopconf.MetastoreURI+" of its own, and an HSM token of its own "+
		"with it (docs/hsm.md), or have all nodes share one in PostgreSQL (docs/nodes.md)")
}

// keystoreFile is a provider that keeps its keys in a keystore file, such as jceks.
type keystoreFile interface {
	Claim(o owner.Owner, alone bool) (release func(), shared bool, err error)
}

// claimKeystore claims the primary's keystore file, if it has one. Several servers
// may share it, as in Hadoop. A command that changes keys needs it alone.
func (s *Service) claimKeystore() error {
	file, ok := s.Primary.(keystoreFile)
	if !ok || !s.access.Changes() {
		return nil
	}
	release, shared, err := file.Claim(s.self, s.self.What != Command)
	if err != nil {
		return InUse(err, s.self, "")
	}
	s.release = release
	if shared {
		s.Log.Warn("another server uses the same keystore file: after one server deletes or rolls a key, the other " +
			"server serves the old key from memory, for as long as hadoop.kms.cache.timeout.ms and " +
			"hadoop.kms.current.key.cache.timeout.ms say; several nodes need an HSM, with " +
			hadoopconf.MetastoreURI + " in PostgreSQL (docs/nodes.md)")
	}
	return nil
}

// InUse adds the cure to an error which says that another process uses a store.
// servers is the cure if both processes are servers.
func InUse(err error, self owner.Owner, servers string) error {
	var in *owner.InUseError
	switch {
	case !errors.As(err, &in):
		return err
	case self.What == Command && len(in.Owners) > 0 && in.Owners[0].What != Command:
		return fmt.Errorf("%w; start this server when that command has ended", err)
	case self.What == Command:
		return fmt.Errorf("%w; a second server would serve keys that the first server deleted, so this server "+
			"does not start: stop the first server, or %s", err, servers)
	case strings.HasPrefix(self.What, "claviger migrate"):
		return fmt.Errorf("%w; %s changes keys, and a running server does not notice that: let the running server "+
			"take the keys over (claviger key migrate NAME --provider URI), or stop it first", err, self.What)
	}
	return fmt.Errorf("%w; %s changes data that the other process uses: stop that process first", err, self.What)
}

// Command is the name of a server in its claims.
const Command = "claviger kms"
