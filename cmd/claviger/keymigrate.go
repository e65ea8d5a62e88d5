package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// migratedKey is a key in the report of key migrate.
type migratedKey struct {
	Key      string   `json:"key"`
	Versions []string `json:"versions"`
}

func newKeyMigrate() *cobra.Command {
	return keyCommand("migrate NAME... --provider URI",
		"Make a running claviger take over keys from the source of its migration", cobra.MinimumNArgs(1),
		func(ctx context.Context, _ *cobra.Command, kms *kmsclient.Provider, out *terminal.Output,
			args []string) error {
			done := []migratedKey{}
			var failed error
			for _, name := range args {
				versions, err := kms.Migrate(ctx, name)
				if err != nil {
					failed = err
					break
				}
				done = append(done, migratedKey{name, versions})
			}
			if err := out.Write(done, func(w io.Writer) {
				for _, k := range done {
					fmt.Fprintf(w, "key %s: %s\n", claviger.Printable(k.Key),
						claviger.Printable(strings.Join(k.Versions, " ")))
				}
			}); err != nil {
				return err
			}
			return failed
		})
}
