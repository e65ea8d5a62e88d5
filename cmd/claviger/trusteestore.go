package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger/durable"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/postgres"
	"claviger/trustee/server/sqlite"
)

// trusteeStore is the store of a trustee whose keytrustee.conf names no database.
const trusteeStore = "keytrustee.db"

const trusteeStoreHelp = "PostgreSQL database for the deposits, as postgresql://USER@HOST:PORT/DATABASE, without a " +
	"password; otherwise the file " + trusteeStore

// loadTrustee reads a trustee's folder.
func loadTrustee(dir string) (*trustee.Folder, error) {
	if _, missing := os.Stat(dir); errors.Is(missing, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: make it with: claviger trustee init --confdir %s; or copy that of the other trustee, without .ssl and %s", dir, dir, trusteeStore)
	}
	f, err := trustee.LoadFolder(dir)
	if err != nil {
		return nil, err
	}
	return f, notOfClient(f)
}

// notOfClient refuses the folder of a KT KMS, which has the same files.
func notOfClient(f *trustee.Folder) error {
	if f.Org == "" && len(f.Servers) == 0 {
		return nil
	}
	return &exitError{exitRefused, fmt.Errorf("%s is the folder of a KT KMS (its %s names an organization or a server), not of a Key Trustee Server: nothing was done. claviger trustee backup --keytrustee %s saves it", f.Path, trustee.ConfFile, f.Path)}
}

// openTrusteeStore opens the store that a trustee's folder names. log may be nil.
func openTrusteeStore(ctx context.Context, f *trustee.Folder, log *slog.Logger) (server.Store, error) {
	if f.Store != "" {
		store, err := openTrusteeDatabase(ctx, f, log)
		if err != nil {
			return nil, err
		}
		role, err := store.Role(ctx)
		if err != nil {
			return nil, errors.Join(err, store.Close())
		}
		if log != nil {
			log.Info("the deposits are in PostgreSQL", "store", store.URI(), "standby", role == server.RolePassive)
		}
		return store, nil
	}
	return sqlite.Open(ctx, filepath.Join(f.Path, trusteeStore), false)
}

// readTrusteeStore opens the store that a trustee's folder names for a caller who only
// reads: a store in a file is not brought up to date, for an older server may have it open.
// release closes it.
func readTrusteeStore(ctx context.Context, f *trustee.Folder) (_ server.Store, release func() error, err error) {
	if f.Store == "" {
		return sqlite.OpenReadOnly(ctx, filepath.Join(f.Path, trusteeStore))
	}
	store, err := openTrusteeStore(ctx, f, nil)
	if err != nil {
		return nil, nil, err
	}
	return store, store.Close, nil
}

func openTrusteeDatabase(ctx context.Context, f *trustee.Folder, log *slog.Logger) (*postgres.Store, error) {
	return postgres.Open(ctx, postgres.Config{URI: f.Store, Where: filepath.Join(f.Path, trustee.ConfFile) + ", DB_CONNECT", Identity: f.Identity.Fingerprint(), Log: log})
}

// servedBefore returns the files of a folder which show that a store was served from it
// that is not there any more.
func servedBefore(f *trustee.Folder) (files []string, err error) {
	file := filepath.Join(f.Path, trusteeStore)
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return nil, nil // whoever opens it says more
	}
	for _, pattern := range []string{".lock", "-wal", ".dropped-*", ".rescued-*"} {
		list, err := filepath.Glob(globEscape(file) + pattern)
		if err != nil {
			return nil, err
		}
		files = append(files, list...)
	}
	return files, nil
}

// globEscape has a path stand for itself in a pattern.
func globEscape(path string) string {
	return strings.NewReplacer("\\", "\\\\", "*", "\\*", "?", "\\?", "[", "\\[").Replace(path)
}

// initTrusteeStore makes the store of a folder where it is not there yet: a database
// where uri names one, which the folder then names. In the place of a store that was
// served before it makes none, unless empty says so.
func initTrusteeStore(ctx context.Context, f *trustee.Folder, uri string, empty bool) error {
	file := filepath.Join(f.Path, trusteeStore)
	conf := postgres.Config{URI: uri, Where: "--store", Identity: f.Identity.Fingerprint()}
	switch _, err := os.Stat(file); {
	case uri == "" && f.Store == "":
		left, err := servedBefore(f)
		if err != nil {
			return err
		}
		if len(left) > 0 && !empty {
			return &exitError{exitRefused, fmt.Errorf("%s is gone, and a trustee has served it from this folder before: %s. An empty store would answer that no deposit is there, so none was made. Put the file back, a copy that is named here in its place, or restore a backup into another folder (claviger trustee restore). Where the other of two trustees holds the deposits, or none is needed: claviger trustee init --empty-store, and of two start this one with --role passive", file, strings.Join(left, ", "))}
		}
		// SQLite would remove the log of changes of the store that is gone.
		if slices.Contains(left, file+"-wal") {
			aside := file + ".left-" + time.Now().UTC().Format("20060102T150405Z") + "-wal"
			if err := durable.Rename(file+"-wal", aside); err != nil {
				return err
			}
		}
		store, err := sqlite.Open(ctx, file, true)
		if err != nil {
			return err
		}
		return store.Close()
	case uri == "":
		conf.URI, conf.Where, conf.Claim = f.Store, filepath.Join(f.Path, trustee.ConfFile)+", DB_CONNECT", true
	case f.Store == "" && err == nil:
		return fmt.Errorf("--store: this trustee's deposits are in %s; to take them along: claviger trustee backup, then claviger trustee restore --store into another folder", file)
	default:
		// Another database than the one that is named must be this identity's already: its
		// standby, or the same under another name.
		conf.Claim = f.Store == "" || f.Store == uri
	}
	store, err := postgres.Open(ctx, conf)
	if err != nil {
		return err
	}
	if err := store.Close(); err != nil {
		return err
	}
	if conf.URI == f.Store {
		return nil
	}
	f.Store = conf.URI
	return f.Save()
}

