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
