package recovery

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"claviger"
	"claviger/metastore"
)

// undone has the changes since a backup that its restore would undo. It does not have versions that the backup does not
// know.
type undone struct {
	revived []string // versions that were deleted since; they could be used again
	deleted []string // versions that were brought back since; they would be deleted again
	changed []string // changes of metadata, as sentences
}

// lines returns the undone changes as restore lists them.
func (u undone) lines() (list []string) {
	for _, v := range u.revived {
		list = append(list, fmt.Sprintf("REVIVED  %s was deleted since the backup was written, and comes back", v))
	}
	for _, v := range u.deleted {
		list = append(list, fmt.Sprintf(
			"DELETED  %s was brought back since the backup was written, and is a deleted key's again", v))
	}
	for _, c := range u.changed {
		list = append(list, "CHANGED  "+c)
	}
	return list
}

// undoes compares a backup with the current store, which it would replace.
func undoes(ctx context.Context, backup, current metastore.Store) (u undone, err error) {
	then, thenAt, err := versionStates(ctx, backup)
	if err != nil {
		return u, err
	}
	now, nowAt, err := versionStates(ctx, current)
	if err != nil {
		return u, err
	}
	for v, at := range thenAt {
		switch is := nowAt[v]; {
		case at < is:
			u.deleted = append(u.deleted, v.name)
		case at > is:
			known, err := mayHaveHad(ctx, current, v.name)
			if err != nil {
				return u, err
			}
			if is != absent || known {
				u.revived = append(u.revived, v.name)
			}
		}
	}
	for name, k := range then {
		if other := now[name]; other != nil {
			for _, d := range differences(&k.Metadata, &other.Metadata) {
				u.changed = append(u.changed, name+": "+d)
			}
		}
	}
	slices.Sort(u.revived)
	slices.Sort(u.deleted)
	slices.Sort(u.changed)
	return u, nil
}

// mayHaveHad reports whether a store that lacks a version may have had it before: the store has given the number, or
// the version is from an older release and has no number. Other versions are newer than the store.
func mayHaveHad(ctx context.Context, s metastore.Store, version string) (bool, error) {
	n, numbered := claviger.VersionNumber(version)
	if !numbered {
		return true, nil
	}
	key, _ := claviger.KeyOfVersion(version)
	return s.Numbered(ctx, key, n)
}

// differences describes how the metadata of a key in a backup differ from the current metadata.
func differences(then, now *claviger.Metadata) (list []string) {
	differ := func(what, was, is string) {
		if was != is {
			list = append(list, fmt.Sprintf("%s is %s now, and %s in the backup", what, is, was))
		}
	}
	text := func(s *string) string {
		if s == nil {
			return "unset"
		}
		return fmt.Sprintf("%q", *s)
	}
	attribute := func(m *claviger.Metadata, name string) string {
		if v, ok := m.Attributes[name]; ok {
			return fmt.Sprintf("%q", v)
		}
		return "unset"
	}
	names := map[string]bool{}
	for _, m := range []*claviger.Metadata{then, now} {
		for name := range m.Attributes {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		differ("attribute "+name, attribute(then, name), attribute(now, name))
	}
	differ("the description", text(then.Description), text(now.Description))
	differ("the cipher", then.Cipher, now.Cipher)
	differ("the length", fmt.Sprint(then.BitLength), fmt.Sprint(now.BitLength))
	return list
}
