package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"claviger/buildinfo"
	"claviger/terminal"
)

func newVersionCommand() *cobra.Command {
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show version, commit and date of this claviger",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := buildinfo.Read()
			return out.Write(b, func(w io.Writer) { fmt.Fprintln(w, b) })
		},
	}
	out.Flag(cmd)
	return cmd
}
