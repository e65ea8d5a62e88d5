package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"claviger/demo"
	"claviger/internal/softhsm"
	"claviger/provider/kmsclient"
)

func newDemoCommand() *cobra.Command {
	var dir string
	var edeks int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the whole migration on this machine, with SoftHSM",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if edeks < 4 || edeks > 100_000 {
				return &exitError{exitUsage, fmt.Errorf("--edeks %d: it must be a number from 4 to 100000", edeks)}
			}
			return playDemo(cmd, dir, edeks)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "",
		"empty folder in which to keep the demo's files (default: a temporary folder, which is deleted)")
	cmd.Flags().IntVar(&edeks, "edeks", 400, "number of EDEKs of each zone at the source")
	return cmd
}

// playDemo runs the demo in dir, or in a temporary folder if dir is "".
func playDemo(cmd *cobra.Command, dir string, edeks int) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "claviger-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // files left in the temporary folder do no damage
	} else if list, err := os.ReadDir(dir); err != nil {
		return &exitError{exitUsage, fmt.Errorf("--dir: %w", err)}
	} else if len(list) > 0 {
		return &exitError{exitUsage, fmt.Errorf("--dir %s: it must be an empty folder (it holds %d entries)",
			dir, len(list))}
	}
	return demo.Run(cmd.Context(), demo.Options{
		Exe: exe, Dir: dir, Out: cmd.OutOrStdout(), EDEKs: edeks,
		NewToken: func(dir, label string) (demo.Token, error) {
			t, err := softhsm.Create(dir, label)
			return demo.Token{Module: t.Module, Label: t.Label, PINFile: t.PINFile, Env: t.Env}, err
		},
		Connect: func(_ context.Context, uri, user string) (demo.KMS, error) {
			return kmsclient.New(uri, kmsclient.Options{User: user, Log: slog.New(slog.DiscardHandler)})
		},
	})
}
