package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
)

// sqlitePlace is where the configuration has an SQLite store.
func sqlitePlace(conf *hadoopconf.Conf) (location.Location, error) {
	place, err := location.Of(conf)
	if err == nil && place.File == "" {
		err = place.Wrap(fmt.Errorf("%s is in PostgreSQL, whose own tools back it up and restore it (docs/backup.md); claviger metastore verify checks what was restored", place.URI))
	}
	return place, err
}

func newMetastoreBackup() *cobra.Command {
	var dir, to string
	cmd := &cobra.Command{
		Use:   "backup --conf DIR --out FILE",
		Short: "Write a copy of the SQLite store, while servers go on",
		Long: `backup writes the SQLite store that DIR configures, as it is at one moment, into FILE, which is never overwritten: whole, checked and of mode 0600,
or not at all. Where root runs it, FILE is given to the owner of the store. A server may run. FILE holds no key material, no delegation token and none of the keys that sign them. The HSM's own backup
belongs to it: FILE is of no use without the keys that it names.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := quietConf(dir)
			if err != nil {
				return err
			}
			place, err := sqlitePlace(conf)
			if err != nil {
				return err
			}
			if place.Missing() {
				return place.Wrap(fmt.Errorf("%w at %s", location.ErrNone, place.File))
			}
			if to, err = filepath.Abs(to); err != nil {
				return err
			}
			f, err := sqlite.Backup(cmd.Context(), place.File, to)
			if err != nil {
				return err
			}
			// verify and restore are run as that user. Root is not refused: a backup is better than none.
			if err := owner.GiveFromRoot(to, place.File); err != nil {
				return err
			}
			if err := tellMoved(cmd.Context(), cmd.OutOrStdout(), place); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: %d keys with %d versions, %d deleted keys, of token %q (serial %s), schema version %d\n",
				to, f.Keys, f.Versions, f.Deleted, f.TokenLabel, f.TokenSerial, f.Schema)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	cmd.Flags().StringVar(&to, "out", "", "file to write")
	for _, name := range []string{"conf", "out"} {
		_ = cmd.MarkFlagRequired(name) // the flags are defined above
	}
	return cmd
}

// tellMoved says that a store has not been in use since it was moved.
func tellMoved(ctx context.Context, out io.Writer, place location.Location) error {
	st, err := sqlite.OpenReadOnly(ctx, place.File)
	if err != nil {
		return err
	}
	gone, err := metastore.MovedTo(ctx, st)
	if err = errors.Join(err, st.Close()); err != nil || gone == nil {
		return err
	}
	_, err = fmt.Fprintf(out, "NOTE  this metastore was moved to %s at %s: back that one up\n", gone.To, gone.At.Format(time.RFC3339))
	return err
}

// restoreFlags are those of `metastore restore`.
type restoreFlags struct {
	dir         string
	plain, lose bool
	noToken     bool
}

func newMetastoreRestore() *cobra.Command {
	var f restoreFlags
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
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, log, err := quietConf(f.dir)
			if err != nil {
				return err
			}
			return f.restore(cmd.Context(), cmd.OutOrStdout(), conf, args[0], log)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "conf", "", "configuration folder")
	flags.BoolVar(&f.lose, "lose-keys", false, "restore although the keys that are listed are lost by it, or come back")
	flags.BoolVar(&f.noToken, "no-token", false, "do not ask the token which keys it has")
	flags.BoolVar(&f.plain, "plain-copy", false, "FILE is a copy made by other means while no server had it, or its -wal is beside it")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

func (f *restoreFlags) restore(ctx context.Context, out io.Writer, conf *hadoopconf.Conf, file string, log *slog.Logger) (err error) {
	place, err := sqlitePlace(conf)
	if err != nil {
		return err
	}
	if err := owner.RefuseRoot(builtin.Files(conf)...); err != nil {
		return err
	}
	self := owner.Self("claviger metastore restore", conf.Dir())
	release, err := sqlite.Occupy(place.File, self)
	if err != nil {
		return place.Wrap(inUse(err, self, ""))
	}
	defer release()
	staged, err := sqlite.Stage(ctx, file, place.File, f.plain)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, staged.Discard()) }()
	if err := keepStoreID(ctx, place, staged.Store); err != nil {
		return err
	}
	if err := hsm.EndSteps(ctx, staged.Store); err != nil {
		return err
	}
	lost, undo, blind, err := f.lost(ctx, out, conf, place, staged, log)
	if err != nil {
		return err
	}
	if gone, err := metastore.MovedTo(ctx, staged.Store); err != nil {
		return err
	} else if gone != nil {
		undo = append(undo, movedLine(gone))
		if err := metastore.ClearMoved(ctx, staged.Store); err != nil {
			return err
		}
	}
	slices.Sort(undo)
	undo = slices.Compact(undo)
	for _, line := range undo {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	for _, name := range lost {
		if key, id, ok := cutVersion(name); ok { // what comes may not have its number
			if n, ok := claviger.NumberOfID(id); ok && n < claviger.MaxVersion {
				if err := staged.Store.SkipNumbers(ctx, key, n+1); err != nil {
					return err
				}
			}
		}
		if _, err := fmt.Fprintf(out, "LOST  %s\n", name); err != nil {
			return err
		}
	}
	if len(lost) > 0 && !f.lose {
		return &exitError{exitRefused, fmt.Errorf("%s does not know %d versions of keys, listed above, that the store or the token has; what is encrypted with them could no longer be read. Nothing was changed. Restore a newer backup; or say --lose-keys, then have the records of those on the token made again by claviger hsm adopt", file, len(lost))}
	}
	if len(undo) > 0 && !f.lose {
		return &exitError{exitRefused, fmt.Errorf("%s undoes %d changes, listed above, that were made since it was written: a deleted key that comes back can be used by whom the rules of then allow. Nothing was changed. Restore a newer backup; or say --lose-keys, then delete again what was deleted", file, len(undo))}
	}
	aside, err := staged.Replace(ctx)
	if err != nil {
		return err
	}
	if aside != "" {
		_, err = fmt.Fprintf(out, "kept the store that was there: %s\n", aside)
	}
	if staged.Facts.Schema < sqlite.SchemaVersion {
		_, werr := fmt.Fprintf(out, "the copy was of schema version %d and is of %d now: the older claviger that wrote it cannot use it any more\n", staged.Facts.Schema, sqlite.SchemaVersion)
		err = errors.Join(err, werr)
	}
	_, werr := fmt.Fprintf(out, "restored %s from %s: %d keys with %d versions, %d deleted keys, as of %s\nnext: claviger metastore verify --conf %s\n",
		place.File, file, staged.Facts.Keys, staged.Facts.Versions, staged.Facts.Deleted, madeAt(staged.Facts), conf.Dir())
	err = errors.Join(err, werr)
	if f.noToken && blind {
		_, werr = fmt.Fprintf(out, "The token was not asked, and the store that was there could not be read: "+
			"where the token was used since the copy was written, this metastore changes no key before you say that it goes on: "+
			"claviger metastore accept --conf %s --yes\n", conf.Dir())
		err = errors.Join(err, werr)
	}
	return err
}

// keepStoreID gives a copy from before stores had an id the id of the store whose place
// it takes: the token is bound to that.
func keepStoreID(ctx context.Context, place location.Location, staged *sqlite.Store) error {
	if _, has, err := staged.Setting(ctx, hsm.SettingID); err != nil || has || place.Missing() {
		return err
	}
	current, err := sqlite.OpenReadOnly(ctx, place.File)
	if err != nil {
		return nil //nolint:nilerr // it is damaged, which is why it is replaced
	}
	id, has, err := current.Setting(ctx, hsm.SettingID)
	if err = errors.Join(err, current.Close()); err != nil || !has {
		return nil //nolint:nilerr // as above
	}
	return staged.SetSetting(ctx, hsm.SettingID, id)
}

func madeAt(f sqlite.Facts) string {
	if f.Made.IsZero() {
		return "an unknown time"
	}
	return f.Made.Format(time.RFC3339)
}

// lost are the versions that the store or the token has and the backup does not, and
// undo says which later changes of the store the backup does not know. It is blind where
// neither the store nor a token can tell.
func (f *restoreFlags) lost(ctx context.Context, out io.Writer, conf *hadoopconf.Conf, place location.Location,
	staged *sqlite.Staged, log *slog.Logger) (lost, undo []string, blind bool, err error) {
	blind = true
	if !place.Missing() {
		current, err := sqlite.OpenReadOnly(ctx, place.File)
		if err == nil {
			blind = false
			var some []string
			some, err = missingIn(ctx, staged.Store, current)
			lost = append(lost, some...)
			if err == nil {
				err = hsm.KeepHistory(ctx, staged.Store, current)
			}
			if err == nil {
				err = forgetDestroyed(ctx, staged.Store, current)
			}
			if err == nil {
				err = staged.SkipNumbersOf(ctx, current)
			}
			if err == nil {
				var u undone
				u, err = undoes(ctx, staged.Store, current)
				undo = u.lines()
			}
			if err == nil {
				var gone *metastore.Moved
				if gone, err = metastore.MovedTo(ctx, current); gone != nil {
					undo = append(undo, movedLine(gone))
				}
			}
			err = errors.Join(err, current.Close())
		}
		if err != nil {
			blind = true
			if _, err := fmt.Fprintf(out, "the store that is there cannot be compared, so a key that was deleted since the backup was written comes back unnoticed: %v\n", err); err != nil {
				return nil, nil, blind, err
			}
		}
	}
	if !f.noToken {
		t, err := compareToken(ctx, conf, staged.Store, true, log)
		if err != nil {
			return nil, nil, blind, fmt.Errorf("%w; mend that, or compare with the store alone: --no-token", err)
		}
		if t != nil {
			blind = false
			if t.takenFrom != "" && t.takenFrom != place.URI {
				if _, err := fmt.Fprintf(out, "NOTE  the token was used last by the metastore at %s; once a server has started on the restored one, that one makes no key any more: stop what uses it\n", t.takenFrom); err != nil {
					return nil, nil, blind, err
				}
			}
			lost = append(lost, t.Unknown...)
			for _, name := range t.Missing {
				log.Warn("the backup names a version that the token does not have", "version", name, "token", t.Label)
			}
		}
	}
	if blind && !place.Missing() && !f.lose {
		return nil, nil, blind, &exitError{exitRefused, errors.New("neither the store that is there nor a token can tell which keys the backup lacks; nothing was changed. Let the token be asked (leave out --no-token), or say --lose-keys")}
	}
	slices.Sort(lost)
	return slices.Compact(lost), undo, blind, nil
}

// movedLine tells that a store was moved, so that what became of keys since is known at
// the other place.
func movedLine(m *metastore.Moved) string {
	return fmt.Sprintf("MOVED  to %s at %s (claviger metastore copy): keys that were made, rolled or deleted there since are not known here", m.To, m.At.Format(time.RFC3339))
}

// forgetDestroyed has a backup not take for destroyed what the store that it replaces uses.
func forgetDestroyed(ctx context.Context, backup, current *sqlite.Store) error {
	all, err := versionsOf(ctx, current)
	if err != nil {
		return err
	}
	for _, v := range all {
		if err := hsm.Forget(ctx, backup, v.object); err != nil {
			return err
		}
	}
	return nil
}

// missingIn are the versions of one store that another does not know.
func missingIn(ctx context.Context, in, of *sqlite.Store) (missing []string, err error) {
	have, err := versionsOf(ctx, in)
	if err != nil {
		return nil, err
	}
	want, err := versionsOf(ctx, of)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, v := range have {
		known[v.name+" "+v.object] = true
	}
	for _, v := range want {
		if !known[v.name+" "+v.object] {
			missing = append(missing, v.name)
		}
	}
	return missing, nil
}

// cutVersion is key and id of a version's name.
func cutVersion(version string) (key, id string, ok bool) {
	if key, ok = claviger.KeyOfVersion(version); !ok {
		return "", "", false
	}
	return key, version[len(key)+1:], true
}
