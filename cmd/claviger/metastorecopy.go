package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/metastore/location"
	"claviger/recovery"
	"claviger/shellword"
	"claviger/terminal"
)

func newMetastoreCopy() *cobra.Command {
	var uri string
	cmd := &cobra.Command{
		Use:   "copy --conf DIR --to URI",
		Short: "Move the store to another place, in SQLite or PostgreSQL",
	}
	cmd.Flags().StringVar(&uri, "to", "",
		"new place: postgresql://USER@HOST:PORT/DATABASE, with ?passfile=FILE for a password; or sqlite:// and an "+
			"absolute path")
	_ = cmd.MarkFlagRequired("to") // the flag is defined above
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, _ []string, out *terminal.Output,
		log *slog.Logger) error {
		to, err := location.Parse(uri)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--to %w", err)}
		}
		c, err := recovery.Copy(ctx, conf, to, log)
		if err != nil {
			return err
		}
		return out.Write(c, func(w io.Writer) { copiedText(w, c, conf.Dir()) })
	})
}

// copiedText writes the report of a copy as text.
func copiedText(w io.Writer, c recovery.Copied, dir string) {
	if b := c.Before; b != nil {
		fmt.Fprintf(w, "%s was moved to %s at %s already; nothing to do\n", c.From, b.To, b.At.Format(time.RFC3339))
		return
	}
	fmt.Fprintf(w, "moved %s to %s: %d keys with %d versions, %d deleted keys, %d pending "+
		"steps, %d records of migrations, %d delegation tokens\nnext: set %s to the new metastore in kms-site.xml, "+
		"then claviger metastore verify --conf %s\n",
		c.From, c.To, c.Keys, c.Versions, c.Deleted, c.Pending, c.Journal, c.Tokens, hadoopconf.MetastoreURI,
		shellword.Quote(dir))
}
