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
	"claviger/terminal"
)

func newMetastoreBackup() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "backup --conf DIR --out FILE",
		Short: "Write a copy of the SQLite store, while servers go on",
		Long: `backup writes the SQLite store that DIR configures, as it is at one moment, into FILE, which is never overwritten: whole, checked and of mode 0600,
or not at all. Where root runs it, FILE is given to the owner of the store. A server may run. FILE holds no key material, no delegation token and none of the keys that sign them. The HSM's own backup
belongs to it: FILE is of no use without the keys that it names.`,
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
				fmt.Fprintf(w, "NOTE  this metastore was moved to %s at %s: back that one up\n", m.To,
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
		Short: "Put a backup in the place of the SQLite store",
		Long: `restore puts a FILE that metastore backup has written in the place of the SQLite store that DIR configures. It checks FILE first, and compares it with the
store that is there and with the token: versions of keys that either has and FILE does not know would be lost, and are listed as LOST. Keys that were
deleted since FILE was written would come back, and are listed as REVIVED; keys that were brought back since are listed as DELETED, and keys
whose attributes or description are others now as CHANGED. Where another copy of the store has used the token since, that is a NOTE, and the restored store
takes the token up. A store that metastore copy has moved to another place is listed as MOVED: restore that one, unless it is lost. Steps that were pending when FILE was written are ended: what they made on the token may
have been used since, and is LOST until it is adopted. Where anything is listed nothing is written unless --lose-keys says so. It refuses while a server has the store. The store that was there is kept beside it.

Exit status: 0 restored, 1 FILE or the store cannot be used, 3 keys would be lost, or changes undone.`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.LoseKeys, "lose-keys", false,
		"restore although the keys that are listed are lost by it, or come back")
	flags.BoolVar(&o.NoToken, "no-token", false, "do not ask the token which keys it has")
	flags.BoolVar(&o.PlainCopy, "plain-copy", false,
		"FILE is a copy made by other means while no server had it, or its -wal is beside it")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, args []string, out *terminal.Output,
		log *slog.Logger) error {
		r, err := recovery.Restore(ctx, conf, args[0], o, log)
		if r == nil {
			return err
		}
		return withReport(out.Write(r, func(w io.Writer) { restoredText(w, r, args[0], conf.Dir()) }), err)
	})
}

// withReport returns the error of the work, and that of writing its report, if any.
func withReport(written, err error) error {
	if written == nil {
		return err
	}
	return errors.Join(err, written)
}

// restoredText writes for people what restoring a file found and did.
func restoredText(w io.Writer, r *recovery.Restored, file, dir string) {
	if r.Incomparable != "" {
		fmt.Fprintf(w, "the store that is there cannot be compared, so a key that was deleted "+
			"since the backup was written comes back unnoticed: %s\n", r.Incomparable)
	}
	if r.TakenFrom != "" {
		fmt.Fprintf(w, "NOTE  the token was used last by the metastore at %s; once a server has "+
			"started on the restored one, that one makes no key any more: stop what uses it\n", r.TakenFrom)
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
		fmt.Fprintf(w, "kept the store that was there: %s\n", r.Kept)
	}
	f := r.Facts
	if f.Schema < sqlite.SchemaVersion {
		fmt.Fprintf(w, "the copy was of schema version %d and is of %d now: the older claviger "+
			"that wrote it cannot use it any more\n", f.Schema, sqlite.SchemaVersion)
	}
	made := "an unknown time"
	if !f.Made.IsZero() {
		made = f.Made.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "restored %s from %s: %d keys with %d versions, %d deleted keys, as of %s\n"+
		"next: claviger metastore verify --conf %s\n", r.Store, file, f.Keys, f.Versions, f.Deleted, made, dir)
	if r.MustAccept {
		fmt.Fprintf(w, "The token was not asked, and the store that was there could not be "+
			"read: where the token was used since the copy was written, this metastore changes no key "+
			"before you say that it goes on: claviger metastore accept --conf %s --yes\n", dir)
	}
}
