// Package recovery brings a metastore and the token that it belongs to together again: it backs an SQLite
// store up and restores it, checks a store against the token, moves a store to another place, gives up changes
// that a failover of PostgreSQL has lost, sets times that have not come yet, and adopts the keys of a token
// that the store does not know. Each function is the work of one command, which parses the flags and prints
// what the function returns. Work that a person must decide about first ends with a *claviger.RefusedError.
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

// openStore opens the configured metastore. A command that only reads makes and changes nothing, and other
// processes may use the store. A command that changes the store does not run as root beside another user's
// files; it claims the store until it closes it, alone or beside the nodes that share it.
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
	return claimed(ctx, store, owner.Self(command, conf.Dir()), alone)
}

// claimed claims a store, and closes it where that fails.
func claimed[S metastore.Store](ctx context.Context, store S, self owner.Owner, alone bool) (S, error) {
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
	return fmt.Errorf("%w; %s changes what that process relies on: stop it first", err, self.What)
}

// sqliteLocation returns the location of a store that must be an SQLite file. otherwise says what to use for
// a store in PostgreSQL.
func sqliteLocation(conf *hadoopconf.Conf, otherwise string) (location.Location, error) {
	place, err := location.Of(conf)
	if err == nil && place.File == "" {
		err = place.Wrap(fmt.Errorf("%s is in PostgreSQL, %s", place.URI, otherwise))
	}
	return place, err
}

// ownTools is what replaces Backup and Restore in PostgreSQL.
const ownTools = "whose own tools back it up and restore it (docs/backup.md); claviger metastore verify checks what " +
	"was restored"
