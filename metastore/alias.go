package metastore

import (
	"context"
	"strings"

	"claviger"
)

// aliasPrefix begins the names of the settings that Alias reads.
const aliasPrefix = "alias."

// SetAlias records that the key of that name came from a source that folds case. Such a source lists "finance"
// and answers to "Finance" too, and an EDEK has the spelling that its zone was made with. The migration writes
// the alias before it imports the key, so no such key lacks it:
//
//	setting "alias.finance" = "Finance"
//
// The alias stays when the key is deleted or the migration is finished: EDEKs keep their spelling.
func SetAlias(ctx context.Context, s Settings, name string) error {
	return s.SetSetting(ctx, aliasPrefix+claviger.FoldName(name), name)
}

// Alias returns, for any spelling of a name, the name of the key that was migrated from a source that folds case;
// ok is false where there is none. The key itself may have been deleted since. Callers try the exact name first.
func Alias(ctx context.Context, s Settings, name string) (here string, ok bool, err error) {
	fold := claviger.FoldName(name)
	here, ok, err = s.Setting(ctx, aliasPrefix+fold)
	if before := strings.ToLower(name); err == nil && !ok && before != fold {
		// Older programs folded names otherwise than Java.
		if here, ok, err = s.Setting(ctx, aliasPrefix+before); ok && claviger.FoldName(here) != fold {
			here, ok = "", false
		}
	}
	return here, ok, err
}
