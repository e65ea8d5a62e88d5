package claviger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// PropertyError says that the value of a property of the configuration cannot be used.
// The room that reads it does not know where it was set; whoever opened the
// configuration does, and adds file and line.
type PropertyError struct {
	Name  string
	Value string // as it was understood; "" where Want shows it
	Want  string // what would be right, or what to do
	Err   error  // what showed it; may be nil. Want says it too
}

// BadProperty makes a PropertyError whose value stands in want.
func BadProperty(name string, err error, want string, args ...any) *PropertyError {
	return &PropertyError{Name: name, Want: fmt.Sprintf(want, args...), Err: err}
}

func (e *PropertyError) Error() string {
	if e.Value == "" {
		return "property " + e.Name + ": " + e.Want
	}
	return fmt.Sprintf("property %s has the value %q; %s", e.Name, e.Value, e.Want)
}

func (e *PropertyError) Unwrap() error { return e.Err }

// NamesWith is the whole value to give to a property that is a comma list of names: those that
// it has, and more. A message that named the new ones alone would have an operator take the
// others out.
func NamesWith(set map[string]bool, more ...string) string {
	names := slices.Sorted(maps.Keys(set))
	for _, name := range more {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = Printable(name)
	}
	return strings.Join(names, ",")
}
