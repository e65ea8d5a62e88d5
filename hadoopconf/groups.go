package hadoopconf

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"claviger/typo"
)

// GroupProviders and GroupProviderPrefix are the properties of Hadoop's CompositeGroupsMapping.
const (
	GroupProviders      = GroupMapping + ".providers"
	GroupProviderPrefix = GroupMapping + ".provider." // the provider's name follows
)

// CopyPrefix returns a copy of c in which each property whose name begins with from is also set under the name that
// begins with to. It replaces a property of that name. An error about the new property shows the name in the file.
func (c *Conf) CopyPrefix(from, to string) *Conf {
	moved := *c
	moved.props = maps.Clone(c.props)
	for name, p := range c.props {
		if rest, ok := strings.CutPrefix(name, from); ok {
			moved.props[to+rest] = p
		}
	}
	return &moved
}

// warnUnknownProvider warns of a property below GroupProviderPrefix that has no effect. Hadoop ignores such a property
// without a warning.
func (c *Conf) warnUnknownProvider(name string, known map[string]bool) {
	where := c.props[name].Where()
	rest := strings.TrimPrefix(name, GroupProviderPrefix)
	listed := strings.Split(c.String(GroupProviders), ",")
	if slices.Contains(listed, rest) {
		return
	}
	for _, provider := range listed {
		own, ok := strings.CutPrefix(rest, provider+".")
		if !ok {
			continue
		}
		if general := GroupMapping + "." + own; !known[general] {
			w := fmt.Sprintf("%s: property %s is not known and has no effect", where, name)
			if nearest, ok := typo.Nearest(general, slices.Sorted(maps.Keys(known))); ok {
				w += "; did you mean " + GroupProviderPrefix + provider + strings.TrimPrefix(nearest, GroupMapping) +
					"?"
			}
			c.warnings = append(c.warnings, w)
		}
		return
	}
	c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s has no effect: %s does not list its provider", where,
		name, GroupProviders))
}
