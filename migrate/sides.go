package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"claviger"
)

// metadataBatch is the number of keys that one request reads. The names are in the URL of Hadoop's keys/metadata, whose
// length is limited.
const metadataBatch = 50

// unreachableAfter is the number of keys in a row, each read by itself, that must fail without an answer before the
// source counts as unreachable. The reason for one failure may be the key; the reason for three is the source.
const unreachableAfter = 3

// survey holds the keys of the source, of the target, and of the journal.
type survey struct {
	items   []Item // one per key that the source lists, sorted by name
	history *history
	// listed are the source's names of the keys, keys the names under which they are taken over. atSource and atTarget
	// are the metadata at the source and at the target. unread is the reason why the source's metadata could not
	// be read. Each has the length of items.
	listed, keys       []string
	atSource, atTarget []*claviger.Metadata
	unread             []error
	// adopted are the keys whose records were made by an operator's adoption.
	adopted map[string]bool
	// material: the source, a KMS, would show us key material, which we never request.
	material bool
	// skipVersions: the source did not show the names of a key's versions to surveyKey. namesHidden is the same
	// for namesNow.
	skipVersions, namesHidden bool
	// onlyTarget are keys that the source does not list.
	onlyTarget []string
	spelling   spelling
	// naming is how the source names versions, as far as it is known. probes counts the requests that tried to
	// find out.
	naming naming
	probes int
	// duplicates are names of versions that are different keys in two places: at the target and at another target, or
	// at another target and at the source, which rolled the key later.
	duplicates []VersionConflict
	// gone are keys that the journal has and the source no longer lists.
	gone []Item
}

// errNoMetadata is the error for a key that the source lists without returning its metadata.
var errNoMetadata = errors.New("the source returned no metadata of the key")

// survey reads both sides. It changes nothing. Each name that the source lists becomes an item, even if its metadata
// cannot be read.
func (e *Engine) survey(ctx context.Context, op string) (*survey, error) {
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	names, err := e.sourceNames(ctx, op)
	if err != nil {
		return nil, err
	}
	sv := &survey{}
	// Runs from other sources do not matter: the keys that they took over are found at the target.
	if sv.history, err = e.read(ctx, e.cfg.Source.URI()); err != nil {
		return nil, err
	}
	here, err := e.cfg.Target.Keys(ctx)
	if err != nil {
		return nil, err
	}
	atSource, unread, err := e.sourceMetadata(ctx, op, names)
	if err != nil {
		return nil, err
	}
	if names, atSource, unread, err = e.dropDeleted(ctx, op, names, atSource, unread); err != nil {
		return nil, err
	}
	if sv.spelling, err = e.spelling(ctx, op, names, atSource); err != nil {
		return nil, err
	}
	keys := sv.spelling.spelled(names, atSource, func(name string) bool {
		return sv.history.items[name].State == Done || slices.Contains(here, name)
	})
	sv.findUnpaired(slices.Sorted(slices.Values(keys)), here)
	if sv.adopted, err = e.adopted(ctx, keys); err != nil {
		return nil, err
	}
	if sv.atTarget, err = e.targetMetadata(ctx, op, keys); err != nil {
		return nil, err
	}
	sv.atSource, sv.unread, sv.listed, sv.keys = atSource, unread, names, keys
	for i := range keys {
		it, err := e.surveyKey(ctx, sv, i)
		if err != nil {
			return nil, err
		}
		sv.items = append(sv.items, it)
	}
	return sv, nil
}

// targetMetadata reads the target's metadata of all keys in batches; nil for a key that the target does not have.
func (e *Engine) targetMetadata(ctx context.Context, op string, keys []string) ([]*claviger.Metadata, error) {
	all := make([]*claviger.Metadata, 0, len(keys))
	for batch := range slices.Chunk(keys, metadataBatch) {
		ms, err := e.cfg.Target.Metadata(ctx, batch...)
		if err != nil {
			return nil, err
		}
		if len(ms) != len(batch) {
			return nil, claviger.Errorf(op, claviger.Internal, "",
				"requested the metadata of %d keys from the target, got %d", len(batch), len(ms))
		}
		all = append(all, ms...)
	}
	return all, nil
}

// surveyKey makes the item of the key at index i.
func (e *Engine) surveyKey(ctx context.Context, sv *survey, i int) (Item, error) {
	name, atSource := sv.keys[i], sv.atSource[i]
	it, err := e.judge(ctx, sv, name, atSource, sv.atTarget[i], sv.unread[i])
	if err != nil {
		return it, err
	}
	it.Folded = sv.spelling.folds
	if name != sv.listed[i] {
		it.Listed = sv.listed[i]
	}
	if other := sv.spelling.clash(name, slices.Concat(sv.keys, sv.onlyTarget)); other != "" && it.State != Done {
		it.State = Conflict
		it.Why = fmt.Sprintf("the source answers to every spelling of a name, and key %s differs in case only; "+
			"delete or rename the one that no zone uses, before the next run", claviger.Printable(other))
	}
	if atSource == nil {
		return it, nil
	}
	if !sv.skipVersions && it.SourceVersions == nil {
		names, again, err := e.sourceVersions(ctx, sv, name)
		if err != nil {
			return it, err
		}
		it.SourceVersions, sv.skipVersions = names, !again
	}
	if it.Run != "" { // the journal's record, which has numbers already
		return it, nil
	}
	e.number(ctx, sv, &it, atSource)
	if v := e.collision(ctx, it, atSource, it.TargetVersions); v != "" {
		it = e.collided(ctx, it, atSource, v)
		if it.Retaken {
			it.Why = e.whyAdoptedConflict(ctx, name, v)
		}
	}
	if it.Retaken && it.State == Conflict {
		// The key counts as not taken over. Otherwise a user who may roll the source's key could block the key
		// here.
		it.TargetVersions, it.Rolled = nil, 0
	}
	return it, nil
}

