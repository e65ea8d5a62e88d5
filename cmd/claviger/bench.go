package main

import (
	"github.com/spf13/cobra"

	"claviger/bench"
)

func newBenchCommand() *cobra.Command {
	var o bench.Options
	kms := &cobra.Command{Use: bench.Use, Short: bench.Short, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, urls []string) (err error) {
			if o.Client, err = clientOptions(o.Conf, urls...); err != nil {
				return err
			}
			return bench.Run(cmd.Context(), &o, urls, cmd.ErrOrStderr())
		}}
	o.Define(kms)
	cmd := &cobra.Command{Use: "bench", Short: "Measure a running KMS", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(kms)
	return cmd
}
