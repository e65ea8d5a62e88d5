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

// RestoreOptions say how Restore works.
type RestoreOptions struct {
	PlainCopy bool // the file was copied by other means than Backup, while no server had it
	LoseKeys  bool // restore although Lost or Undone are not empty
	NoToken   bool // do not compare with the token
}

// Restored is what Restore found and did. Restore returns it with an error too, once the backup was compared. A
// comparison that was broken off is not returned: its lists would look complete.
type Restored struct {
	// Incomparable says why the store that is there could not be compared; "" where it was, or is missing.
	Incomparable string `json:"incomparable,omitempty"`
	// TakenFrom is the URI of another copy of the store, which used the token last; "" if there is none.
	TakenFrom string   `json:"takenFrom,omitempty"`
	Undone    []string `json:"undone"` // the changes since the backup that it undoes, as lines
	// Lost are the versions that the store or the token has, and the backup does not know.
	Lost  []string     `json:"lost"`
	Done  bool         `json:"done"`           // the store was replaced
	Kept  string       `json:"kept,omitempty"` // file in which the replaced store was kept; "" where there was none
	Store string       `json:"store"`          // file
	Facts sqlite.Facts `json:"backup"`
	// MustAccept: neither the token nor the replaced store was compared, so the restored store may change no
	// key before it takes the token up.
	MustAccept bool `json:"mustAccept,omitempty"`
}

// restoration is one call of Restore.
type restoration struct {
	RestoreOptions
	Restored
	conf   *hadoopconf.Conf
	place  location.Location
	staged *sqlite.Staged
	log    *slog.Logger
	blind  bool // neither the store that is there nor a token was compared
}

// Restore puts a backup in the place of the configured SQLite store. It checks the backup first, and compares
// it with the store that is there and with the token. It refuses, and changes nothing, while a process uses
// the store, and where versions would be lost or changes undone, unless LoseKeys allows that. The replaced
// store is kept.
func Restore(ctx context.Context, conf *hadoopconf.Conf, file string, o RestoreOptions,
	log *slog.Logger) (done *Restored, err error) {
	r := &restoration{RestoreOptions: o, conf: conf, log: log, blind: true,
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
	r.Facts, r.Store, r.MustAccept = r.staged.Facts, r.place.File, r.NoToken && r.blind
	return &r.Restored, err
}

// prepare changes the staged copy so that it can take the store's place, and finds what that would lose.
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
	case r.blind && !r.place.Missing():
		return claviger.Refuse("neither the store that is there nor a token can tell which keys the backup lacks; " +
			"nothing was changed. Let the token be asked (leave out --no-token), or say --lose-keys")
	case len(r.Lost) > 0:
		return claviger.Refuse("%s does not know %d versions of keys, listed above, that the store or the token "+
			"has; what is encrypted with them could no longer be read. Nothing was changed. Restore a newer backup; "+
			"or say --lose-keys, then have the records of those on the token made again by claviger hsm adopt",
			file, len(r.Lost))
	case len(r.Undone) > 0:
		return claviger.Refuse("%s undoes %d changes, listed above, that were made since it was written: a deleted "+
			"key that comes back can be used by whom the rules of then allow. Nothing was changed. Restore a newer "+
			"backup; or say --lose-keys, then delete again what was deleted", file, len(r.Undone))
	}
	return nil
}

// keepStoreID gives a copy that is older than store ids the id of the store whose place it takes: the token
// is bound to that id.
func (r *restoration) keepStoreID(ctx context.Context) error {
	if _, has, err := r.staged.Store.Setting(ctx, hsm.SettingID); err != nil || has || r.place.Missing() {
		return err
	}
	current, err := sqlite.OpenReadOnly(ctx, r.place.File)
	if err != nil {
		return nil //nolint:nilerr // it is damaged, and so it is replaced
	}
	id, has, err := current.Setting(ctx, hsm.SettingID)
	if err = errors.Join(err, current.Close()); err != nil || !has {
		return nil //nolint:nilerr // as above
	}
	return r.staged.Store.SetSetting(ctx, hsm.SettingID, id)
}

// compareStore compares the copy with the store that is there, and takes over from it what must not be
// forgotten. A store that cannot be compared is no error: it may be damaged.
func (r *restoration) compareStore(ctx context.Context) error {
	if r.place.Missing() {
		return nil
	}
	current, err := sqlite.OpenReadOnly(ctx, r.place.File)
	if err == nil {
		err = errors.Join(r.takeOver(ctx, current), current.Close())
	}
	if r.blind = err != nil; r.blind {
		r.Incomparable = err.Error()
	}
	return nil
}

// takeOver lists what the copy lacks of the current store, and gives the copy the history, the numbers and
// the marks of use of the current store.
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

// compareToken compares the copy with the token, which the copy takes up.
func (r *restoration) compareToken(ctx context.Context) error {
	if r.NoToken {
		return nil
	}
	t, err := compareToken(ctx, r.conf, r.staged.Store, true, r.log)
	if err != nil {
		return fmt.Errorf("%w; mend that, or compare with the store alone: --no-token", err)
	}
	if t == nil {
		return nil
	}
	r.blind = false
	if t.takenFrom != r.place.URI {
		r.TakenFrom = t.takenFrom
	}
	r.Lost = append(r.Lost, t.Unknown...)
	for _, name := range t.Missing {
		r.log.Warn("the backup names a version that the token does not have", "version", name, "token", t.Label)
	}
	return nil
}

// skipLostNumbers keeps later versions from getting the numbers of lost ones.
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

// movedLine says that a store was moved, so that later changes of keys are known at the other place only.
func movedLine(m *metastore.Moved) string {
	return fmt.Sprintf("MOVED  to %s at %s (claviger metastore copy): keys that were made, rolled or deleted there "+
		"since are not known here", m.To, m.At.Format(time.RFC3339))
}

// forgetDestroyed removes from a backup the marks that say a key is destroyed, for keys that the store which
// the backup replaces still uses.
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
