package main

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
)

// unitInCode finds code that reads a time of a property, with its unit.
var unitInCode = regexp.MustCompile(`uration\((?:[A-Za-z]+ ?\+ ?)?"([a-zA-Z._-]+)", time\.(Second|Millisecond)\)`)

// TestUnits: a time of a Hadoop property without a unit is read in the unit that hadoopconf.Values has.
func TestUnits(t *testing.T) {
	units := map[string]string{}
	goFiles(t, func(_, text string) {
		for _, m := range unitInCode.FindAllStringSubmatch(text, -1) {
			units[m[1]] = map[string]string{"Second": "s", "Millisecond": "ms"}[m[2]]
		}
	})
	for name, v := range hadoopconf.Values {
		if v.Type != "time" || strings.HasPrefix(name, "claviger.") {
			continue
		}
		found := slices.ContainsFunc(slices.Collect(maps.Keys(units)), func(end string) bool {
			return strings.HasSuffix(name, end) && units[end] == v.Unit
		})
		if !found {
			t.Errorf("no code reads %s in %q", name, v.Unit)
		}
	}
}
