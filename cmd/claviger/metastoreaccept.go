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
		Short: "Give up acknowledged changes that PostgreSQL has lost, or take a token up that another copy has used",
		Long: fmt.Sprintf(`accept lists the changes of keys that nodes have seen and that the metastore lacks, since its server was replaced by a standby that was behind, or by an older copy:
what was done to each key, and what store and token tell of the key now. A key that was deleted since is back: delete it again.
It says, too, whether another copy of the metastore has used the token since: then no server starts on this one, or
makes keys. With --yes it gives the changes up, and has the metastore take the token up: every node changes keys again
within %d seconds, and the other copy does no more. Stop the other copy first. Nodes on PostgreSQL may serve
meanwhile. Rebuild what the HSM still holds then: claviger hsm adopt.
Exit codes: 0 nothing is missing, or it was given up; 1 failed; 3 something is missing and --yes was not given.`, int(hsm.DecidedWithin.Seconds())),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "give up what is missing, and take the token up")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, _ []string, out *terminal.Output,
		log *slog.Logger) error {
		l, err := recovery.Accept(ctx, conf, yes, log)
		if l == nil {
			return err
		}
		return withReport(out.Write(l, func(w io.Writer) { lossesText(w, l, yes && err == nil) }), err)
	})
}

// lossesText writes for people what is missing, and what became of it; done: all of it was given up.
func lossesText(w io.Writer, l *recovery.Losses, done bool) {
	if l.Tracked && len(l.Lost) == 0 {
		fmt.Fprintf(w, "No node has told of a change that %s lacks.\n", l.Store)
	}
	if !l.Tracked && !l.Found() && l.TokenUnknown == "" {
		fmt.Fprintf(w, "There is nothing to accept for %s. Only a metastore in PostgreSQL can lack changes that its "+
			"nodes have seen.\n", l.Store)
	}
	if len(l.Lost) > 0 {
		lostChanges(w, l)
	}
	if l.TokenUnknown != "" {
		fmt.Fprintf(w, "Whether another copy of the metastore has used the token since is not known: %s\n",
			l.TokenUnknown)
	}
	if l.Stale != "" {
		fmt.Fprintln(w, l.Stale)
	}
	if l.TakenFrom != "" {
		fmt.Fprintf(w, "The token, which the metastore at %s used last, was taken up by this one.\n", l.TakenFrom)
		if !l.Written {
			fmt.Fprintln(w, "The token was not changed by this, since it has lost its object or "+
				"keys; a start of a server on this metastore changes it once no key is missing.")
		}
	}
	if done && l.Found() {
		fmt.Fprintf(w, "Adopt what the HSM holds now (claviger hsm adopt). Nodes that run change "+
			"keys again within %d seconds.\n", int(hsm.DecidedWithin.Seconds()))
	}
}

// lostChanges writes the changes that the store lacks as a table.
func lostChanges(w io.Writer, l *recovery.Losses) {
	fmt.Fprintln(w, "KEY\tCHANGED\tCHANGE\tNOW")
	for _, c := range l.Lost {
		at, change := c.At, cmp.Or(c.Change, "not known")
		if at == "" {
			at, change = "-", "no node remembers one"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", claviger.Printable(c.Key), at, change, cmp.Or(c.Now, "as above"))
	}
	if l.NotCompared != "" {
		fmt.Fprintf(w, "What the token tells is left out: %s.\n", l.NotCompared)
	}
	if l.GivenUp {
		fmt.Fprintln(w, "Given up.")
	} else {
		fmt.Fprintln(w, "These are the newest of the changes that are missing; there may be others.")
	}
}
