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
	"claviger/shellword"
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
		Short: "Restore deposits that a trustee's store has lost",
		Args:  cobra.MaximumNArgs(1),
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
					return &exitError{exitUsage, errors.New("--revive needs FILE: name the file that has the key")}
				}
				return listDropped(cmd.Context(), &out, store, folder)
			}
			return recoverFrom(cmd.Context(), &out, store, args[0], revive)
		},
	}
	trusteeDirFlag(cmd, &dir)
	out.Flag(cmd)
	cmd.Flags().StringArrayVar(&revive, "revive", nil, "add this key, although the store has deleted it")
	return cmd
}

// listDropped prints what the store lacks of each file beside it.
func listDropped(ctx context.Context, out *terminal.Output, store server.Store, folder *trustee.Folder) error {
	list, err := location.CompareDropped(ctx, store, folder)
	if err != nil {
		return err
	}
	return out.Write(list, func(w io.Writer) {
		for _, f := range list {
			text := "the store has all its records"
			if !f.Lacks.None() {
				text = "the store lacks " + f.Lacks.String()
			}
			fmt.Fprintf(w, "%s: %s\n", f.File, text)
		}
		if len(list) == 0 {
			file := filepath.Join(folder.Path, location.FileName)
			fmt.Fprintf(w, "there is no file %s.dropped-* and no file %s.rescued-*\n", file, file)
		}
	})
}

// recovered is the report of a recovery.
type recovered struct {
	Added    replica.Loss `json:"added"`
	Names    []string     `json:"names,omitempty"` // names that were added
	NotAdded []string     `json:"left,omitempty"`  // names that were not added, each with the reason
	Kept     []string     `json:"kept,omitempty"`  // full names of versions that must be adopted
	Idle     []string     `json:"idle,omitempty"`  // names of --revive that the store has completely
}

func recoverFrom(ctx context.Context, out *terminal.Output, store server.Store, name string, revive []string) error {
	r, err := location.Recover(ctx, store, name, replica.RecoverOptions{Revive: revive})
	begun := r != nil && !(r.Added.None() && len(r.Aside) == 0)
	switch {
	case err == nil:
	case begun: // the next call reports only what that call adds
		return errors.Join(fmt.Errorf("%w; the records added before remain in the store; run the command again", err),
			printRecovered(out, r))
	case errors.Is(err, trustee.ErrPassive):
		return &exitError{exitRefused,
			fmt.Errorf("%w; nothing was changed: copy %s to the host of the active trustee and run "+
				"this command there, or run claviger trustee promote here first", err, name)}
	case claviger.Is(err, claviger.KeyNotFound):
		return &exitError{exitRefused, fmt.Errorf("%w; nothing was changed", err)}
	default:
		return fmt.Errorf("%w; nothing was changed", err)
	}
	if err := printRecovered(out, r); err != nil || r.Lacked.None() {
		return err
	}
	var errs []error
	if len(r.NotAdded) > 0 {
		errs = append(errs, fmt.Errorf("%d of them were not added; only %s has them: keep that file", len(r.NotAdded),
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
	report := recovered{r.Added, r.Names, r.NotAdded, r.Aside, r.NotLacked}
	return out.Write(report, func(w io.Writer) {
		for _, name := range r.NotLacked {
			fmt.Fprintf(w, "nothing to revive of %s: the store has all its records\n", claviger.Printable(name))
		}
		if r.Lacked.None() {
			fmt.Fprintln(w, "the store has all records of the file: nothing was changed")
			return
		}
		if n := &r.Added; !n.None() {
			fmt.Fprintf(w, "added %d organizations, %d clients and %d deposits\n", n.Orgs, n.Clients, n.Deposits)
		}
		for _, name := range r.Names {
			fmt.Fprintf(w, "added %s\n", name)
		}
		for _, reason := range r.NotAdded {
			fmt.Fprintf(w, "left %s\n", reason)
		}
		for _, version := range r.Aside {
			fmt.Fprintf(w, "kept version %q, which belongs to no key: its EDEKs stay unreadable until you run, on a "+
				"host of the KT KMS: claviger trustee adopt --conf DIR %s\n", version, shellword.Quote(version))
		}
	})
}
