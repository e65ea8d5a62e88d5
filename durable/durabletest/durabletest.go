// Package durabletest is the suite for code that writes durable files. It runs a writer on a disk on which each step in
// turn fails, or loses power, and then checks the files that are left.
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
	// Setup makes the files that exist before Do; nil makes none.
	Setup func(dir string) error
	// Do writes, and closes its files. It may leave files open for Close.
	Do func(dir string) error
	// Close, if it is not nil, closes the files that Do has left open, after the power cut. It is for a writer whose
	// files must be durable before they are closed.
	Close func()
	// State returns the state that the program finds, as text. Its error means that the program cannot continue with
	// these files.
	State func(dir string) (string, error)
	// Between are results of State that are also correct after a power cut during Do. The results before and after Do
	// are always correct.
	Between []string
	// NoRetry says that Do is not called again after each fault.
	NoRetry bool
	// UnneededSyncs is the number of syncs that may be missing without a failure of the suite, for example the syncs
	// of files that a killed process may have left.
	UnneededSyncs int
}

// Run demands that the files are correct after every fault, and that the suite would fail for every sync that is left
// out.
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
	unneeded, err := s.unneededSyncs()
	if err != nil {
		t.Fatal(err)
	}
	if len(unneeded) > c.UnneededSyncs {
		t.Errorf("the suite does not fail without %d syncs, %d are allowed: %q", len(unneeded), c.UnneededSyncs,
			unneeded)
	}
}

// Faults returns the faults of a writer. It does not check whether all syncs are needed.
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
	err error // the error of Do
}

// try runs a case with a fault at the step faultAt and a power cut before the step cutAt; 0 means no step.
func try(dir string, c Case, faultAt int, f fault, cutAt int) (tr *trial, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if c.Setup != nil {
		if err := withoutSync(dir, c.Setup); err != nil {
			return nil, fmt.Errorf("Setup: %w", err)
		}
	}
	tr = new(trial)
	if tr.disk, err = newDisk(dir); err != nil {
		return nil, err
	}
	tr.faultAt, tr.fault, tr.cutAt = faultAt, f, cutAt
	defer durable.Mount(dir, tr.disk)()
	tr.err = c.Do(dir)
	return tr, nil
}

// noSync is the operating system's file system without syncs, which take time.
type noSync struct{ durable.OS }

type noSyncFile struct{ durable.File }

func (*noSync) SyncFolder(string) error { return nil }
func (noSyncFile) Sync() error          { return nil }

func (n *noSync) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := n.OS.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	return noSyncFile{f}, nil
}

func (c *Case) close() {
	if c.Close != nil {
		c.Close()
	}
}

func withoutSync(dir string, do func(string) error) error {
	defer durable.Mount(dir, new(noSync))()
	return do(dir)
}

// suite is a case, and the results of a run without a fault.
type suite struct {
	Case
	tmp     string
	after   string   // result of State after Do
	correct []string // results of State that are correct
	steps   []string
	syncs   []int
	runs    int
}

// newSuite runs a case without a fault.
func newSuite(tmp string, c Case) (*suite, error) {
	before, after, good, err := plain(filepath.Join(tmp, "plain"), c)
	if err != nil {
		return nil, err
	}
	good.close()
	return &suite{Case: c, tmp: tmp, after: after, correct: append([]string{before, after}, c.Between...),
		steps: good.steps, syncs: good.syncs}, nil
}

