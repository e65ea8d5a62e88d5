package metastore

import (
	"context"
	"encoding/json"
	"fmt"

	"claviger"
)

// settingConflicts is the setting of Conflicts: a JSON object of lists.
const settingConflicts = "sources.conflicts"

// Conflicts returns the conflicting versions of each source, by the source's URI. A version of a migrated key conflicts
// if the source has made a version of the same name since the migration: an EDEK with that name may belong to either.
// Each comparison with the source stores the conflicts, because the source may be unreachable, or no longer configured,
// when such an EDEK is decrypted.
func Conflicts(ctx context.Context, s Settings) (map[string][]string, error) {
	text, ok, err := s.Setting(ctx, settingConflicts)
	if err != nil || !ok {
		return nil, err
	}
	var bySource map[string][]string
	if err := json.Unmarshal([]byte(text), &bySource); err != nil {
		return nil, claviger.E("metastore.Conflicts", claviger.Internal, "",
			fmt.Errorf("setting %s of the metastore: %w", settingConflicts, err))
	}
	return bySource, nil
}

// SetConflicts replaces what Conflicts returns.
func SetConflicts(ctx context.Context, s Settings, bySource map[string][]string) error {
	text, err := json.Marshal(bySource)
	if err != nil {
		return err
	}
	return s.SetSetting(ctx, settingConflicts, string(text))
}

// MayHaveUsed reports whether an EDEK with that version name may belong to a version of this store: the store gave the
// number, and it is not certain that the version was never used. It does not matter whether the version still exists. A
// version with an opaque id never has the name of a source's version.
func MayHaveUsed(ctx context.Context, numbers Numbers, uses LastUses, version claviger.VersionRef) (bool, error) {
	n, ok := version.Number()
	if !ok {
		return false, nil
	}
	given, err := numbers.Numbered(ctx, version.Key, n)
	if err != nil || !given {
		return false, err
	}
	never, err := uses.NeverUsed(ctx, version.Name())
	return !never, err
}
