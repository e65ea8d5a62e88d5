package main

import (
	"github.com/spf13/cobra"

	"claviger/kms/edeks"
)

func newEDEKCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "edek", Short: "Count the EDEKs of an HDFS", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var options edeks.Options
	count := &cobra.Command{Use: edeks.Use, Short: edeks.Short, Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return edeks.Census(cmd.Context(), &options, args, cmd.ErrOrStderr())
		}}
	options.Define(count)
	cmd.AddCommand(count)
	return cmd
}
