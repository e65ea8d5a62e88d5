package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
)

// movable is a store that Copy can copy from or to.
type movable interface {
	metastore.Store
	metastore.Movable
}

// openMovable opens a store for Copy, and claims it alone.
func openMovable(ctx context.Context, place location.Location, property string, self owner.Owner,
	log *slog.Logger) (movable, error) {
	if place.File != "" {
		st, err := sqlite.Open(ctx, place.File)
		if err != nil {
			return nil, err
		}
		st.LogTo(log)
		return claimStore[movable](ctx, st, self, true)
	}
	st, err := postgres.Open(ctx, postgres.Config{URI: place.URI, Property: property, Log: log})
	if err != nil {
		return nil, err
	}
	return claimStore[movable](ctx, st, self, true)
}

// Copied is the result of Copy.
type Copied struct {
	From string `json:"from"` // URI
	To   string `json:"to"`
	// Before says that an earlier call has already moved the store; nil otherwise.
	Before   *metastore.Moved `json:"before,omitempty"`
	Keys     int              `json:"keys"`
	Versions int              `json:"versions"`
	Deleted  int              `json:"deletedKeys"`
	Pending  int              `json:"pendingSteps"`
	Journal  int              `json:"migrationRecords"`
	Tokens   int              `json:"delegationTokens"`
}

// Copy moves the configured store to another location, which must be empty. It writes all rows there in one
// transaction, reads them again, compares them, and marks the old store as moved, so that no server uses it. It refuses
// while another process uses one of the two stores. If a call was interrupted, the next call finishes it.
func Copy(ctx context.Context, conf *hadoopconf.Conf, to location.Location, log *slog.Logger) (done Copied,
	err error) {
	from, err := location.Of(conf)
	if err != nil {
		return done, err
	}
	if from.Missing() {
		return done, from.Wrap(fmt.Errorf("%w at %s", location.ErrNone, from.File))
	}
	if from.URI == to.URI || sameFile(from.File, to.File) {
		return done, refuseMove("--to names the metastore that is configured already (%s): name an empty one",
			hadoopconf.MetastoreURI)
	}
	files := builtin.Files(conf)
	if to.File != "" {
		files = append(files, to.File)
	}
	if err := owner.RefuseRoot(files...); err != nil {
		return done, err
	}
	self := owner.Self("claviger metastore copy", conf.Dir())
	a, err := openMovable(ctx, from, hadoopconf.MetastoreURI, self, log)
	if err != nil {
		return done, from.Wrap(err)
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := openMovable(ctx, to, "--to", self, log)
	if err != nil {
		return done, fmt.Errorf("--to: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return moveStore(ctx, a, b)
}

// moveStore copies a store into another, compares them, and marks the first as moved.
func moveStore(ctx context.Context, from, to movable) (done Copied, err error) {
	done = Copied{From: from.URI(), To: to.URI()}
	earlier, err := metastore.MovedTo(ctx, from)
	if err != nil {
		return done, err
	}
	if earlier != nil && earlier.To != to.URI() {
		return done, refuseMove("metastore %s was moved to %s at %s: copy the new one, or set %s to it. If the new "+
			"metastore and its backups are lost, see docs/nodes/move.md", from.URI(), earlier.To,
			earlier.At.Format(time.RFC3339), hadoopconf.MetastoreURI)
	}
	if gone, err := metastore.MovedTo(ctx, to); err != nil || gone != nil {
		if err != nil {
			return done, err
		}
		return done, refuseMove("metastore %s was itself moved to %s: name an empty one", to.URI(), gone.To)
	}
	c, err := from.Content(ctx)
	if err != nil {
		return done, err
	}
	n := func(table string) int { return len(c.Rows[table]) }
	done.Keys, done.Versions, done.Deleted = n("ez_key"), n("key_version"), n("deleted_key")
	done.Pending, done.Journal, done.Tokens = n("intent"), n("journal"), n("delegation")
	has, err := to.Content(ctx)
	if err != nil {
		return done, err
	}
	if done.Before, err = transfer(ctx, from, to, c, has, earlier); err != nil || done.Before != nil {
		return done, err
	}
	// If this call is interrupted before SetMoved, the next call finishes the move.
	if err := metastore.SetMoved(ctx, from, to.URI()); err != nil {
		return done, fmt.Errorf("the copy is complete, but %s could not be marked as moved: %w; run the same command "+
			"again", from.URI(), err)
	}
	return done, nil
}

// transfer fills the store to with the content c of from. has is the content of to before that. earlier is the mark of
// an earlier move of from to the same location, or nil. The result is earlier if that move is complete.
func transfer(ctx context.Context, from, to movable, c, has *metastore.Content, earlier *metastore.Moved) (
	*metastore.Moved, error) {
	switch {
	case has.Empty() && earlier != nil:
		return nil, refuseMove("metastore %s was moved to %s at %s, which is empty now: restore that one from its "+
			"backup", from.URI(), earlier.To, earlier.At.Format(time.RFC3339))
	case c.Empty():
		return nil, refuseMove("metastore %s is empty: set %s to the new one, without a copy", from.URI(),
			hadoopconf.MetastoreURI)
	case has.Empty():
		return nil, fillEmpty(ctx, from, to, c)
	case earlier != nil && settingOf(has, hsm.SettingID) == settingOf(c, hsm.SettingID):
		return earlier, nil
	case c.Differ(has) != nil:
		what := "another metastore"
		if id := settingOf(c, hsm.SettingID); id != "" && id == settingOf(has, hsm.SettingID) {
			what = "a copy of this one that differs from it in " + strings.Join(c.Differ(has), ", ")
		}
		return nil, refuseMove("metastore %s is not empty: it holds %s; make it empty, or name another", to.URI(), what)
	}
	return nil, nil //nolint:nilnil // the copy is complete, and only the mark is missing
}

// fillEmpty writes a content into an empty store, reads it again and compares both.
func fillEmpty(ctx context.Context, from, to movable, c *metastore.Content) error {
	if err := to.Fill(ctx, c); err != nil {
		return fmt.Errorf("the copy was not made: %w", err)
	}
	has, err := to.Content(ctx)
	if err != nil {
		return fmt.Errorf("the copy cannot be read again: %w; run the same command again", err)
	}
	if differ := c.Differ(has); differ != nil {
		return fmt.Errorf("the copy %s differs from %s in %s, and is not used; make it empty, and run the same "+
			"command again", to.URI(), from.URI(), strings.Join(differ, ", "))
	}
	return nil
}

func refuseMove(format string, args ...any) error {
	return claviger.Refuse(format+"; nothing was done", args...)
}

// settingOf returns a setting of a content; "" if it has none.
func settingOf(c *metastore.Content, name string) string {
	for _, row := range c.Rows["setting"] {
		if value, ok := row[1].(string); ok && row[0] == name {
			return value
		}
	}
	return ""
}

// sameFile reports whether two paths lead to one file, as by a symbolic link. A store in PostgreSQL has no file ("").
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	other, otherErr := os.Stat(b)
	return err == nil && otherErr == nil && os.SameFile(one, other)
}
