// Package durabletest is the suite of all that writes files that must last. It
// has a writer work on a disk that fails, or loses power, at each step, and
// looks at what is left.
package durabletest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"claviger/durable"
)

// Case is one writer.
type Case struct {
	// Setup makes what is in the folder before; nil: nothing.
	Setup func(dir string) error
	// Do writes. It closes what it has opened.
	Do func(dir string) error
	// Look reads back what the program would find, as text. Its error means that
	// the program cannot go on with what it finds.
	Look func(dir string) (string, error)
	// Between are texts of Look that are right while Do is under way, beside those
	// before and after it.
	Between []string
	// NoRetry leaves out that Do is done again after each fault.
	NoRetry bool
	// Spare is how many syncs may be left out unnoticed: those of what a killed
	// predecessor may have left, for one.
	Spare int
}

// Run demands that a writer keeps its promise at every fault, and that the test
// would find every sync that is left out.
func Run(t *testing.T, c Case) {
	t.Helper()
	faults, blind, err := check(t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
	if len(blind) > c.Spare {
		t.Errorf("%d syncs may be left out unnoticed, %d are allowed to: %q", len(blind), c.Spare, blind)
	}
}

// Faults returns the promises that a writer breaks.
func Faults(t *testing.T, c Case) []string {
	t.Helper()
	faults, _, err := check(t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	return faults
}

// trial is one run of a case.
type trial struct {
	*disk
	err error // of Do
}

// try does a case with a fault at one step, and without power from another on; 0
// is no step.
func try(dir string, c Case, at int, f fault, end int) (tr *trial, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if c.Setup != nil {
		if err := quickly(dir, c.Setup); err != nil {
			return nil, fmt.Errorf("Setup: %w", err)
		}
	}
	tr = new(trial)
	if tr.disk, err = newDisk(dir); err != nil {
		return nil, err
	}
	tr.at, tr.fault, tr.end = at, f, end
	defer durable.Mount(dir, tr.disk)()
	tr.err = c.Do(dir)
	return tr, nil
}

// quick is the operating system without waiting for the disk.
type quick struct{ durable.OS }

type quickFile struct{ durable.File }

func (*quick) SyncFolder(string) error { return nil }
func (quickFile) Sync() error          { return nil }

func (q *quick) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := q.OS.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	return quickFile{f}, nil
}

func quickly(dir string, do func(string) error) error {
	defer durable.Mount(dir, new(quick))()
	return do(dir)
}

// check returns the promises broken, and the syncs that are not missed.
func check(tmp string, c Case) (faults, blind []string, err error) {
	before, after, good, err := plain(filepath.Join(tmp, "plain"), c)
	if err != nil {
		return nil, nil, err
	}
	defer good.close()
	right := append([]string{before, after}, c.Between...)
	runs := 0
	// one says what is wrong after one run, and a power cut with what survives it.
	one := func(at int, f fault, end int, s *survival) (found []string, err error) {
		runs++
		dir := filepath.Join(tmp, fmt.Sprint(runs))
		tr, err := try(dir, c, at, f, end)
		if err != nil {
			return nil, err
		}
		defer tr.close()
		if s != nil {
			if err := tr.cut(*s); err != nil {
				return nil, err
			}
		}
		got, lookErr := c.Look(dir)
		switch {
		case lookErr != nil:
			found = append(found, "nothing can be done with what is left: "+lookErr.Error())
		case tr.err == nil && got != after:
			found = append(found, fmt.Sprintf("said to be done, but there is %q, want %q", got, after))
		case !slices.Contains(right, got):
			found = append(found, fmt.Sprintf("there is %q, want one of %q", got, right))
		case !c.NoRetry && got != after:
			if err := quickly(dir, c.Do); err != nil {
				found = append(found, "cannot be done again: "+err.Error())
			} else if got, err := c.Look(dir); err != nil || got != after {
				found = append(found, fmt.Sprintf("done again, there is %q (%v), want %q", got, err, after))
			}
		}
		return found, os.RemoveAll(dir)
	}
	// all is one with each survival.
	all := func(what string, at int, f fault, end int) (found []string, err error) {
		for _, s := range survivals {
			some, err := one(at, f, end, &s)
			if err != nil {
				return nil, err
			}
			for _, text := range some {
				found = append(found, what+", "+s.text+": "+text)
			}
		}
		return found, nil
	}
	faults, err = all("no fault, then the power fails", 0, none, 0)
	for at := 1; at <= len(good.steps) && err == nil; at++ {
		what := fmt.Sprintf("step %d of %d, %s", at, len(good.steps), good.steps[at-1])
		var failed, cut, off []string
		failed, err = one(at, fails, 0, nil)
		for i := range failed {
			failed[i] = what + ", fails: " + failed[i]
		}
		if err == nil {
			cut, err = all(what+", fails, then the power fails", at, fails, 0)
		}
		if err == nil {
			off, err = all(what+", the power fails", 0, none, at)
		}
		faults = slices.Concat(faults, failed, cut, off)
	}
	for _, at := range good.syncs {
		// Without the sync, a power cut at the end or at a later step must show.
		missed := false
		for end := len(good.steps) + 1; end > at && !missed && err == nil; end-- {
			var found []string
			found, err = all("", at, lies, end)
			missed = len(found) > 0
		}
		if !missed {
			blind = append(blind, fmt.Sprintf("step %d, %s", at, good.steps[at-1]))
		}
	}
	return faults, blind, err
}

// plain runs a case without a fault.
func plain(dir string, c Case) (before, after string, tr *trial, err error) {
	empty := c
	empty.Do = func(string) error { return nil }
	if tr, err = try(dir+"-before", empty, 0, none, 0); err != nil {
		return "", "", nil, err
	}
	tr.close()
	if before, err = c.Look(dir + "-before"); err != nil {
		return "", "", nil, fmt.Errorf("Look before: %w", err)
	}
	if tr, err = try(dir, c, 0, none, 0); err != nil {
		return "", "", nil, err
	}
	if err = tr.err; err == nil {
		after, err = c.Look(dir)
	}
	if err == nil && before == after {
		err = errors.New("Look tells nothing of what Do does: " + after)
	}
	if err == nil && len(tr.syncs) == 0 {
		err = errors.New("Do syncs nothing through package durable")
	}
	return before, after, tr, err
}
