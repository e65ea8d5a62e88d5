package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/recovery"
	"claviger/terminal"
)

func newMetastoreClock() *cobra.Command {
	var right bool
	cmd := &cobra.Command{
		Use:   "clock --conf DIR [--right]",
		Short: "Say whether the SQLite store has times that have not come yet, and set them to now",
		Long: `clock compares this host's clock with the newest time that a server has written into the SQLite store that DIR configures.
Where the clock is behind that time by more than a minute, no key is purged: the clock is wrong, or was ahead once. Set it if it is wrong.
--right says that it is right. Then each time in the store that has not come yet is set to now: last uses, deletions, uses of
sources, and the journal's. Keys can be purged when claviger.purge.min.unused has passed from now. The times at which keys were made stay.
It refuses while a server has the store.

Exit status: 0 no time is to come, or those that were are set; 1 failed; 3 the clock is behind the newest time, and --right was not given.`,
	}
	cmd.Flags().BoolVar(&right, "right", false, "this host's clock is right: set the times to come to now")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, _ []string, out *terminal.Output,
		log *slog.Logger) error {
		t, err := recovery.Clock(ctx, conf, right, log)
		if err != nil {
			return err
		}
		err = out.Write(t, func(w io.Writer) {
			switch {
			case right:
				fmt.Fprintf(w, "%d times that had not come yet are now %s\n", t.Set, t.Now.Format(time.RFC3339))
			case t.Apart != "":
				fmt.Fprintln(w, t.Apart)
			default:
				fmt.Fprintln(w, "The clock of this host is not behind the newest time in the metastore.")
			}
		})
		if err == nil && t.Apart != "" {
			err = &exitError{code: exitRefused}
		}
		return err
	})
}