// restoredBefore is a database that holds deposits already. A restoration that was killed
// after it had filled the database is finished by a second one, of the same backup.
type restoredBefore struct {
	server.Store
	uri string
}

// Import writes nothing. It compares what the database holds with what is restored.
func (s *restoredBefore) Import(ctx context.Context, next func() (server.Record, error)) error {
	given, held := new(server.Digester), new(server.Digester)
	for {
		r, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = given.Add(r)
		}
		if err != nil {
			return err
		}
	}
	if err := s.Export(ctx, held.Add); err != nil {
		return err
	}
	if given.Sum() != held.Sum() {
		return fmt.Errorf("--store: %s holds deposits of this trustee already (%d, where the backup has %d), and other ones than the backup: nothing is overwritten; name an empty database, or point this folder to it by claviger trustee init --store",
			s.uri, held.Deposits, given.Deposits)
	}
	return nil
}

// restoreTrusteeStore opens the empty store of a folder that is being restored, in
// the folder or in the database that uri names. undo empties that again. A database that
// holds what is restored, and nothing else, is taken as it is.
func restoreTrusteeStore(ctx context.Context, dir, uri string) (_ server.Store, undo func(context.Context) error, err error) {
	folder, err := trustee.LoadFolder(dir)
	if err != nil {
		return nil, nil, err
	}
	// The backup names where its store was.
	if folder.Store != uri {
		folder.Store = uri
		if err := folder.Save(); err != nil {
			return nil, nil, err
		}
	}
	undo = func(context.Context) error { return nil } // it goes with the folder
	if uri == "" {
		store, err := sqlite.Open(ctx, filepath.Join(dir, trusteeStore), true)
		return store, undo, err
	}
	conf := postgres.Config{URI: uri, Where: "--store", Identity: folder.Identity.Fingerprint(), Claim: true}
	store, err := postgres.Open(ctx, conf)
	if err != nil {
		return nil, nil, err
	}
	full := errors.New("not empty")
	switch err := store.Export(ctx, func(server.Record) error { return full }); {
	case errors.Is(err, full): // by a restoration that was killed, perhaps
		return &restoredBefore{Store: store, uri: store.URI()}, undo, nil
	case err != nil:
		return nil, nil, errors.Join(err, store.Close())
	}
	undo = func(ctx context.Context) (err error) {
		store, err := postgres.Open(ctx, conf)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		return store.Release(ctx)
	}
	return store, undo, nil
}

// databaseStatus tells how a trustee stands whose store is in PostgreSQL.
type databaseStatus struct {
	Role     server.Role `json:"role"`
	Store    string      `json:"store"`
	Deposits int64       `json:"deposits"`
	Deleted  int64       `json:"deleted"`
	Digest   string      `json:"digest,omitempty"`
}

func printDatabaseStatus(cmd *cobra.Command, f *trustee.Folder, digest bool, output string) (err error) {
	ctx := cmd.Context()
	store, err := openTrusteeDatabase(ctx, f, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	st := databaseStatus{Store: store.URI()}
	if st.Role, err = store.Role(ctx); err != nil {
		return err
	}
	if st.Deposits, st.Deleted, err = store.Deposits(ctx); err != nil {
		return err
	}
	if digest {
		if st.Digest, err = server.StateDigest(ctx, store); err != nil {
			return err
		}
	}
	if output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "this   %-8s %d deposits, %d deleted, in %s\n", st.Role, st.Deposits, st.Deleted, st.Store)
	if err == nil && digest {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "digest %s\n", st.Digest)
	}
	return err
}

// promoteDatabase makes the standby that holds the deposits a primary.
func promoteDatabase(cmd *cobra.Command, f *trustee.Folder, force bool) (err error) {
	ctx := cmd.Context()
	store, err := openTrusteeDatabase(ctx, f, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	role, err := store.Role(ctx)
	switch {
	case err != nil:
		return err
	case role == server.RoleActive:
		return &exitError{exitRefused, fmt.Errorf("%s is a primary: this trustee is the active one", store.URI())}
	case !force:
		return &exitError{exitRefused, fmt.Errorf("a standby cannot ask its primary to yield: stop that first, so that no deposit is made there any more, then claviger trustee promote --force makes %s the primary", store.URI())}
	}
	if err := store.Promote(ctx); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is the primary now: this trustee is the active one\n", store.URI())
	return err
}

// notOfDatabase refuses what PostgreSQL's replication does by itself.
func notOfDatabase(*cobra.Command, []string, *trustee.Folder) error {
	return &exitError{exitUsage, errors.New("the deposits of this trustee are in PostgreSQL, whose replication keeps the second copy: synchronous_standby_names says whether a deposit waits for it, and pg_basebackup or pg_rewind brings a standby back")}
}
