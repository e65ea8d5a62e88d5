package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
)

// Report is the result of Verify.
type Report struct {
	Store string `json:"store"`
	sqlite.Facts
	Token *Token           `json:"token,omitempty"` // nil if the token was not compared
	Moved *metastore.Moved `json:"moved,omitempty"` // if Copy has moved the store
}

// Verify checks the configured store, or a backup in file. With token it also compares the store or backup with the
// token. It changes nothing, and a server may run.
func Verify(ctx context.Context, conf *hadoopconf.Conf, file string, token bool, log *slog.Logger) (
	r *Report, err error) {
	r = &Report{Store: file}
	backup := file != ""
	if !backup {
		place, err := location.Of(conf)
		if err != nil {
			return nil, err
		}
		r.Store, file = place.URI, place.File
		if file != "" && place.Missing() {
			return nil, place.Wrap(fmt.Errorf("%w at %s", location.ErrNone, file))
		}
	}
	store, err := r.open(ctx, conf, file, log)
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
	}
	if err != nil || !token {
		return r, err
	}
	r.Token, err = compareToken(ctx, conf, store, false, log)
	if t := r.Token; t != nil && backup && t.stale {
		t.Misfit = ""
		t.Older = "the token was used after this backup was made, which is usual; after metastore restore, the " +
			"restored store can use the token"
	}
	return r, err
}

// open opens the store in file, or the configured store if file is "", and sets Facts and Moved. It may return both a
// store and an error.
func (r *Report) open(ctx context.Context, conf *hadoopconf.Conf, file string, log *slog.Logger) (
	metastore.Store, error) {
	if file == "" {
		store, err := location.OpenReadOnly(ctx, conf, log)
		if err == nil {
			r.Facts, err = factsOf(ctx, store)
		}
		return store, err
	}
	var err error
	if r.Facts, err = sqlite.Inspect(ctx, file); err != nil {
		return nil, err
	}
	store, err := sqlite.OpenReadOnly(ctx, file)
	if err != nil {
		return nil, err // a nil *sqlite.Store in the interface would not be nil
	}
	r.Moved, err = metastore.MovedTo(ctx, store)
	return store, err
}

// factsOf returns the facts of a store that was opened by its location.
func factsOf(ctx context.Context, s metastore.Store) (f sqlite.Facts, err error) {
	versions, err := versionsOf(ctx, s)
	if err != nil {
		return f, err
	}
	names, err := s.Names(ctx)
	if err != nil {
		return f, err
	}
	deleted, err := s.DeletedKeys(ctx)
	if err != nil {
		return f, err
	}
	pending, err := s.Pending(ctx)
	if err != nil {
		return f, err
	}
	runs, err := s.Runs(ctx)
	if err != nil {
		return f, err
	}
	f.Keys, f.Deleted, f.Pending, f.Runs = len(names), len(deleted), len(pending), len(runs)
	for _, v := range versions {
		if !v.deleted {
			f.Versions++
		}
	}
	if f.TokenSerial, _, err = s.Setting(ctx, "hsm.token.serial"); err == nil {
		f.TokenLabel, _, err = s.Setting(ctx, "hsm.token.label")
	}
	return f, err
}
