package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
)

func newMetastoreCopy() *cobra.Command {
	var dir, to string
	cmd := &cobra.Command{
		Use:   "copy --conf DIR --to URI",
		Short: "Move the store to another place, in SQLite or PostgreSQL",
		Long: `copy writes all that the metastore of DIR holds into the one that URI names, which is empty, in one transaction: keys, versions, check values, numbers,
steps that were begun, deleted keys, uses, journals of migrations, delegation tokens, the changes that nodes have seen, and the id by which the
token knows its metastore. It reads the copy again, compares the two, and marks the old one as moved: no server starts on it any more. It refuses while a server has either of them.
Run again it finishes what was broken off, or says that nothing is to be done. Name the new one by ` + hadoopconf.MetastoreURI + ` then.

Exit status: 0 moved, 1 one of the two cannot be used, 3 nothing was done, and the message says why.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, log, err := quietConf(dir)
			if err != nil {
				return err
			}
			return copyStore(cmd.Context(), cmd.OutOrStdout(), conf, to, log)
		},
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	cmd.Flags().StringVar(&to, "to", "", "where the metastore goes: postgresql://USER@HOST:PORT/DATABASE, "+
		"with ?passfile=FILE for a password; or sqlite:// and an absolute path")
	for _, name := range []string{"conf", "to"} {
		_ = cmd.MarkFlagRequired(name) // the flags are defined above
	}
	return cmd
}

// movable is a store that copy takes.
type movable interface {
	metastore.Store
	metastore.Movable
}

// openMovable opens a store for copy, which has it alone.
func openMovable(ctx context.Context, p location.Location, property string, self owner.Owner, log *slog.Logger) (movable, error) {
	var st movable
	if p.File != "" {
		file, err := sqlite.Open(ctx, p.File)
		if err != nil {
			return nil, err
		}
		file.LogTo(log)
		st = file
	} else {
		db, err := postgres.Open(ctx, postgres.Config{URI: p.URI, Property: property, Log: log})
		if err != nil {
			return nil, err
		}
		st = db
	}
	if _, err := st.Claim(ctx, self, true); err != nil {
		return nil, errors.Join(inUse(err, self, ""), st.Close())
	}
	return st, nil
}

func copyStore(ctx context.Context, out io.Writer, conf *hadoopconf.Conf, uri string, log *slog.Logger) (err error) {
	from, err := location.Of(conf)
	if err != nil {
		return err
	}
	if from.Missing() {
		return from.Wrap(fmt.Errorf("%w at %s", location.ErrNone, from.File))
	}
	to, err := location.Parse(uri)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--to %w", err)}
	}
	files := builtin.Files(conf)
	if to.File != "" {
		files = append(files, to.File)
	}
	if err := owner.RefuseRoot(files...); err != nil {
		return err
	}
	self := owner.Self("claviger metastore copy", conf.Dir())
	a, err := openMovable(ctx, from, hadoopconf.MetastoreURI, self, log)
	if err != nil {
		return from.Wrap(err)
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := openMovable(ctx, to, "--to", self, log)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return moveStore(ctx, out, conf.Dir(), a, b)
}

// moveStore copies a store into another, compares them, and marks the first as moved.
func moveStore(ctx context.Context, out io.Writer, dir string, from, to movable) error {
	refused := func(format string, args ...any) error {
		return &exitError{exitRefused, fmt.Errorf(format+"; nothing was done", args...)}
	}
	was, err := metastore.MovedTo(ctx, from)
	if err != nil {
		return err
	}
	if was != nil && was.To != to.URI() {
		return refused("metastore %s was moved to %s at %s: copy that one, or name it by %s. Where it is lost, with its backups, see docs/nodes.md, From SQLite to PostgreSQL, and back", from.URI(), was.To, was.At.Format(time.RFC3339), hadoopconf.MetastoreURI)
	}
	if gone, err := metastore.MovedTo(ctx, to); err != nil || gone != nil {
		if err != nil {
			return err
		}
		return refused("metastore %s was itself moved to %s: name an empty one", to.URI(), gone.To)
	}
	c, err := from.Content(ctx)
	if err != nil {
		return err
	}
	has, err := to.Content(ctx)
	if err != nil {
		return err
	}
	switch {
	case has.Empty() && was != nil:
		return refused("metastore %s was moved to %s at %s, which is empty now: restore that one from its backup", from.URI(), was.To, was.At.Format(time.RFC3339))
	case c.Empty():
		return refused("metastore %s holds nothing: name the new one by %s at once", from.URI(), hadoopconf.MetastoreURI)
	case has.Empty():
		if err := to.Fill(ctx, c); err != nil {
			return fmt.Errorf("the copy was not made: %w", err)
		}
		if has, err = to.Content(ctx); err != nil {
			return fmt.Errorf("the copy cannot be read again: %w; say the same once more", err)
		}
		if differ := c.Differ(has); differ != nil {
			return fmt.Errorf("the copy %s differs from %s in %s, and is not used; make it empty, and say the same once more", to.URI(), from.URI(), strings.Join(differ, ", "))
		}
	case was != nil && settingOf(has, hsm.SettingID) == settingOf(c, hsm.SettingID):
		_, err := fmt.Fprintf(out, "%s was moved to %s at %s already; nothing to do\n", from.URI(), was.To, was.At.Format(time.RFC3339))
		return err
	case c.Differ(has) != nil:
		what := "another metastore"
		if id := settingOf(c, hsm.SettingID); id != "" && id == settingOf(has, hsm.SettingID) {
			what = "a copy of this one that differs from it in " + strings.Join(c.Differ(has), ", ")
		}
		return refused("metastore %s is not empty: it holds %s; make it empty, or name another", to.URI(), what)
	}
	// What was broken off before this is finished by the next run.
	if err := metastore.SetMoved(ctx, from, to.URI()); err != nil {
		return fmt.Errorf("the copy is made, and %s could not be marked as moved: %w; say the same once more", from.URI(), err)
	}
	n := func(table string) int { return len(c.Rows[table]) }
	_, err = fmt.Fprintf(out, "moved %s to %s: %d keys with %d versions, %d deleted keys, %d pending steps, %d records of migrations, %d delegation tokens\n"+
		"next: set %s to the new one in kms-site.xml, then claviger metastore verify --conf %s\n",
		from.URI(), to.URI(), n("ez_key"), n("key_version"), n("deleted_key"), n("intent"), n("journal"), n("delegation"), hadoopconf.MetastoreURI, dir)
	return err
}

// settingOf is a setting of a content, "" where it has none.
func settingOf(c *metastore.Content, name string) string {
	for _, row := range c.Rows["setting"] {
		if value, ok := row[1].(string); ok && row[0] == name {
			return value
		}
	}
	return ""
}
