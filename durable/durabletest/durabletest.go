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
	// Do writes, and closes what it has opened, unless that is for Close.
	Do func(dir string) error
	// Close, if not nil, closes what Do has left open, after the power was cut: where
	// Do promises something before it is closed.
	Close func()
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
	s, err := newSuite(t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	faults, err := s.faults()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
	blind, err := s.blind()
	if err != nil {
		t.Fatal(err)
	}
	if len(blind) > c.Spare {
		t.Errorf("%d syncs may be left out unnoticed, %d are allowed to: %q", len(blind), c.Spare, blind)
	}
}

// Faults returns the promises that a writer breaks. It does not ask which syncs are
// missed.
func Faults(t *testing.T, c Case) []string {
	t.Helper()
	s, err := newSuite(t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	faults, err := s.faults()
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

func (c *Case) close() {
	if c.Close != nil {
		c.Close()
	}
}

func quickly(dir string, do func(string) error) error {
	defer durable.Mount(dir, new(quick))()
	return do(dir)
}

// suite is a case and what it does without a fault.
type suite struct {
	Case
	tmp   string
	after string
	right []string // what Look may say
	steps []string
	syncs []int
	runs  int
}

// newSuite runs a case without a fault.
func newSuite(tmp string, c Case) (*suite, error) {
	before, after, good, err := plain(filepath.Join(tmp, "plain"), c)
	if err != nil {
		return nil, err
	}
	good.close()
	return &suite{Case: c, tmp: tmp, after: after, right: append([]string{before, after}, c.Between...),
		steps: good.steps, syncs: good.syncs}, nil
}

// one says what is wrong after one run, and a power cut with what survives it.
func (s *suite) one(at int, f fault, end int, left *survival) (found []string, err error) {
	s.runs++
	dir := filepath.Join(s.tmp, fmt.Sprint(s.runs))
	tr, err := try(dir, s.Case, at, f, end)
	if err != nil {
		return nil, err
	}
	defer tr.close()
	if left != nil {
		if err := tr.cut(*left); err != nil {
			return nil, err
		}
	}
	s.close()
	got, lookErr := s.Look(dir)
	switch {
	case lookErr != nil:
		found = append(found, "nothing can be done with what is left: "+lookErr.Error())
	case tr.err == nil && got != s.after:
		found = append(found, fmt.Sprintf("said to be done, but there is %q, want %q", got, s.after))
	case !slices.Contains(s.right, got):
		found = append(found, fmt.Sprintf("there is %q, want one of %q", got, s.right))
	case !s.NoRetry && got != s.after:
		err := quickly(dir, s.Do)
		s.close()
		if err != nil {
			found = append(found, "cannot be done again: "+err.Error())
		} else if got, err := s.Look(dir); err != nil || got != s.after {
			found = append(found, fmt.Sprintf("done again, there is %q (%v), want %q", got, err, s.after))
		}
	}
	return found, os.RemoveAll(dir)
}

// all is one with each survival.
func (s *suite) all(what string, at int, f fault, end int) (found []string, err error) {
	for _, left := range survivals {
		some, err := s.one(at, f, end, &left)
		if err != nil {
			return nil, err
		}
		for _, text := range some {
			found = append(found, what+", "+left.text+": "+text)
		}
	}
	return found, nil
}

// faults are the promises broken, with a fault at each step.
func (s *suite) faults() (faults []string, err error) {
	faults, err = s.all("no fault, then the power fails", 0, none, 0)
	for at := 1; at <= len(s.steps) && err == nil; at++ {
		what := fmt.Sprintf("step %d of %d, %s", at, len(s.steps), s.steps[at-1])
		var failed, cut, off []string
		failed, err = s.one(at, fails, 0, nil)
		for i := range failed {
			failed[i] = what + ", fails: " + failed[i]
		}
		if err == nil {
			cut, err = s.all(what+", fails, then the power fails", at, fails, 0)
		}
		if err == nil {
			off, err = s.all(what+", the power fails", 0, none, at)
		}
		faults = slices.Concat(faults, failed, cut, off)
	}
	return faults, err
}

// blind are the syncs that are not missed: without them, a power cut at the end or
// at a later step does not show.
func (s *suite) blind() (blind []string, err error) {
	for _, at := range s.syncs {
		missed := false
		for end := len(s.steps) + 1; end > at && !missed && err == nil; end-- {
			var found []string
			found, err = s.all("", at, lies, end)
			missed = len(found) > 0
		}
		if !missed {
			blind = append(blind, fmt.Sprintf("step %d, %s", at, s.steps[at-1]))
		}
	}
	return blind, err
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
	c.close()
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
