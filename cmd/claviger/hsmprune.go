package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// pruned is the report of hsm prune.
type pruned struct {
	hsm.Prunable
	Destroyed []hsm.Object `json:"destroyed"`
}

func newHSMPrune() *cobra.Command {
	var confirm string
	var older time.Duration
	var prompt *terminal.Prompt
	cmd := hsmCommand("prune --conf DIR [--older-than TIME] [--confirm DIGEST]",
		"Destroy orphans on the token, for ever",
		`prune destroys the keys that hsm list shows as orphans, and that have been orphans for a time. It lists
them first, and destroys them only where you confirm the list: at a terminal by typing how many they are, otherwise
by --confirm with the list's digest, which prune prints.

An orphan is a key that this metastore once numbered and that nothing refers to any more, on a token that is bound
to this metastore alone. prune never destroys keys that the metastore does not know, that the journal names, that
belong to an interrupted step, or that were deleted and can come back. It refuses while a server uses the metastore.

Exit status 3: there is something to destroy, and it is not confirmed; or the token and the metastore do not fit
together.`,
		hsm.Destroy,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) (err error) {
			if err := misfit(ctx, p); err != nil {
				return fmt.Errorf("nothing was destroyed: %w", err)
			}
			found, err := p.Prunable(ctx, older)
			if err != nil {
				return err
			}
			sortObjects(found.Orphans)
			report := pruned{Prunable: found}
			if n := len(found.Orphans); n > 0 {
				if !out.JSON() {
					// What is to be confirmed must be seen.
					if err := out.Write(nil, func(w io.Writer) { objectTable(w, found.Orphans) }); err != nil {
						return err
					}
				}
				if err = prompt.ConfirmList(confirm, found.Digest, n, "destroy these keys for ever"); err == nil {
					report.Destroyed, err = p.Prune(ctx, found.Orphans)
				}
			}
			return errors.Join(err, out.Write(report, func(w io.Writer) {
				for _, o := range report.Destroyed {
					fmt.Fprintf(w, "destroyed\t%s\t%s\n", o.ID, claviger.Printable(o.Label))
				}
				fmt.Fprintf(w,
					"%d of %d orphans destroyed; spared: %d younger than %v, %d that this metastore does not know\n",
					len(report.Destroyed), len(found.Orphans)+len(found.Young), len(found.Young),
					older, len(found.Unknown))
			}))
		})
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if older < 0 {
			return &exitError{exitUsage, fmt.Errorf("--older-than %v: it must not be negative", older)}
		}
		prompt = terminal.NewPrompt(cmd)
		return run(cmd, args)
	}
	f := cmd.Flags()
	f.StringVar(&confirm, "confirm", "", "digest of the list that is to be destroyed")
	f.DurationVar(&older, "older-than", 7*24*time.Hour, "spare what has been an orphan for less than this")
	f.Bool("yes", false, "no longer enough: see --confirm")
	_ = f.MarkDeprecated("yes", "it does not say which keys; --confirm does") // the flag is defined above
	return cmd
}
