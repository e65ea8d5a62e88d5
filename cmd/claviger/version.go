package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"claviger/buildinfo"
)

func newVersionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which claviger this is: version, commit, date",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd.OutOrStdout(), format)
			if err != nil {
				return err
			}
			b := buildinfo.Read()
			return out.write(b, func(w io.Writer) { fmt.Fprintln(w, b) })
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	return cmd
}
