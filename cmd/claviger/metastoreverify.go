package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/recovery"
	"claviger/terminal"
)

func newMetastoreVerify() *cobra.Command {
	var noToken bool
	cmd := &cobra.Command{
		Use:   "verify --conf DIR [--no-token] [FILE]",
		Short: "Check the store, or a backup of it, and compare it with the token",
		Args:  cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&noToken, "no-token", false, "do not compare with the token")
	return metastoreCommand(cmd, func(ctx context.Context, conf *hadoopconf.Conf, args []string, out *terminal.Output,
		log *slog.Logger) error {
		file := ""
		if len(args) > 0 {
			file = args[0]
		}
		r, err := recovery.Verify(ctx, conf, file, !noToken, log)
		if err != nil {
			return err
		}
		if t := r.Token; t != nil && t.Hidden != nil {
			t.Unread = t.Hidden.Error() + processUser(t.Hidden)
		}
		if err := out.Write(r, func(w io.Writer) { storeText(w, r) }); err != nil {
			return err
		}
		if r.Moved != nil && file == "" || r.Token != nil && !r.Token.Fits() {
			return &exitError{code: exitRefused}
		}
		return nil
	})
}

// storeText writes the report of verify as text.
func storeText(w io.Writer, r *recovery.Report) {
	row := rowsOf(w)
	row("store", "%s", r.Store)
	if r.Schema > 0 {
		row("file", "whole, schema version %d", r.Schema)
	}
	if !r.Made.IsZero() {
		row("backup", "made at %s", r.Made.Format(time.RFC3339))
	}
	if r.Moved != nil {
		row("MOVED", "to %s at %s by claviger metastore copy: no server starts on this one", r.Moved.To,
			r.Moved.At.Format(time.RFC3339))
	}
	row("holds", "%d keys with %d versions, %d deleted keys, %d pending steps, %d migration runs", r.Keys, r.Versions,
		r.Deleted, r.Pending, r.Runs)
	if r.TokenSerial != "" {
		row("belongs to", "token %q, serial %s", r.TokenLabel, r.TokenSerial)
	}
	t := r.Token
	if t == nil {
		row("token", "not compared")
		return
	}
	row("token", "%q, serial %s: lacks %d versions of the store, and holds %d keys that the store does not know",
		t.Label, t.Serial, len(t.Missing), len(t.Unknown))
	tokenText(row, t)
}

// rowsOf returns a function that writes a line with a name and a value to w.
func rowsOf(w io.Writer) func(name, format string, args ...any) {
	return func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
}

// tokenText writes the differences between a token and a store.
func tokenText(row func(name, format string, args ...any), t *recovery.Token) {
	if t.Misfit != "" {
		row("MISFIT", "%s", t.Misfit)
	}
	if t.Older != "" {
		row("older", "%s", t.Older)
	}
	if t.Unread != "" {
		row("UNREADABLE", "%s", t.Unread)
	}
	for _, name := range t.Missing {
		if t.Unread != "" {
			row("MISSING", "%s is not shown: it may be in a file that this user cannot read", claviger.Printable(name))
			continue
		}
		row("MISSING", "%s is not on the token: restore the token, or check whether this store belongs to another one",
			claviger.Printable(name))
	}
	for _, name := range t.GivenUp {
		row("GIVEN UP", "%s is not on the token, and was given up: if it is the newest version of its key, roll the "+
			"key; delete the key only if it has no other version", claviger.Printable(name))
	}
	for _, name := range t.Unknown {
		row("UNKNOWN", "%s is on the token: this store is older than the token, or belongs to another token; restore "+
			"a newer store, or adopt the version: %s %s", claviger.Printable(name), t.Adopt, claviger.Printable(name))
	}
}
