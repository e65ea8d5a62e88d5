package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore/postgres"
	"claviger/provider/hsm"
)

// acceptor is a store that may lack what was acknowledged.
type acceptor interface {
	Lost(ctx context.Context) ([]postgres.LostChange, error)
	Accept(ctx context.Context) error
	URI() string
}

func newMetastoreAccept() *cobra.Command {
	var dir string
	var yes bool
	cmd := &cobra.Command{
		Use:   "accept --conf DIR [--yes]",
		Short: "Give up acknowledged changes that PostgreSQL has lost",
		Long: `accept lists the changes of keys that nodes have seen and that the metastore lacks, since its server was replaced by a standby that was behind, or by an older copy.
With --yes it gives them up: every node changes keys again within some seconds. Nodes may serve meanwhile. Rebuild what the HSM still holds then: claviger hsm adopt.
Exit codes: 0 nothing is missing, or it was given up; 1 failed; 3 something is missing and --yes was not given.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return acceptLosses(cmd.Context(), cmd.OutOrStdout(), dir, yes)
		},
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	cmd.Flags().BoolVar(&yes, "yes", false, "give up what is missing")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

func acceptLosses(ctx context.Context, out io.Writer, dir string, yes bool) (err error) {
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return err
	}
	open := readStore
	if yes {
		open = storeThatIsThere
	}
	store, err := open(ctx, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	s, ok := store.(acceptor)
	if !ok {
		return fmt.Errorf("the metastore %s is not shared by nodes that could know of lost changes", store.URI())
	}
	lost, err := s.Lost(ctx)
	if err != nil {
		return err
	}
	if len(lost) == 0 {
		_, err := fmt.Fprintf(out, "No node has told of a change that %s lacks.\n", s.URI())
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KEY\tCHANGED") // Flush tells of errors
	for _, l := range lost {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", claviger.Printable(l.Key), l.At.Format(time.RFC3339))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !yes {
		_, err := fmt.Fprintln(out, "These are the newest of the changes that are missing; there may be others. Repeat this with --yes, and then adopt what the HSM holds: claviger hsm adopt.")
		return errors.Join(err, &exitError{exitRefused, nil})
	}
	// What was lost may be the ends of steps.
	if err := hsm.EndSteps(ctx, store); err != nil {
		return err
	}
	if err := s.Accept(ctx); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "Given up. Adopt what the HSM holds now (claviger hsm adopt). Nodes that run change keys again within some seconds.")
	return err
}
