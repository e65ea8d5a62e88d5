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
		Long: `verify reads the metastore that DIR configures, or a FILE that metastore backup has written: whether it is whole, its schema, the token that it
belongs to, and how much it holds. It asks the token which keys it has, and names those that one side lacks. It changes nothing, and a server
may run.

Exit status: 0 store and token fit, 1 the store cannot be used, 3 one of them lacks keys of the other, or the store was moved.`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&noToken, "no-token", false, "do not ask the token")
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
			t.Unread = t.Hidden.Error() + asWhom(t.Hidden)
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

// storeText writes a report for people.
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
		row("token", "not asked")
		return
	}
	row("token", "%q, serial %s: lacks %d versions of the store, and holds %d keys that the store does not know",
		t.Label, t.Serial, len(t.Missing), len(t.Unknown))
	tokenText(row, t)
}

// rowsOf returns a function that writes a name and its value.
func rowsOf(w io.Writer) func(name, format string, args ...any) {
	return func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
}

// tokenText writes how a token differs from the store.
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
			row("MISSING", "%s is not shown: it may be in a file that this user may not read", claviger.Printable(name))
			continue
		}
		row("MISSING", "%s is not on the token: restore the token, or look whether this store is of another",
			claviger.Printable(name))
	}
	for _, name := range t.GivenUp {
		row("GIVEN UP", "%s is not on the token, and was given up: where it is its key's newest version roll the "+
			"key; delete the key only where it has no other", claviger.Printable(name))
	}
	for _, name := range t.Unknown {
		row("UNKNOWN", "%s is on the token: this store is older than it, or of another; restore a "+
			"newer store, or adopt it: %s %s", claviger.Printable(name), t.Adopt, claviger.Printable(name))
	}
}
