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
		Short: "Find times in the SQLite store that are in the future, and set them to now",
		Long: `clock compares this host's clock with the newest time that a server has written into the SQLite store
that DIR configures. If the clock is more than a minute behind that time, no key is purged: the clock is wrong, or it
was ahead once. If the clock is wrong, set it.

--right states that the clock is right. Then each time in the store that is in the future is set to now: last uses,
deletions, uses of sources, and times in the journal. Keys can be purged when claviger.purge.min.unused has passed
from now. The creation times of keys do not change. clock is refused while a server uses the store.

Exit status: 0 no time is in the future, or all such times are set; 1 an error; 3 the clock is behind the newest time,
and --right was not given.`,
	}
	cmd.Flags().BoolVar(&right, "right", false, "this host's clock is right: set times in the future to now")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, _ []string, out *terminal.Output,
		log *slog.Logger) error {
		t, err := recovery.Clock(ctx, conf, right, log)
		if err != nil {
			return err
		}
		err = out.Write(t, func(w io.Writer) {
			switch {
			case right:
				fmt.Fprintf(w, "%d times in the future are set to %s\n", t.Set, t.Now.Format(time.RFC3339))
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
