package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"claviger"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// confirmation is how a person confirms a list that a command has shown: with its
// digest, which another list does not have, or at a terminal by its length.
type confirmation struct {
	digest string // --confirm
	in     io.Reader
	asks   io.Writer
	tty    bool
}

// newConfirmation asks at the terminal that the command has, if it has one.
func newConfirmation(cmd *cobra.Command, digest string) confirmation {
	return confirmation{digest: digest, in: cmd.InOrStdin(), asks: cmd.ErrOrStderr(), tty: cmd.InOrStdin() == io.Reader(os.Stdin) && term.IsTerminal(int(os.Stdin.Fd()))}
}

// of returns nil where the list of n entries with that digest is confirmed. what says
// what is done to them.
func (c confirmation) of(n int, digest, what string) error {
	switch {
	case c.digest == digest:
		return nil
	case c.digest != "":
		return &exitError{exitRefused, fmt.Errorf("--confirm %s is of another list: this one has the digest %s; nothing was done", c.digest, digest)}
	case !c.tty:
		return &exitError{exitRefused, fmt.Errorf("nothing was done; to %s, say --confirm %s", what, digest)}
	}
	fmt.Fprintf(c.asks, "To %s, type how many they are (%d): ", what, n)
	line, err := bufio.NewReader(c.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != fmt.Sprint(n) {
		return &exitError{exitRefused, errors.New("not confirmed; nothing was done")}
	}
	return nil
}

// pruned is what `hsm prune` reports.
type pruned struct {
	hsm.Prunable
	Destroyed []hsm.Object `json:"destroyed"`
}

func newHSMPrune() *cobra.Command {
	var confirm string
	var older time.Duration
	var confirmed confirmation
	cmd := hsmCommand("prune --conf DIR [--older-than TIME] [--confirm DIGEST]", "Destroy orphans on the token, for ever",
		`prune destroys the keys that hsm list shows as orphans, and that have been so for a time. It lists them first, and destroys them only where
the list is confirmed: at a terminal by typing how many they are, otherwise by --confirm with the list's digest, which prune prints.

An orphan is a key that this metastore once numbered and that nothing refers to any more, on a token that is bound to this metastore alone.
What the metastore does not know, what the journal names, and what was begun or deleted is never destroyed. prune refuses while a server uses
the metastore. Exit status 3: there is something to destroy, and it is not confirmed; or the token and the metastore do not fit together.`,
		hsm.Destroy,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) (err error) {
			if err := misfit(ctx, p); err != nil {
				return fmt.Errorf("nothing was destroyed: %w", err)
			}
			found, err := p.Prunable(ctx, older)
			if err != nil {
				return err
			}
			report := pruned{Prunable: found, Destroyed: []hsm.Object{}}
			if n := len(found.Orphans); n > 0 {
				if !out.JSON() {
					// What is to be confirmed must be seen.
					if err := out.Write(nil, func(w io.Writer) { objectTable(w, found.Orphans) }); err != nil {
						return err
					}
				}
				if err = confirmed.of(n, found.Digest, "destroy these keys for ever"); err == nil {
					report.Destroyed, err = p.Prune(ctx, found.Orphans)
				}
			}
			return errors.Join(err, out.Write(report, func(w io.Writer) {
				for _, o := range report.Destroyed {
					fmt.Fprintf(w, "destroyed\t%s\t%s\n", o.ID, claviger.Printable(o.Label))
				}
				fmt.Fprintf(w, "%d of %d orphans destroyed; spared: %d younger than %v, %d that this metastore does not know\n",
					len(report.Destroyed), len(found.Orphans)+len(found.Young), len(found.Young), older, len(found.Unknown))
			}))
		})
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if older < 0 {
			return &exitError{exitUsage, fmt.Errorf("--older-than %v: it must not be negative", older)}
		}
		confirmed = newConfirmation(cmd, confirm)
		return run(cmd, args)
	}
	f := cmd.Flags()
	f.StringVar(&confirm, "confirm", "", "digest of the list that is to be destroyed")
	f.DurationVar(&older, "older-than", 7*24*time.Hour, "spare what has been an orphan for less than this")
	f.Bool("yes", false, "no longer enough: see --confirm")
	_ = f.MarkDeprecated("yes", "it does not say which keys; --confirm does") // the flag is defined above
	return cmd
}
