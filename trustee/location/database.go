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

// StatusOf returns the status of the database that a folder names. If digest is true, it reads the whole
// store.
func StatusOf(ctx context.Context, f *trustee.Folder, digest bool) (st DatabaseStatus, err error) {
	store, err := openDatabase(ctx, f, nil)
	if err != nil {
		return st, err
	}
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