// check runs the case once, with a fault and a power cut as in try, and returns what is wrong after that. If left is
// not nil, the power is also cut at the end, and left says what survives.
func (s *suite) check(faultAt int, f fault, cutAt int, left *survival) (found []string, err error) {
	s.runs++
	dir := filepath.Join(s.tmp, fmt.Sprint(s.runs))
	tr, err := try(dir, s.Case, faultAt, f, cutAt)
	if err != nil {
		return nil, err
	}
	defer tr.close()
	if left != nil {
		if err := tr.cutPower(*left); err != nil {
			return nil, err
		}
	}
	s.close()
	got, stateErr := s.State(dir)
	switch {
	case stateErr != nil:
		found = append(found, "the program cannot continue with the files: "+stateErr.Error())
	case tr.err == nil && got != s.after:
		found = append(found, fmt.Sprintf("Do returned nil, but the state is %q, want %q", got, s.after))
	case !slices.Contains(s.correct, got):
		found = append(found, fmt.Sprintf("the state is %q, want one of %q", got, s.correct))
	case !s.NoRetry && got != s.after:
		err := withoutSync(dir, s.Do)
		s.close()
		if err != nil {
			found = append(found, "a retry failed: "+err.Error())
		} else if got, err := s.State(dir); err != nil || got != s.after {
			found = append(found, fmt.Sprintf("after a retry the state is %q (%v), want %q", got, err, s.after))
		}
	}
	return found, os.RemoveAll(dir)
}

// checkAll runs check once for each of survivals, and says in each result what survived.
func (s *suite) checkAll(what string, faultAt int, f fault, cutAt int) (found []string, err error) {
	for _, left := range survivals {
		some, err := s.check(faultAt, f, cutAt, &left)
		if err != nil {
			return nil, err
		}
		for _, text := range some {
			found = append(found, what+", "+left.text+": "+text)
		}
	}
	return found, nil
}

// faults returns what is wrong after a fault or a power cut at any step.
func (s *suite) faults() (faults []string, err error) {
	faults, err = s.checkAll("no fault, then the power fails", 0, none, 0)
	for n := 1; n <= len(s.steps) && err == nil; n++ {
		what := fmt.Sprintf("step %d of %d, %s", n, len(s.steps), s.steps[n-1])
		var failed, failedThenCut, cut []string
		failed, err = s.check(n, fails, 0, nil)
		for i := range failed {
			failed[i] = what + ", fails: " + failed[i]
		}
		if err == nil {
			failedThenCut, err = s.checkAll(what+", fails, then the power fails", n, fails, 0)
		}
		if err == nil {
			cut, err = s.checkAll(what+", the power fails", 0, none, n)
		}
		faults = slices.Concat(faults, failed, failedThenCut, cut)
	}
	return faults, err
}

// unneededSyncs returns the syncs without which the suite does not fail: the files are correct after a power cut at the
// end or at a later step, although the sync was left out.
func (s *suite) unneededSyncs() (unneeded []string, err error) {
	for _, n := range s.syncs {
		needed := false
		for cutAt := len(s.steps) + 1; cutAt > n && !needed && err == nil; cutAt-- {
			var found []string
			found, err = s.checkAll("", n, skipped, cutAt)
			needed = len(found) > 0
		}
		if !needed {
			unneeded = append(unneeded, fmt.Sprintf("step %d, %s", n, s.steps[n-1]))
		}
	}
	return unneeded, err
}

// plain runs a case without a fault. before and after are the results of State before and after Do.
func plain(dir string, c Case) (before, after string, tr *trial, err error) {
	empty := c
	empty.Do = func(string) error { return nil }
	if tr, err = try(dir+"-before", empty, 0, none, 0); err != nil {
		return "", "", nil, err
	}
	tr.close()
	if before, err = c.State(dir + "-before"); err != nil {
		return "", "", nil, fmt.Errorf("State before: %w", err)
	}
	if tr, err = try(dir, c, 0, none, 0); err != nil {
		return "", "", nil, err
	}
	c.close()
	if err = tr.err; err == nil {
		after, err = c.State(dir)
	}
	if err == nil && before == after {
		err = errors.New("State returns the same text before and after Do: " + after)
	}
	if err == nil && len(tr.syncs) == 0 {
		err = errors.New("Do syncs nothing through package durable")
	}
	return before, after, tr, err
}
