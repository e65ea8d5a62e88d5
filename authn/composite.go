package authn

import (
	"errors"
	"fmt"
	"os/user"
)

// NamedDirectory is one part of a composite directory.
type NamedDirectory struct {
	Name      string // as hadoop.security.group.mapping.providers lists it
	Directory Directory
}

// CompositeGroups is the directory of Hadoop's CompositeGroupsMapping. If combined is true, a user is in the groups
// of all parts; otherwise in the groups of the first part that has any.
// In Hadoop, a part that fails counts as a part without groups, and then a blacklist with a group does not exclude
// the user. Here the whole lookup fails if the part that failed could have changed the result.
func CompositeGroups(parts []NamedDirectory, combined bool) Directory {
	return func(name string) ([]string, error) {
		var groups []string
		seen := make(map[string]bool)
		known := false
		for _, part := range parts {
			found, err := part.Directory(name)
			var unknown user.UnknownUserError
			switch {
			case errors.As(err, &unknown):
				continue
			case err != nil:
				return nil, fmt.Errorf("group mapping provider %s: %w", part.Name, err)
			}
			known = true
			for _, g := range found {
				if !seen[g] {
					seen[g] = true
					groups = append(groups, g)
				}
			}
			if !combined && len(groups) > 0 {
				break
			}
		}
		if !known {
			return nil, user.UnknownUserError(name)
		}
		return groups, nil
	}
}
