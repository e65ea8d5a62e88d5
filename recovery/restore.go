package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
)

// RestoreOptions are the options of Restore.
type RestoreOptions struct {
	PlainCopy bool // allow a file that Backup has not written
	LoseKeys  bool // restore also if Lost or Undone are not empty
	NoToken   bool // do not compare with the token
}

// Restored is the result of Restore. Restore returns it with an error too, but only after the comparison is complete,
// because incomplete lists would look complete.
type Restored struct {
	// Incomparable says why the current store could not be compared; "" if it was compared, or does not exist.
	Incomparable string `json:"incomparable,omitempty"`
	// TakenFrom is the URI of another copy of the store, which used the token last; "" if there is none.
	TakenFrom string   `json:"takenFrom,omitempty"`
	Undone    []string `json:"undone"` // the changes since the backup that the restore undoes, as lines
	// Lost are the versions that the store or the token has, and that the backup does not have.
	Lost  []string     `json:"lost"`
	Done  bool         `json:"done"`           // the store was replaced
	Kept  string       `json:"kept,omitempty"` // file with the replaced store; "" if there was none
	Store string       `json:"store"`          // file
	Facts sqlite.Facts `json:"backup"`
	// MustAccept says that neither the token nor the replaced store was compared, so the restored store may change no
	// key before it takes over the token.
	MustAccept bool `json:"mustAccept,omitempty"`
}

// restoration is one call of Restore.
type restoration struct {
	RestoreOptions
	Restored
	conf       *hadoopconf.Conf
	place      location.Location
	staged     *sqlite.Staged
	log        *slog.Logger
	uncompared bool // neither the current store nor a token was compared
}

// Restore replaces the configured SQLite store by a backup. First it checks the backup, and compares it with the
// current store and with the token. It refuses, and changes nothing, while a process uses the store. It also refuses if
// versions would be lost or changes undone, unless LoseKeys allows that. The replaced store is kept.
func Restore(ctx context.Context, conf *hadoopconf.Conf, file string, o RestoreOptions,
	log *slog.Logger) (done *Restored, err error) {
	r := &restoration{RestoreOptions: o, conf: conf, log: log, uncompared: true,
		Restored: Restored{Undone: []string{}, Lost: []string{}}}
	if r.place, err = sqliteLocation(conf, ownTools); err != nil {
		return nil, err
	}
	if err := owner.RefuseRoot(builtin.Files(conf)...); err != nil {
		return nil, err
	}
	self := owner.Self("claviger metastore restore", conf.Dir())
	release, err := sqlite.ClaimFile(r.place.File, self)
	if err != nil {
		return nil, r.place.Wrap(stopFirst(err, self))
	}
	defer release()
	if r.staged, err = sqlite.Stage(ctx, file, r.place.File, r.PlainCopy); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.staged.Discard()) }()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	if err = r.mayReplace(file); err == nil {
		r.Kept, err = r.staged.Replace(ctx)
		r.Done = err == nil
	}
	r.Facts, r.Store, r.MustAccept = r.staged.Facts, r.place.File, r.NoToken && r.uncompared
	return &r.Restored, err
}

// prepare changes the staged copy so that it can replace the store, and lists the versions and changes that this loses.
func (r *restoration) prepare(ctx context.Context) error {
	if err := r.keepStoreID(ctx); err != nil {
		return err
	}
	if err := hsm.EndSteps(ctx, r.staged.Store); err != nil {
		return err
	}
	if err := r.compareStore(ctx); err != nil {
		return err
	}
	if err := r.compareToken(ctx); err != nil {
		return err
	}
	gone, err := metastore.MovedTo(ctx, r.staged.Store)
	if err != nil {
		return err
	}
	if gone != nil {
		r.Undone = append(r.Undone, movedLine(gone))
		if err := metastore.ClearMoved(ctx, r.staged.Store); err != nil {
			return err
		}
	}
	slices.Sort(r.Undone)
	r.Undone = slices.Compact(r.Undone)
	slices.Sort(r.Lost)
	r.Lost = slices.Compact(r.Lost)
	return r.skipLostNumbers(ctx)
}

