package location

import (
	"context"
	"errors"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// DatabaseStatus is the state of a Key Trustee Server whose store is in PostgreSQL.
type DatabaseStatus struct {
	Role     server.Role `json:"role"`
	Store    string      `json:"store"`
	Deposits int64       `json:"deposits"`
	Deleted  int64       `json:"deleted"`
	Digest   string      `json:"digest,omitempty"`
}

// database is a store in a PostgreSQL database.
type database interface {
	server.Store
	URI() string
	Deposits(ctx context.Context) (live, deleted int64, err error)
	Promote(ctx context.Context) error
}

// StatusOf returns the status of the database that a folder names. If digest is true, it reads the whole
// store.
func StatusOf(ctx context.Context, f *trustee.Folder, digest bool) (DatabaseStatus, error) {
	store, err := openDatabase(ctx, f, nil)
	if err != nil {
		return DatabaseStatus{}, err
	}
	return statusOf(ctx, store, digest)
}

// statusOf returns the status of a database, and closes it.
func statusOf(ctx context.Context, store database, digest bool) (st DatabaseStatus, err error) {
	defer func() { err = errors.Join(err, store.Close()) }()
	st.Store = store.URI()
	if st.Role, err = store.Role(ctx); err != nil {
		return st, err
	}
	if st.Deposits, st.Deleted, err = store.Deposits(ctx); err != nil {
		return st, err
	}
	if digest {
		st.Digest, err = server.StateDigest(ctx, store)
	}
	return st, err
}

// Promote makes the standby that a folder names a primary, and returns its URI without secrets. It refuses
// to promote a primary. Without force it refuses to promote a standby, because it cannot stop the primary.
func Promote(ctx context.Context, f *trustee.Folder, force bool) (uri string, err error) {
	store, err := openDatabase(ctx, f, nil)
	if err != nil {
		return "", err
	}
	return promote(ctx, store, force)
}

// promote makes a standby a primary, as Promote does, and closes it.
func promote(ctx context.Context, store database, force bool) (uri string, err error) {
	defer func() { err = errors.Join(err, store.Close()) }()
	role, err := store.Role(ctx)
	switch {
	case err != nil:
		return "", err
	case role == server.RoleActive:
		return "", claviger.Refuse("%s is a primary: this trustee is the active one", store.URI())
	case !force:
		return "", claviger.Refuse("a standby cannot stop its primary: stop the primary first, so that it accepts no "+
			"more deposits, then claviger trustee promote --force makes %s the primary", store.URI())
	}
	return store.URI(), store.Promote(ctx)
}
