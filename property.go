package claviger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// PropertyError is the error for a value of a property of the configuration that cannot be used. The package that reads
// the value does not know where it was set, so the code that opened the configuration adds file and line.
type PropertyError struct {
	Name  string
	Value string // as it was read; "" if Want has it
	Want  string // the values that can be used, or what to do
	Err   error  // the cause, which Want has too; may be nil
}

// BadProperty makes a PropertyError whose Want has the value.
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

// NamesWith returns the whole new value of a property that is a comma list of names: the names in set, and more. A
// message with the new names alone would make an operator remove the others.
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