// sourceNames returns the source's list of keys, sorted, each name once.
func (e *Engine) sourceNames(ctx context.Context, op string) ([]string, error) {
	names, err := e.cfg.Source.Keys(ctx)
	if err != nil {
		return nil, e.sourceError(ctx, op, "", err)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// findUnpaired finds the keys that only one side has. names is sorted.
func (sv *survey) findUnpaired(names, here []string) {
	listed := func(key string) bool { _, found := slices.BinarySearch(names, key); return found }
	for _, k := range here {
		if !listed(k) {
			sv.onlyTarget = append(sv.onlyTarget, k)
		}
	}
	slices.Sort(sv.onlyTarget)
	for _, k := range sv.history.order {
		if !listed(k) {
			sv.gone = append(sv.gone, sv.history.items[k])
		}
	}
	slices.SortFunc(sv.gone, func(a, b Item) int { return strings.Compare(a.Key, b.Key) })
}

// unlistedSince returns the journal's keys that the source no longer lists and that were never taken over, or were
// deleted here too. It leaves out keys for which the journal has this state already.
func (sv *survey) unlistedSince() []Item {
	var items []Item
	for _, it := range sv.gone {
		_, here := slices.BinarySearch(sv.onlyTarget, it.Key)
		switch {
		case it.State == Done && !here:
			it.State, it.Why = Deleted, "was migrated, and has been deleted since at the source and here"
		case it.State.settled():
			continue
		default:
			it.State, it.Why = Gone, "the source no longer lists it, or has it under another spelling; it was never "+
				"taken over under this spelling"
		}
		items = append(items, it)
	}
	return items
}

// sourceMetadata reads the metadata of all names in batches. If a batch fails, it reads each key by itself, because
// Hadoop refuses the whole batch if one key is unreadable. Each name gets metadata or an error. The returned error is
// that of the source as a whole.
func (e *Engine) sourceMetadata(ctx context.Context, op string, names []string) ([]*claviger.Metadata, []error, error) {
	all := make([]*claviger.Metadata, 0, len(names))
	unread := make([]error, len(names))
	unanswered := 0 // in a row
	for batch := range slices.Chunk(names, metadataBatch) {
		ms, err := e.cfg.Source.Metadata(ctx, batch...)
		if err == nil && len(ms) == len(batch) {
			all = append(all, ms...)
			continue
		}
		if ctx.Err() != nil {
			return nil, nil, e.sourceError(ctx, op, "", err)
		}
		for _, name := range batch {
			one, err := e.cfg.Source.Metadata(ctx, name)
			switch {
			case ctx.Err() != nil:
				return nil, nil, e.sourceError(ctx, op, name, err)
			case err == nil && len(one) == 1:
				all, unanswered = append(all, one[0]), 0
				continue
			case err == nil:
				err = fmt.Errorf("the source returned %d entries for one key", len(one))
			}
			if noAnswer(err) {
				if unanswered++; unanswered >= unreachableAfter {
					return nil, nil, e.sourceError(ctx, op, name, err)
				}
			} else {
				unanswered = 0
			}
			unread[len(all)] = err
			all = append(all, nil)
		}
	}
	return all, unread, nil
}

// dropDeleted lists the source's keys again if metadata is missing, and leaves out keys that were deleted between the
// two lists. The other keys without metadata are unreadable.
func (e *Engine) dropDeleted(ctx context.Context, op string, names []string, atSource []*claviger.Metadata,
	unread []error) ([]string, []*claviger.Metadata, []error, error) {
	missing := false
	for i := range names {
		missing = missing || atSource[i] == nil && unread[i] == nil
	}
	if !missing {
		return names, atSource, unread, nil
	}
	now, err := e.sourceNames(ctx, op)
	if err != nil {
		return nil, nil, nil, err
	}
	n := 0
	for i, name := range names {
		if atSource[i] == nil && unread[i] == nil {
			if _, listed := slices.BinarySearch(now, name); !listed {
				continue
			}
			unread[i] = errNoMetadata
		}
		names[n], atSource[n], unread[n] = name, atSource[i], unread[i]
		n++
	}
	return names[:n], atSource[:n], unread[:n], nil
}

// whyUnread returns the reason why a listed key could not be read, with the cure.
func (e *Engine) whyUnread(ctx context.Context, key string, err error) string {
	if refused(err) {
		return "the source refused us: " + e.whyRefused(ctx, key, err)
	}
	return fmt.Sprintf("the source lists it, but cannot read it: %s; see the source's log, and look at the key there "+
		"(hadoop key list -metadata); remove an entry that is not a Hadoop key from the source's store",
		claviger.Reason(err))
}
