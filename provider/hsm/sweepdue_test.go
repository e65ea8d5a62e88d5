package hsm

import (
	"testing"
	"time"

	"claviger/metastore"
)

// TestDueOfAnotherProcess: a step of another process is due sweepLeftAfter after it began, or, if its clock was ahead,
// after it was first seen. A later step of the same key has a time of its own: it may still run.
func TestDueOfAnotherProcess(t *testing.T) {
	var f failedSteps
	now := time.Now()
	step := func(begun time.Duration) metastore.Intent {
		return metastore.Intent{Key: "k", Op: opRoll, Begun: now.Add(begun)}
	}
	ahead := step(time.Hour)
	for i, c := range []struct {
		step metastore.Intent
		at   time.Duration
		due  bool
	}{
		{step(-sweepLeftAfter), 0, true},
		{step(0), sweepLeftAfter - 1, false},
		{step(0), sweepLeftAfter, true},
		{ahead, 0, false},
		{ahead, sweepLeftAfter - 1, false},
		{ahead, sweepLeftAfter, true},
		{step(2 * time.Hour), sweepLeftAfter, false},
		{step(2 * time.Hour), 2 * sweepLeftAfter, true},
	} {
		if got := f.due(c.step, now.Add(c.at)); got != c.due {
			t.Errorf("case %d: due %t", i, got)
		}
	}
	f.forget("k")
	if f.due(step(2*time.Hour), now.Add(3*sweepLeftAfter)) {
		t.Error("due, after the step was forgotten and seen again")
	}
	f.keep(step(-time.Hour))
	if f.due(step(-time.Hour), now) || !f.due(step(-2*time.Hour), now) {
		t.Error("the kept step is due, or another step of its key is not")
	}
}
