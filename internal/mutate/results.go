package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// results are the outcomes of earlier runs. Each is appended to a file when it
// is known, so that the next run continues an interrupted run.
type results struct {
	path string
	of   map[string]outcome // by key
}

func openResults(path string, fresh bool) (*results, error) {
	r := &results{path: path, of: map[string]outcome{}}
	if fresh {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		// A last line without a line end was cut off, and is ignored.
		if key, o, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok && strings.HasSuffix(line, "\n") {
			r.of[key] = outcome(o)
		}
	}
	return r, nil
}

func (r *results) add(key string, o outcome) error {
	r.of[key] = o
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", key, o)
	return errors.Join(err, f.Close())
}

// known returns the outcome of a change. A killed change counts as killed while the
// code of its function is the same, because tests are mostly added; --fresh finds a
// change whose test was lost. A survivor is tried again when the state has changed.
func (r *results) known(state string, m Mutant) (outcome, bool) {
	if o, ok := r.of[keyOf(m.Function, m.ID)]; ok {
		return o, true
	}
	o, ok := r.of[keyOf(state, m.ID)]
	return o, ok
}

// keep is add for a change of this state.
func (r *results) keep(state string, m Mutant, o outcome) error {
	if o == survived {
		return r.add(keyOf(state, m.ID), o)
	}
	return r.add(keyOf(m.Function, m.ID), o)
}

// digest returns a digest of a package's Go files.
func digest(root, room string) (string, error) {
	names, err := filepath.Glob(filepath.Join(root, room, "*.go"))
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(name), len(src))
		h.Write(src)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func keyOf(digest, id string) string {
	sum := sha256.Sum256([]byte(digest + "\n" + id))
	return hex.EncodeToString(sum[:])
}

// sample takes the numbers of n mutants, from 1 and in order. They depend on the
// seed and the mutants' names alone: a change elsewhere in the package leaves
// most of them as they were.
func sample(all []Mutant, n int, seed string) (chosen []int) {
	for i := range all {
		chosen = append(chosen, i+1)
	}
	if n >= len(all) {
		return chosen
	}
	rank := func(n int) string { return keyOf(seed, all[n-1].ID) }
	slices.SortFunc(chosen, func(a, b int) int { return strings.Compare(rank(a), rank(b)) })
	chosen = chosen[:n]
	slices.Sort(chosen)
	return chosen
}

// reasonFor returns the reason why a survivor needs no test, or "". A reason whose
// name begins with "* " in place of room and function holds for all lines of that
// text.
func reasonFor(reasons map[string]string, id string) string {
	if r := reasons[id]; r != "" {
		return r
	}
	parts := strings.SplitN(id, " ", 3)
	if len(parts) < 3 {
		return ""
	}
	return reasons["* "+numbered.ReplaceAllString(parts[2], "")]
}

// numbered is the count at the end of a mutant's name.
var numbered = regexp.MustCompile(` #\d+$`)

// readReasons reads the file of survivors that need no test: the name of a
// survivor in a line, its reason in the next, behind a tab.
func readReasons(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	reasons, name := map[string]string{}, ""
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		reason, isReason := strings.CutPrefix(line, "\t")
		switch {
		case line == "" || line[0] == '#':
		case isReason && name != "" && strings.TrimSpace(reason) != "":
			reasons[name], name = strings.TrimSpace(reason), ""
		case isReason || name != "":
			return nil, fmt.Errorf("%s:%d: after each survivor's name its reason must follow", path, n)
		case reasons[line] != "":
			return nil, fmt.Errorf("%s:%d: the file has this survivor twice", path, n)
		default:
			name = line
		}
	}
	if name != "" {
		return nil, fmt.Errorf("%s: %s has no reason", path, name)
	}
	return reasons, s.Err()
}
