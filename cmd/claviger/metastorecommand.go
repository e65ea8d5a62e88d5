package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/terminal"
)

func newMetastoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "metastore",
		Short: "Check, back up, restore and move the store of key metadata",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMetastoreBackup(), newMetastoreVerify(), newMetastoreRestore(), newMetastoreAccept(),
		newMetastoreCopy(), newMetastoreClock())
	return cmd
}

// metastoreWork is the work of a subcommand on the metastore of a configuration folder.
type metastoreWork func(ctx context.Context, conf *hadoopconf.Conf, args []string, out *terminal.Output,
	log *slog.Logger) error

// metastoreCommand gives a subcommand its flags --conf and -o, and its work.
func metastoreCommand(cmd *cobra.Command, work metastoreWork) *cobra.Command {
	var dir string
	var out terminal.Output
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		conf, log, err := quietConf(dir)
		if err != nil {
			return err
		}
		return work(cmd.Context(), conf, args, &out, log)
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// quietConf loads a configuration, and returns a logger that writes warnings only.
func quietConf(dir string) (*hadoopconf.Conf, *slog.Logger, error) {
	log, err := newLogger("warn")
	if err != nil {
		return nil, nil, err
	}
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	return conf, log, err
}
