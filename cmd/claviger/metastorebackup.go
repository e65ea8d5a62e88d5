package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/metastore/sqlite"
	"claviger/recovery"
	"claviger/shellword"
	"claviger/terminal"
)

func newMetastoreBackup() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "backup --conf DIR --out FILE",
		Short: "Write a copy of the SQLite store, while servers run",
	}
	cmd.Flags().StringVar(&file, "out", "", "file to write")
	_ = cmd.MarkFlagRequired("out") // the flag is defined above
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, _ []string, out *terminal.Output,
		_ *slog.Logger) error {
		b, err := recovery.Backup(ctx, conf, file)
		if err != nil {
			return err
		}
		return out.Write(b, func(w io.Writer) {
			if m := b.Moved; m != nil {
				fmt.Fprintf(w, "NOTE  this metastore was moved to %s at %s: make a backup of the new metastore\n", m.To,
					m.At.Format(time.RFC3339))
			}
			fmt.Fprintf(w, "wrote %s: %d keys with %d versions, %d deleted keys, of token %q "+
				"(serial %s), schema version %d\n",
				b.Path, b.Keys, b.Versions, b.Deleted, b.TokenLabel, b.TokenSerial, b.Schema)
		})
	})
}

func newMetastoreRestore() *cobra.Command {
	var o recovery.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore --conf DIR FILE",
		Short: "Replace the SQLite store by a backup",
		Args:  cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.LoseKeys, "lose-keys", false,
		"restore, although listed keys are lost or exist again")
	flags.BoolVar(&o.NoToken, "no-token", false, "do not compare with the token")
	flags.BoolVar(&o.PlainCopy, "plain-copy", false,
		"FILE is a plain copy of a store: no server used it then, or its -wal file is beside it")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, args []string, out *terminal.Output,
		log *slog.Logger) error {
		r, err := recovery.Restore(ctx, conf, args[0], o, log)
		if r == nil {
			return err
		}
		return withReport(out.Write(r, func(w io.Writer) { restoredText(w, r, args[0], conf.Dir()) }), err)
	})
}

// withReport joins the error of some work with the error of writing its report.
func withReport(written, err error) error {
	if written == nil {
		return err
	}
	return errors.Join(err, written)
}

// restoredText writes the report of a restoration as text.
func restoredText(w io.Writer, r *recovery.Restored, file, dir string) {
	if r.Incomparable != "" {
		fmt.Fprintf(w, "the existing store cannot be compared, so a key that was deleted after the "+
			"backup can exist again without notice: %s\n", r.Incomparable)
	}
	if r.TakenFrom != "" {
		fmt.Fprintf(w, "NOTE  the metastore at %s has used the token last; when a server has started on "+
			"the restored metastore, the other metastore makes no more keys: stop its servers\n", r.TakenFrom)
	}
	for _, line := range r.Undone {
		fmt.Fprintln(w, line)
	}
	for _, name := range r.Lost {
		fmt.Fprintf(w, "LOST  %s\n", name)
	}
	if !r.Done {
		return
	}
	if r.Kept != "" {
		fmt.Fprintf(w, "kept the old store: %s\n", r.Kept)
	}
	f := r.Facts
	if f.Schema < sqlite.SchemaVersion {
		fmt.Fprintf(w, "the schema version was %d and is %d now: the older claviger "+
			"that wrote the backup cannot use it any more\n", f.Schema, sqlite.SchemaVersion)
	}
	made := "an unknown time"
	if !f.Made.IsZero() {
		made = f.Made.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "restored %s from %s: %d keys with %d versions, %d deleted keys, as of %s\n"+
		"next: claviger metastore verify --conf %s\n", r.Store, file, f.Keys, f.Versions, f.Deleted, made,
		shellword.Quote(dir))
	if r.MustAccept {
		fmt.Fprintf(w, "The token was not compared, and the old store could not be read. If the token was used "+
			"after the backup, this metastore changes no key before you run: "+
			"claviger metastore accept --conf %s --yes\n", shellword.Quote(dir))
	}
}
