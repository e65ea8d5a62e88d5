package migrate

import (
	"context"
	"fmt"
	"slices"

	"claviger"
	"claviger/shellword"
	"claviger/typo"
)

// adopted returns the keys whose records here were made by claviger hsm adopt.
func (e *Engine) adopted(ctx context.Context, keys []string) (map[string]bool, error) {
	target, ok := e.cfg.Target.(Adopter)
	if !ok {
		return nil, nil
	}
	list, err := target.Adopted(ctx, keys...)
	found := make(map[string]bool, len(list))
	for _, key := range list {
		found[key] = true
	}
	return found, err
}

// readopt decides about a key that an operator's adoption brought back and that differs from the source's key,
// because the token holds neither attributes nor creation time. The operator must say whether the key was
// migrated from the source, and then lost by the restore of an older backup. Otherwise it may be another key: a
// user of the source could have made a key of the same name there.
func (e *Engine) readopt(ctx context.Context, it Item, diffs []Difference) (Item, error) {
	vs, err := e.cfg.Target.Versions(ctx, it.Key)
	if err != nil {
		return it, err
	}
	it.Retaken, it.TargetVersions, it.Count = true, namesOf(vs), 0
	for _, d := range diffs {
		if d.Field == "cipher" || d.Field == "length" {
			return conflict(it, diffs, "a key of that name was brought back by claviger hsm adopt", cureRename), nil
		}
	}
	if e.cfg.AllAdopted || slices.Contains(e.cfg.Adopted, it.Key) {
		it.State, it.Why = Planned, ""
		return it, nil
	}
	return conflict(it, diffs, "a key of that name was brought back by claviger hsm adopt",
		fmt.Sprintf("do not delete the key: files may be encrypted under it; if the key was migrated from this source "+
			"before the metastore was restored, run claviger migrate run --adopted %s (or --all-adopted); if not, "+
			"copy the files of one of the two to a zone with another key", shellword.Quote(it.Key))), nil
}

// retake makes the record of an adopted key the record of a migrated key.
func (e *Engine) retake(ctx context.Context, m claviger.Metadata) error {
	target, ok := e.cfg.Target.(Adopter)
	if !ok {
		return claviger.Errorf("migrate.Run", claviger.Internal, m.Name, "the target %s has no adopted keys",
			e.cfg.Target.URI())
	}
	return target.Retake(ctx, m)
}

// needAdopted refuses the operator's statement (Config.Adopted) for keys to which it cannot apply. Kind
// Invalid.
func (e *Engine) needAdopted(sv *survey) error {
	for _, key := range e.cfg.Adopted {
		i := slices.IndexFunc(sv.items, func(it Item) bool { return it.Key == key })
		switch {
		case i < 0:
			return claviger.Errorf("migrate.Run", claviger.Invalid, key,
				"--adopted %s: the source does not list that key%s; nothing was done; see claviger migrate plan",
				claviger.Printable(key), typo.DidYouMean(key, sv.names(), claviger.Printable))
		case !sv.items[i].Retaken && sv.items[i].State != Done:
			return claviger.Errorf("migrate.Run", claviger.Invalid, key,
				"--adopted %s: claviger hsm adopt did not bring this key back; nothing was done; leave it out, and "+
					"see claviger migrate plan", claviger.Printable(key))
		}
	}
	return nil
}

// names returns the names of the keys.
func (sv *survey) names() []string {
	names := make([]string, len(sv.items))
	for i, it := range sv.items {
		names[i] = it.Key
	}
	return names
}

// whyAdoptedConflict returns the text for an operator about an adopted key with a version whose number the source has
// used.
func (e *Engine) whyAdoptedConflict(ctx context.Context, key, version string) string {
	value := e.oursValue(ctx, version, nil)
	quoted := shellword.Quote(key)
	key, version = claviger.Printable(key), claviger.Printable(version)
	return fmt.Sprintf("a key of that name was brought back by claviger hsm adopt, and the source has a version %s "+
		"too: either key %s is another key than the source's, or the source rolled its key after the migration. Do "+
		"not delete the key: files may be encrypted under it. If the key was migrated, stop rolls at the source, roll "+
		"key %s here, so that new files can be read, copy the files that were made through the source under %s from "+
		"there, set %s to %s, "+
		"run claviger migrate run --adopted %s (with a metastore in SQLite while the server is stopped), and restart "+
		"every node; if not, copy the files of one of the two to a zone with another key",
		version, key, key, version, PropOurs, value, quoted)
}
