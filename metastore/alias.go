package metastore

import (
	"context"
	"strings"
)

// aliasPrefix begins the names of the settings that Alias reads.
const aliasPrefix = "alias."

// FoldName is the spelling that all spellings of a key's name have in common at a
// source that folds case: Java's keystores (JCEKS, and so Hadoop's Java KMS) and
// Ranger's store both keep names in lower case, by Java's rules for English.
func FoldName(name string) string { return strings.ToLower(name) }

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
	return s.SetSetting(ctx, aliasPrefix+FoldName(name), name)
}

// Alias returns the name under which a key is here whose source folded case, for
// any spelling of it; ok is false where no such key was migrated. The key itself may
// have been deleted since. Who looks for a key asks for the exact name first.
func Alias(ctx context.Context, s Settings, name string) (here string, ok bool, err error) {
	return s.Setting(ctx, aliasPrefix+FoldName(name))
}
