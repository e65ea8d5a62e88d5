package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/provider/hsm"
	"claviger/recovery"
	"claviger/terminal"
)

func newMetastoreAccept() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "accept --conf DIR [--yes]",
		Short: "Accept that PostgreSQL has lost changes, or that another copy has used the token",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "give up the lost changes, and use the token again")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, _ []string, out *terminal.Output,
		log *slog.Logger) error {
		l, err := recovery.Accept(ctx, conf, yes, log)
		if l == nil {
			return err
		}
		return withReport(out.Write(l, func(w io.Writer) { lossesText(w, l, yes && err == nil) }), err)
	})
}

// lossesText writes what is lost as text. done means that all of it was given up.
func lossesText(w io.Writer, l *recovery.Losses, done bool) {
	if l.Tracked && len(l.Lost) == 0 {
		fmt.Fprintf(w, "%s lacks no change that a node has recorded.\n", l.Store)
	}
	if !l.Tracked && !l.Found() && l.TokenUnknown == "" {
		fmt.Fprintf(w, "There is nothing to accept for %s. Only a metastore in PostgreSQL can lack changes that its "+
			"nodes have seen.\n", l.Store)
	}
	if len(l.Lost) > 0 {
		lostChanges(w, l)
	}
	if l.TokenUnknown != "" {
		fmt.Fprintf(w, "It is not known whether another copy of the metastore has used the token: %s\n",
			l.TokenUnknown)
	}
	if l.Stale != "" {
		fmt.Fprintln(w, l.Stale)
	}
	if l.TakenFrom != "" {
		fmt.Fprintf(w, "The metastore at %s used the token last; this metastore uses it now.\n", l.TakenFrom)
		if !l.Written {
			fmt.Fprintln(w, "The token was not changed, since it has lost its object or keys. The next start of a "+
				"server on this metastore changes it, when no key is missing.")
		}
	}
	if done && l.Found() {
		fmt.Fprintf(w, "Now recover the keys of the HSM: claviger hsm adopt. Running nodes change "+
			"keys again within %d seconds.\n", int(hsm.DecidedWithin.Seconds()))
	}
}

// lostChanges writes the changes that the store lacks as a table.
func lostChanges(w io.Writer, l *recovery.Losses) {
	fmt.Fprintln(w, "KEY\tCHANGED\tCHANGE\tNOW")
	for _, c := range l.Lost {
		at, change := c.At, cmp.Or(c.Change, "not known")
		if at == "" {
			at, change = "-", "no node has recorded one"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", claviger.Printable(c.Key), at, change, cmp.Or(c.Now, "as above"))
	}
	if l.NotCompared != "" {
		fmt.Fprintf(w, "The token's keys are not shown: %s.\n", l.NotCompared)
	}
	if l.GivenUp {
		fmt.Fprintln(w, "Given up.")
	} else {
		fmt.Fprintln(w, "These are the newest lost changes. There may be older ones.")
	}
}
