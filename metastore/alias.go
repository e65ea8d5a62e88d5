package metastore

import (
	"context"
	"strings"

	"claviger"
)

// aliasPrefix begins the names of the settings that Alias reads.
const aliasPrefix = "alias."

// SetAlias writes down that the key of that name came from a source that answers
// to every spelling of it. Such a source lists "finance", answers to "Finance",
// and an EDEK names the spelling that its zone was made with. The migration writes
// it before the key is imported, so no key is here without it:
//
//	setting "alias.finance" = "Finance"
//
// It stays when the key is deleted or the migration is finished: EDEKs keep their
// spelling.
func SetAlias(ctx context.Context, s Settings, name string) error {
	return s.SetSetting(ctx, aliasPrefix+claviger.FoldName(name), name)
}

// Alias returns the name under which a key is here whose source folded case, for
// any spelling of it; ok is false where no such key was migrated. The key itself may
// have been deleted since. Who looks for a key asks for the exact name first.
func Alias(ctx context.Context, s Settings, name string) (here string, ok bool, err error) {
	fold := claviger.FoldName(name)
	here, ok, err = s.Setting(ctx, aliasPrefix+fold)
	if before := strings.ToLower(name); err == nil && !ok && before != fold {
		// As it was written before names were folded as Java does.
		if here, ok, err = s.Setting(ctx, aliasPrefix+before); ok && claviger.FoldName(here) != fold {
			here, ok = "", false
		}
	}
	return here, ok, err
}
