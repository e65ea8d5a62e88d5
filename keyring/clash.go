package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger"
)

const (
	// clashesHold is the time for which a result without clashes is used; clashesRetry is the time for any other
	// result.
	clashesHold  = 10 * time.Minute
	clashesRetry = time.Minute
	// clashesShown is the number of names in a message.
	clashesShown = 10
)

// clashes is the last result of CheckNames.
type clashes struct {
	mu    sync.Mutex // held while the sources are read
	until time.Time
	err   error
}

// CheckNames names the keys here that have the name of a source's key and were not migrated from it. Such a key may
// have been made before the source was configured. Its rules guard the source's key too, so the users of the source's
// key may lose access. The error is for an operator.
func (r *Ring) CheckNames(ctx context.Context) error {
	if r.sources.none() {
		return nil
	}
	c := &r.clashes
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.until) {
		return c.err
	}
	before := c.err
	c.err = r.findClashes(ctx)
	c.until = time.Now().Add(clashesHold)
	if c.err == nil {
		return nil
	}
	c.until = time.Now().Add(clashesRetry)
	if errors.As(c.err, new(*clash)) && (before == nil || before.Error() != c.err.Error()) {
		r.log.Warn("keys here have names of a source's keys", "err", c.err)
	}
	return c.err
}

// CheckMigrations names the sources of unfinished migrations that are not configured here: EDEKs under their key
// versions cannot be opened. The error is for an operator.
func (r *Ring) CheckMigrations(ctx context.Context) error {
	byKey, err := r.origins.all(ctx)
	if err != nil {
		return err
	}
	var missing []string
	for _, list := range byKey {
		for _, o := range list {
			if o.Finished.IsZero() && !r.sources.configured(o.Source) && !slices.Contains(missing, o.Source) {
				missing = append(missing, o.Source)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return claviger.Errorf("keyring.CheckMigrations", claviger.SourceUnreachable, "", "the migration from %s is not "+
		"finished, and it is not a source here: EDEKs under its key versions cannot be opened; name it in "+
		"hadoop.kms.key.provider.reencryption.source.uri again, or end the migration with claviger migrate "+
		"finish", strings.Join(missing, ", "))
}

// clash is the error of CheckNames that has names.
type clash struct{ text string }

func (c *clash) Error() string { return c.text }

func (r *Ring) findClashes(ctx context.Context) error {
	r.origins.forget() // the journal may have a key that was migrated a moment ago
	names, err := r.primary.Keys(ctx)
	if err != nil {
		return err
	}
	here := make(map[string][]string, len(names)) // by FoldName
	for _, name := range names {
		fold := claviger.FoldName(name)
		here[fold] = append(here[fold], name)
	}
	var texts []string
	for _, s := range r.sources.list {
		found, err := r.clashesWith(ctx, s, here)
		if err != nil {
			return fmt.Errorf("it is not known which keys the source %s (property %s) has: %s", s.URI(), s.property,
				reason(err))
		}
		if len(found) == 0 {
			continue
		}
		texts = append(texts, fmt.Sprintf("%s: at the source %s too, and not migrated from it",
			claviger.FirstNames(found, clashesShown), s.URI()))
	}
	if len(texts) == 0 {
		return nil
	}
	return &clash{strings.Join(texts, "; ") + "; the rules of the key here also guard the source's EDEKs of that " +
		"name: see claviger migrate plan, and let the users of one of the two keys copy their files to a zone with " +
		"another key"}
}

// migratedFrom reports whether a key here was migrated from any source. If s has rolled the key since, so that it
// is in conflict, the result is true, and CheckConflicts reports the conflict.
func (r *Ring) migratedFrom(ctx context.Context, s *source, m *claviger.Metadata) (bool, error) {
	list, err := r.origins.of(ctx, m.Name)
	return slices.ContainsFunc(list, func(o Origin) bool {
		return o.madeHere(m) && (o.TakenOver || o.Source == s.URI())
	}), err
}

// clashesWith returns the sorted names of keys here that were not migrated, but for which the source has a key of the
// same name. Any spelling that the source accepts counts as the same name.
func (r *Ring) clashesWith(ctx context.Context, s *source, here map[string][]string) ([]string, error) {
	var sourceNames []string
	err := s.call(ctx, func(ctx context.Context) (err error) {
		sourceNames, err = s.Keys(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	listed := make(map[string]bool, len(sourceNames))
	var both []string
	for _, name := range sourceNames {
		listed[name] = true
		both = append(both, here[claviger.FoldName(name)]...)
	}
	slices.Sort(both)
	both = slices.Compact(both)
	var found []string
	for len(both) > 0 {
		some := both[:min(len(both), sourceChunk)]
		both = both[len(some):]
		ms, err := r.primary.Metadata(ctx, some...)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			if m == nil {
				continue // deleted since
			}
			migrated, err := r.migratedFrom(ctx, s, m)
			if err != nil {
				return nil, err
			}
			if migrated {
				continue
			}
			if !listed[m.Name] { // another spelling, which counts because the source answers to it
				switch _, err := s.metadata(ctx, m.Name); {
				case claviger.Is(err, claviger.KeyNotFound):
					continue
				case err != nil:
					return nil, err
				}
			}
			found = append(found, m.Name)
		}
	}
	return found, nil
}
