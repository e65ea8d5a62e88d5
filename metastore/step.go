package metastore

import (
	"errors"
	"slices"
	"time"

	"claviger"
)

// ErrTaken marks the error of Take, FinishCreate and FinishRoll for a step that another process has taken or ended.
var ErrTaken = errors.New("another process has taken or ended the step")

// Same reports whether j is the intent i, and no process has taken the step in between.
func (i Intent) Same(j Intent) bool {
	return i.Key == j.Key && i.Op == j.Op && i.Begun.Equal(j.Begun) && slices.Equal(i.Refs, j.Refs)
}

// AfterTake returns the intent that a store has after Take. The store keeps times in whole milliseconds.
func (i Intent) AfterTake(op string, now time.Time) Intent {
	i.Op = op
	if next := i.Begun.Add(time.Millisecond); now.Before(next) {
		now = next
	}
	i.Begun = now.UTC().Truncate(time.Millisecond)
	return i
}

// CheckTaken returns an error if pending, the intents that a store has of the key of i, has another intent than i.
func CheckTaken(op string, i Intent, pending []Intent) error {
	if slices.ContainsFunc(pending, i.Same) {
		return nil
	}
	return claviger.Errorf(op, claviger.Unavailable, i.Key, "%w: a %s of this key, begun %s; nothing was changed; "+
		"make it again", ErrTaken, i.Op, i.Begun.Format(time.RFC3339))
}

// CheckFinished returns an error if these are not the versions of i.
func CheckFinished(op string, i Intent, key string, list []Version) error {
	refs := make([]Ref, len(list))
	for n, v := range list {
		refs[n] = Ref{ID: v.ID, Object: v.Object}
	}
	if i.Key == key && slices.Equal(i.Refs, refs) {
		return nil
	}
	return claviger.Errorf(op, claviger.Invalid, key, "these are not the versions of the %s of key %q: %v and %v", i.Op,
		i.Key, refs, i.Refs)
}
