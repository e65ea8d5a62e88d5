package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/owner"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

func newTrusteeRecover() *cobra.Command {
	var dir string
	var revive []string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "recover [--confdir DIR] [--revive KEY]... [FILE]",
		Short: "Bring back what a trustee's store has dropped",
		Long: `recover adds to the store what it lacks of FILE: a store that resync --drop left (` + location.FileName + `.dropped-*), that a server saved of a file which was
moved or removed (` + location.FileName + `.rescued-*), or another copy of a trustee's store. It is for the host of the active trustee, whose server may run; FILE
may come from the other host. FILE is only read, and nothing that the store holds is changed.

It works by keys. A key that the store has deleted is left and named (REVIVED); --revive adds it. Where the store has the key in another state, or
another key of that name, the versions that the store lacks are kept in it, and named: their EDEKs stay unreadable until claviger trustee adopt, on a
host of the KT KMS, merges them into the key.

Of a key that was purged the store knows nothing. recover takes a key for purged where it is older than the newest deposit that FILE and the store
share. A key that is newer than all they share, and was purged, is added: look at the names that are printed.

What it adds, a KT KMS uses at once, and it changes keys again within a minute. EDEKs of key versions that no FILE has open nowhere: docs/trustee.md.

Without FILE it lists the files beside the store, and what the store lacks of each. Exit status 3: something was left, or must be adopted; or FILE holds
nothing of a name that --revive gives, and nothing was changed.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			folder, err := location.Load(dir)
			if err != nil {
				return err
			}
			if err := owner.RefuseRoot(folder.Path); err != nil {
				return err
			}
			store, err := location.Open(cmd.Context(), folder, nil)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, store.Close()) }()
			if len(args) == 0 {
				if len(revive) > 0 {
					return &exitError{exitUsage, errors.New("--revive is for a FILE: name the one that holds the key")}
				}
				return listDropped(cmd.Context(), &out, store, folder)
			}
			return recoverFrom(cmd.Context(), &out, store, args[0], revive)
		},
	}
	trusteeDirFlag(cmd, &dir)
	out.Flag(cmd)
	cmd.Flags().StringArrayVar(&revive, "revive", nil, "add this key although the store has deleted it")
	return cmd
}

// droppedFile is a file beside the store, and the number of things that the store lacks of it.
type droppedFile struct {
	File  string       `json:"file"`
	Lacks replica.Loss `json:"lacks"`
}

// listDropped prints what the store lacks of each file beside it.
func listDropped(ctx context.Context, out *terminal.Output, store server.Store, folder *trustee.Folder) error {
	files, err := location.Dropped(folder)
	if err != nil {
		return err
	}
	list := []droppedFile{}
	for _, name := range files {
		r, err := location.Recover(ctx, store, name, replica.RecoverOptions{Dry: true})
		if err != nil {
			return err
		}
		list = append(list, droppedFile{name, r.Lacked})
	}
	return out.Write(list, func(w io.Writer) {
		for _, f := range list {
			text := "the store holds all of it"
			if !f.Lacks.None() {
				text = "the store lacks " + f.Lacks.String()
			}
			fmt.Fprintf(w, "%s: %s\n", f.File, text)
		}
		if len(list) == 0 {
			file := filepath.Join(folder.Path, location.FileName)
			fmt.Fprintf(w, "there is no %s.dropped-* and no %s.rescued-*\n", file, file)
		}
	})
}

// recovered is the report of a recovery.
type recovered struct {
	Added replica.Loss `json:"added"`
	Names []string     `json:"names,omitempty"` // of what was added
	Left  []string     `json:"left,omitempty"`  // what was not added, each with its reason
	Kept  []string     `json:"kept,omitempty"`  // full names of versions that must be adopted
	Idle  []string     `json:"idle,omitempty"`  // names of --revive of which the store lacks nothing
}

func recoverFrom(ctx context.Context, out *terminal.Output, store server.Store, name string, revive []string) error {
	r, err := location.Recover(ctx, store, name, replica.RecoverOptions{Revive: revive})
	begun := r != nil && !(r.Added.None() && len(r.Aside) == 0)
	switch {
	case err == nil:
	case begun: // a second call reports only what it adds itself
		return errors.Join(fmt.Errorf("%w; what was added before stays, and the command may be repeated", err),
			printRecovered(out, r))
	case errors.Is(err, trustee.ErrPassive):
		return &exitError{exitRefused,
			fmt.Errorf("%w; nothing was changed: copy %s to the host of the active one and run "+
				"this there, or run claviger trustee promote here first", err, name)}
	case claviger.Is(err, claviger.KeyNotFound):
		return &exitError{exitRefused, fmt.Errorf("%w; nothing was changed", err)}
	default:
		return fmt.Errorf("%w; nothing was changed", err)
	}
	if err := printRecovered(out, r); err != nil || r.Lacked.None() {
		return err
	}
	var errs []error
	if len(r.Left) > 0 {
		errs = append(errs, fmt.Errorf("%d of them were not added; %s alone has these: keep that file", len(r.Left),
			name))
	}
	if len(r.Aside) > 0 {
		errs = append(errs, fmt.Errorf("%d versions cannot be used before they are adopted: keep %s until then",
			len(r.Aside), name))
	}
	if len(errs) > 0 {
		return &exitError{exitRefused, errors.Join(errs...)}
	}
	return nil
}

func printRecovered(out *terminal.Output, r *replica.Recovered) error {
	report := recovered{r.Added, r.Names, r.Left, r.Aside, r.Idle}
	return out.Write(report, func(w io.Writer) {
		for _, name := range r.Idle {
			fmt.Fprintf(w, "nothing to revive of %s: the store holds all of it\n", claviger.Printable(name))
		}
		if r.Lacked.None() {
			fmt.Fprintln(w, "the store holds all of it: nothing was changed")
			return
		}
		if n := &r.Added; !n.None() {
			fmt.Fprintf(w, "added %d organizations, %d clients and %d deposits\n", n.Orgs, n.Clients, n.Deposits)
		}
		for _, name := range r.Names {
			fmt.Fprintf(w, "added %s\n", name)
		}
		for _, left := range r.Left {
			fmt.Fprintf(w, "left %s\n", left)
		}
		for _, version := range r.Aside {
			fmt.Fprintf(w, "kept version %q, which no key names: its EDEKs stay unreadable "+
				"until, on a host of the KT KMS, claviger trustee adopt --conf DIR %q\n", version, version)
		}
	})
}