// mayReplace refuses to lose versions or undo changes unless LoseKeys allows it.
func (r *restoration) mayReplace(file string) error {
	switch {
	case r.LoseKeys:
		return nil
	case r.uncompared && !r.place.Missing():
		return claviger.Refuse("neither the current store nor a token was compared, so it is not known which keys " +
			"the backup lacks; nothing was changed. Compare with the token (leave out --no-token), or use --lose-keys")
	case len(r.Lost) > 0:
		return claviger.Refuse("%s does not know %d versions of keys, listed above, that the store or the token "+
			"has; data that is encrypted with them could no longer be read. Nothing was changed. Restore a newer "+
			"backup; or use --lose-keys, and then adopt the versions that are on the token with claviger hsm adopt",
			file, len(r.Lost))
	case len(r.Undone) > 0:
		return claviger.Refuse("%s undoes %d changes, listed above, that were made since it was written: a deleted "+
			"key that comes back can be used by the users that its old ACL allows. Nothing was changed. Restore a "+
			"newer backup; or use --lose-keys, and then delete these keys again", file, len(r.Undone))
	}
	return nil
}

// keepStoreID gives the copy the id of the store that it replaces, because the token is bound to that id. It does this
// only for a copy of an older schema, which has no id.
func (r *restoration) keepStoreID(ctx context.Context) error {
	if _, has, err := r.staged.Store.Setting(ctx, hsm.SettingID); err != nil || has || r.place.Missing() {
		return err
	}
	current, err := sqlite.OpenReadOnly(ctx, r.place.File)
	if err != nil {
		return nil //nolint:nilerr // a damaged store is a usual reason for a restore
	}
	id, has, err := current.Setting(ctx, hsm.SettingID)
	if err = errors.Join(err, current.Close()); err != nil || !has {
		return nil //nolint:nilerr // as above
	}
	return r.staged.Store.SetSetting(ctx, hsm.SettingID, id)
}

// compareStore compares the copy with the current store, and copies from it the data that must not get lost. If the
// current store cannot be read, that is not an error, because it may be damaged.
func (r *restoration) compareStore(ctx context.Context) error {
	if r.place.Missing() {
		return nil
	}
	current, err := sqlite.OpenReadOnly(ctx, r.place.File)
	if err == nil {
		err = errors.Join(r.takeOver(ctx, current), current.Close())
	}
	if r.uncompared = err != nil; r.uncompared {
		r.Incomparable = err.Error()
	}
	return nil
}

// takeOver lists the versions and changes of the current store that the copy lacks, and gives the copy the history, the
// numbers and the marks of the current store.
func (r *restoration) takeOver(ctx context.Context, current *sqlite.Store) error {
	copied := r.staged.Store
	missing, err := missingIn(ctx, copied, current)
	r.Lost = append(r.Lost, missing...)
	if err != nil {
		return err
	}
	if err := hsm.KeepHistory(ctx, copied, current); err != nil {
		return err
	}
	if err := forgetDestroyed(ctx, copied, current); err != nil {
		return err
	}
	if err := r.staged.SkipNumbersOf(ctx, current); err != nil {
		return err
	}
	undo, err := undoes(ctx, copied, current)
	r.Undone = append(r.Undone, undo.lines()...)
	if err != nil {
		return err
	}
	gone, err := metastore.MovedTo(ctx, current)
	if gone != nil {
		r.Undone = append(r.Undone, movedLine(gone))
	}
	return err
}

// compareToken compares the copy with the token. The copy takes over the token.
func (r *restoration) compareToken(ctx context.Context) error {
	if r.NoToken {
		return nil
	}
	t, err := compareToken(ctx, r.conf, r.staged.Store, true, r.log)
	if err != nil {
		return fmt.Errorf("%w; solve that, or compare only with the store: --no-token", err)
	}
	if t == nil {
		return nil
	}
	r.uncompared = false
	if t.takenFrom != r.place.URI {
		r.TakenFrom = t.takenFrom
	}
	r.Lost = append(r.Lost, t.Unknown...)
	for _, name := range t.Missing {
		r.log.Warn("the backup names a version that the token does not have", "version", name, "token", t.Label)
	}
	return nil
}

// skipLostNumbers keeps later versions from getting the numbers of lost versions.
func (r *restoration) skipLostNumbers(ctx context.Context) error {
	for _, name := range r.Lost {
		key, id, ok := cutVersion(name)
		if !ok {
			continue
		}
		if n, ok := claviger.NumberOfID(id); ok && n < claviger.MaxVersion {
			if err := r.staged.Store.SkipNumbers(ctx, key, n+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// movedLine says that a store was moved, so that only the store at the other location has the later changes of keys.
func movedLine(m *metastore.Moved) string {
	return fmt.Sprintf("MOVED  to %s at %s (claviger metastore copy): keys that were made, rolled or deleted there "+
		"since are not known here", m.To, m.At.Format(time.RFC3339))
}

// forgetDestroyed removes the marks of destroyed HSM objects from a backup, for objects that the current store uses.
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
