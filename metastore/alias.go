package metastore

import (
	"context"
	"strings"

	"claviger"
)

// aliasPrefix begins the names of the settings that Alias reads.
const aliasPrefix = "alias."

// SetAlias records that the key of that name came from a source that folds case. Such a source lists "finance", and
// also accepts "Finance". An EDEK has the spelling with which its zone was created. The migration writes the alias
// before it imports the key, so every such key has an alias:
//
//	setting "alias.finance" = "Finance"
//
// The alias stays when the key is deleted or the migration is finished: EDEKs keep their spelling.
func SetAlias(ctx context.Context, s Settings, name string) error {
	return s.SetSetting(ctx, aliasPrefix+claviger.FoldName(name), name)
}

// Alias returns the name of the key that was migrated from a source that folds case, for any spelling of that name. ok
// is false if there is no such key. The key may have been deleted since. Callers try the exact name first.
func Alias(ctx context.Context, s Settings, name string) (here string, ok bool, err error) {
	fold := claviger.FoldName(name)
	here, ok, err = s.Setting(ctx, aliasPrefix+fold)
	if before := strings.ToLower(name); err == nil && !ok && before != fold {
		// Older programs folded names in another way than Java does.
		if here, ok, err = s.Setting(ctx, aliasPrefix+before); ok && claviger.FoldName(here) != fold {
			here, ok = "", false
		}
	}
	return here, ok, err
}
