package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Named change undoes one property that the project promises.
type Named struct {
	Name          string
	File          string // relative to the module
	Before, After string
	Package       string // whose test must fail: ./provider/jceks
	Test          string // a regular expression, as of go test -run
}

// parseNamed reads a list of named changes. An entry is a line for each field,
// "before" and "after" are followed by the text itself, each line behind a
// tab. Empty lines and lines that begin with # are skipped.
func parseNamed(text []byte) ([]Named, error) {
	var all []Named
	var into *string
	for i, line := range strings.Split(string(text), "\n") {
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case strings.HasPrefix(line, "\t") && into != nil:
			*into += line[1:] + "\n"
			continue
		case line == "" || line[0] == '#':
			continue
		case field != "name" && len(all) == 0:
			return nil, fmt.Errorf("line %d: an entry begins with name", i+1)
		}
		into = nil
		switch field {
		case "name":
			all = append(all, Named{Name: value})
		case "file":
			all[len(all)-1].File = value
		case "package":
			all[len(all)-1].Package = value
		case "test":
			all[len(all)-1].Test = value
		case "before":
			into = &all[len(all)-1].Before
		case "after":
			into = &all[len(all)-1].After
		default:
			return nil, fmt.Errorf("line %d: %q is not a field", i+1, field)
		}
	}
	for _, n := range all {
		if n.Name == "" || n.File == "" || n.Before == "" || n.Package == "" || n.Test == "" || n.Before == n.After {
			return nil, fmt.Errorf("%s: a field is missing, or before and after are equal", n.Name)
		}
	}
	return all, nil
}

func readNamed(path string) ([]Named, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all, err := parseNamed(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// change returns the file with the change made. The file must have the lines Before
// exactly once; their indentation does not matter.
func (n Named) change(root string) ([]byte, error) {
	src, err := os.ReadFile(filepath.Join(root, n.File))
	if err != nil {
		return nil, err
	}
	lines, before := strings.SplitAfter(string(src), "\n"), strings.Split(strings.TrimSuffix(n.Before, "\n"), "\n")
	var places []int
	for i := 0; i+len(before) <= len(lines); i++ {
		if slices.EqualFunc(lines[i:i+len(before)], before, func(a, b string) bool {
			return strings.TrimSpace(a) == strings.TrimSpace(b)
		}) {
			places = append(places, i)
		}
	}
	if len(places) != 1 {
		return nil, fmt.Errorf("%s: the text before is %d times in %s, and should be there once",
			n.Name, len(places), n.File)
	}
	at := places[0]
	return []byte(strings.Join(lines[:at], "") + n.After + strings.Join(lines[at+len(before):], "")), nil
}

// errNotNoticed is the error for a named change whose test passes.
var errNotNoticed = errors.New("the test passes")
