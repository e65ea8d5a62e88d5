// Package recovery makes a metastore and its token agree again. It backs up and restores an SQLite store, compares a
// store with the token, moves a store to another location, gives up changes that a failover of PostgreSQL has lost,
// corrects times in the future, and adopts the keys of a token that the store does not have.
//
// Each exported function does the work of one command. The command parses the flags, and prints the result. If an
// operator must decide something first, the error is a *claviger.RefusedError.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/owner"
	"claviger/provider/builtin"
)

// openStore opens the configured metastore. If change is false, the command only reads: it makes and changes nothing,
// and other processes may use the store. A command that changes the store must not run as root if the files belong to
// another user. It claims the store until it closes the store; alone says whether nodes may use the store meanwhile.
func openStore(ctx context.Context, conf *hadoopconf.Conf, command string, change, alone bool,
	log *slog.Logger) (metastore.Store, error) {
	if !change {
		return location.OpenReadOnly(ctx, conf, log)
	}
	if err := owner.RefuseRoot(builtin.Files(conf)...); err != nil {
		return nil, err
	}
	store, err := location.OpenExisting(ctx, conf, log)
	if err != nil {
		return nil, err
	}
	return claimStore(ctx, store, owner.Self(command, conf.Dir()), alone)
}

// claimStore claims a store. After an error it closes the store.
func claimStore[S metastore.Store](ctx context.Context, store S, self owner.Owner, alone bool) (S, error) {
	if _, err := store.Claim(ctx, self, alone); err != nil {
		var none S
		return none, errors.Join(stopFirst(err, self), store.Close())
	}
	return store, nil
}

// stopFirst adds the cure to an error that names the process which uses a store.
func stopFirst(err error, self owner.Owner) error {
	if !errors.As(err, new(*owner.InUseError)) {
		return err
	}
	return fmt.Errorf("%w; %s changes data that the other process uses: stop that process first", err, self.What)
}

// sqliteLocation returns the location of a store that must be an SQLite file. otherwise is the advice for a store in
// PostgreSQL.
func sqliteLocation(conf *hadoopconf.Conf, otherwise string) (location.Location, error) {
	place, err := location.Of(conf)
	if err == nil && place.File == "" {
		err = place.Wrap(fmt.Errorf("%s is in PostgreSQL, %s", place.URI, otherwise))
	}
	return place, err
}

// ownTools is the advice for a backup or restore of a store in PostgreSQL.
const ownTools = "whose own tools back it up and restore it (docs/backup.md); claviger metastore verify checks the " +
	"restored database"
