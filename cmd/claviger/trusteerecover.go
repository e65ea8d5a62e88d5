package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

func newTrusteeRecover() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "recover [--confdir DIR] [FILE]",
		Short: "Bring back what a trustee's store has dropped",
		Long: `recover adds to the store what it lacks of FILE: a store that resync --drop left (` + trusteeStore + `.dropped-*), that a server saved of a file which was
moved or removed (` + trusteeStore + `.rescued-*), or another copy of a trustee's store. It is for the host of the active trustee, whose server may run; FILE
may come from the other host. Nothing that the store holds is changed: a deposit whose label has another one by now stays in FILE, and is named.

What it adds, a KT KMS uses at once, and it changes keys again within a minute. EDEKs of key versions that no FILE has open nowhere: docs/trustee.md.

Without FILE it lists the files beside the store, and what the store lacks of each. Exit status 3: something was left.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			folder, err := loadTrustee(dir)
			if err != nil {
				return err
			}
			if err := notAsRoot(folder.Path); err != nil {
				return err
			}
			store, err := openTrusteeStore(cmd.Context(), folder, nil)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, store.Close()) }()
			if len(args) == 0 {
				return listDropped(cmd.Context(), cmd.OutOrStdout(), store, filepath.Join(folder.Path, trusteeStore))
			}
			return recoverFrom(cmd.Context(), cmd.OutOrStdout(), store, args[0])
		},
	}
	trusteeDirFlag(cmd, &dir)
	return cmd
}

// listDropped says what the store lacks of each file beside it.
func listDropped(ctx context.Context, out io.Writer, store server.Store, file string) error {
	var files []string
	for _, pattern := range []string{".dropped-*", ".rescued-*"} {
		list, err := filepath.Glob(globEscape(file) + pattern)
		if err != nil {
			return err
		}
		files = append(files, list...)
	}
	// SQLite's own, beside a copy that is open elsewhere.
	files = slices.DeleteFunc(files, func(name string) bool {
		return strings.HasSuffix(name, "-wal") || strings.HasSuffix(name, "-shm")
	})
	for _, name := range files {
		r, err := recovered(ctx, store, name, true)
		if err != nil {
			return err
		}
		text := "the store holds all of it"
		if !r.Lacked.None() {
			text = "the store lacks " + r.Lacked.String()
		}
		if _, err := fmt.Fprintf(out, "%s: %s\n", name, text); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		_, err := fmt.Fprintf(out, "there is no %s.dropped-* and no %s.rescued-*\n", file, file)
		return err
	}
	return nil
}

func recovered(ctx context.Context, store server.Store, name string, dry bool) (_ *server.Recovered, err error) {
	if _, err := os.Stat(name); err != nil {
		return nil, err
	}
	from, err := sqlite.Open(ctx, name, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	return server.Recover(ctx, store, from, dry)
}

func recoverFrom(ctx context.Context, out io.Writer, store server.Store, name string) error {
	r, err := recovered(ctx, store, name, false)
	switch {
	case server.IsPassive(err):
		return &exitError{exitRefused, fmt.Errorf("%w; nothing was changed: copy %s to the host of the active one and run this there, or run claviger trustee promote here first", err, name)}
	case err != nil:
		return fmt.Errorf("%w; what was added before stays, and the command may be repeated", err)
	}
	if r.Lacked.None() {
		_, err := fmt.Fprintln(out, "the store holds all of it: nothing was changed")
		return err
	}
	if !r.Added.None() {
		if _, err := fmt.Fprintf(out, "added %s\n", &r.Added); err != nil {
			return err
		}
	}
	for _, left := range r.Left {
		if _, err := fmt.Fprintf(out, "left %s\n", left); err != nil {
			return err
		}
	}
	if len(r.Left) > 0 {
		return &exitError{exitRefused, fmt.Errorf("%d of it were not added and stay in %s alone: keep that file", len(r.Left), name)}
	}
	return nil
}
