package metastore

import (
	"context"
	"encoding/json"
	"fmt"

	"claviger"
)

// settingConflicts is the setting of Conflicts: a JSON object of lists.
const settingConflicts = "sources.conflicts"

// Conflicts returns, by the URI of the source, the versions of migrated keys whose names the source has given
// to versions of its own since the migration: an EDEK with such a name may belong to either. Each comparison
// with the source stores them, because the source may not answer, or not be configured, when the EDEK comes.
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

// MayHaveUsed reports whether EDEKs of that version name may be of a version that this store had: the store gave
// the number, and it is not certain that the version was never used. Whether the version is still there does not
// matter. A version with an opaque id shares its name with no version of a source.
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
