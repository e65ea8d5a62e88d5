package main

import "github.com/spf13/cobra"

func newMetastoreCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "metastore", Short: "Look after the store of key metadata", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newMetastoreBackup(), newMetastoreVerify(), newMetastoreRestore(), newMetastoreAccept(), newMetastoreCopy(),
		newMetastoreClock())
	return cmd
}
