package keyring

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"claviger"
)

// rolledKey is a migrated key that its source rolled after the migration. The ids of the source are opaque, so its
// versions have other names than the versions here, and their EDEKs open through the source. But some client still uses
// the source.
type rolledKey struct {
	key, source    string
	counted, since int
}

func (k rolledKey) String() string {
	return fmt.Sprintf("key %s of %s (%d versions when it was migrated, %d more now)",
		claviger.Printable(k.key), k.source, k.counted, k.since)
}

// rolledCure returns the cure, for an operator, for a key that was rolled at a source with opaque ids.
const rolledCure = "check whether HDFS, or another cluster, uses the source " +
	"(hadoop.security.key.provider.path), point it to this server, stop rolls at the source " +
	"and re-encrypt the key's zones; claviger migrate finish needs your confirmation"

// setRolled stores the keys that were rolled at their sources for CheckRolled, and logs new ones.
func (r *Ring) setRolled(all []rolledKey) {
	c := &r.conflicts
	slices.SortStableFunc(all, func(a, b rolledKey) int { return strings.Compare(a.source, b.source) })
	before := load(&c.rolled)
	for _, k := range all {
		if !slices.Contains(before, k) {
			r.log.Warn("a key was rolled at its source since it was migrated, so something uses the source",
				"key", claviger.Printable(k.key), "source", k.source, "migrated", k.counted,
				"more now", k.since, "cure", rolledCure)
		}
	}
	c.rolled.Store(&all)
}

// withBefore adds the earlier results of a source that could not be read completely now.
func withBefore(now, before []rolledKey, uri string) []rolledKey {
	for _, k := range before {
		same := func(n rolledKey) bool { return n.source == uri && n.key == k.key }
		if k.source == uri && !slices.ContainsFunc(now, same) {
			now = append(now, k)
		}
	}
	return now
}

// CheckRolled names the migrated keys that sources with opaque ids have rolled since. The error is for an operator.
func (r *Ring) CheckRolled(context.Context) error {
	keys := load(&r.conflicts.rolled)
	if len(keys) == 0 {
		return nil
	}
	shown := make([]string, len(keys))
	for i, k := range keys {
		shown[i] = k.String()
	}
	return claviger.Errorf("keyring.CheckRolled", claviger.Unavailable, "",
		"rolled at the source since the migration: %s; %s", claviger.FirstNames(shown, conflictsShown), rolledCure)
}
