package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/provider/builtin"
)

func newMetastoreClock() *cobra.Command {
	var dir string
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
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return endFuture(cmd.Context(), cmd.OutOrStdout(), dir, right)
		},
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	cmd.Flags().BoolVar(&right, "right", false, "this host's clock is right: set the times to come to now")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// endFuture says whether the SQLite store has times to come; where the clock is right it
// sets them to now.
func endFuture(ctx context.Context, out io.Writer, dir string, right bool) (err error) {
	conf, log, err := quietConf(dir)
	if err != nil {
		return err
	}
	place, err := location.Of(conf)
	if err != nil {
		return err
	}
	if place.File == "" {
		return place.Wrap(fmt.Errorf("%s is in PostgreSQL, which has a clock of its own", place.URI))
	}
	open := location.OpenReadOnly
	if right {
		if err := owner.RefuseRoot(builtin.Files(conf)...); err != nil {
			return err
		}
		open = location.OpenExisting
	}
	store, err := open(ctx, conf, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if right {
		self := owner.Self("claviger metastore clock", conf.Dir())
		if _, err := store.Claim(ctx, self, true); err != nil {
			return inUse(err, self, "")
		}
	}
	clocks, err := store.Clocks(ctx)
	if err != nil {
		return err
	}
	file, ok := store.(*sqlite.Store)
	var apart *metastore.ClocksApartError
	switch errors.As(clocks.Apart(), &apart); {
	case right && ok:
		n, err := file.EndFuture(ctx)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%d times that had not come yet are now %s\n", n, time.Now().UTC().Format(time.RFC3339))
		return err
	case apart != nil:
		_, err = fmt.Fprintln(out, apart)
		return errors.Join(err, &exitError{exitRefused, nil})
	}
	_, err = fmt.Fprintln(out, "The clock of this host is not behind the newest time in the metastore.")
	return err
}
