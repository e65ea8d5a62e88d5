package storetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/metastore"
)

// The test Kill starts the test binary again, as a child, with these two environment variables: the store's location,
// and the number of the first key to write.
const (
	envLocation = "CLAVIGER_STORETEST_LOCATION"
	envFirst    = "CLAVIGER_STORETEST_FIRST"
)

// Main runs the tests of a binary, or the child's writing if the environment demands it. TestMain calls it:
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m, open)) }
func Main(m *testing.M, open func(ctx context.Context, location string) (metastore.Store, error)) int {
	location := os.Getenv(envLocation)
	if location == "" {
		return m.Run()
	}
	first, err := strconv.Atoi(os.Getenv(envFirst))
	if err == nil {
		err = writeForever(context.Background(), open, location, first)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// The steps that the child does with each key, in order. After each step it writes a line "KEY STEP [NUMBER]" to
// standard output.
const (
	stepNumber = iota
	stepBegin
	stepInsert
	stepAppend
	stepUse
	stepPut
	stepSoftDelete
	stepUndelete
	stepRemove
	steps
)

func childKey(n int) string { return fmt.Sprintf("key%05d", n) }

func writeForever(ctx context.Context, open func(context.Context, string) (metastore.Store, error), location string,
	first int) error {
	s, err := open(ctx, location)
	if err != nil {
		return err
	}
	if _, err := s.Lock(ctx, "kill"); err != nil {
		return err
	}
	// The child before this one may have been killed between Begin and Drop of reserve. The next Begin would return
	// that step again, with a number that was already reported.
	if err := s.Drop(ctx, counted); err != nil {
		return err
	}
	for n := first; ; n++ {
		for step := range steps {
			number, err := writeStep(ctx, s, n, step)
			if err != nil {
				return err
			}
			if _, err := fmt.Printf("%d %d %s\n", n, step, number); err != nil {
				return err
			}
		}
	}
}

// writeStep does one step with key n. number is the number that stepNumber reserved.
func writeStep(ctx context.Context, s metastore.Store, n, step int) (number string, err error) {
	k := childKey(n)
	switch step {
	case stepNumber:
		number, err = reserve(ctx, s)
	case stepBegin:
		_, err = s.Begin(ctx, metastore.Intent{Key: k, Op: "create", Refs: refs(k + "a")})
	case stepInsert:
		err = s.Insert(ctx, key(k, k+"a"))
	case stepAppend:
		err = s.Append(ctx, k, version(k+"b", 1))
	case stepUse:
		err = s.AddUse(ctx, []metastore.Use{{Source: "s", Version: k, Op: "decrypt", Count: 1,
			Last: at(int64(n))}, {Source: "s", Version: k, Op: "reencrypt", Count: 1, Last: at(int64(n))}})
	case stepPut:
		err = s.Put(ctx, "run", k, []byte(k))
	case stepSoftDelete:
		err = s.SoftDelete(ctx, k)
	case stepUndelete:
		err = s.Undelete(ctx, k, k+"a")
	case stepRemove:
		_, err = s.Remove(ctx, k)
	}
	return number, err
}

// counted is the name of which the child reserves one number for each key that it writes.
const counted = "counted"

// reserve begins a step with one number, and drops it.
func reserve(ctx context.Context, s metastore.Store) (number string, err error) {
	in, err := s.Begin(ctx, metastore.Intent{Key: counted, Op: "roll", Refs: []metastore.Ref{{Object: "0bcc"}}})
	if err != nil {
		return "", err
	}
	return in.Refs[0].ID, s.Drop(ctx, counted)
}

// testKill kills a writing process several times, at moments that do not depend on its writes. Each step that the store
// confirmed must be in the store; the step that was running must be there completely or not at all.
func testKill(t *testing.T, b Backend, s metastore.Store, location string) {
	first, number := 0, -1
	for round := range 8 {
		n, step, numbers := runAndKill(t, location, first, time.Duration(3+7*round)*time.Millisecond)
		for _, got := range numbers {
			if got <= number {
				t.Fatalf("round %d: number %d was given after %d", round, got, number)
			}
			number = got
		}
		// The kill frees the child's lock. A database server may need some time to notice that the child is gone.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		free, err := s.Lock(ctx, "kill")
		cancel()
		if err != nil {
			t.Fatalf("round %d: the lock of a killed process is still held: %v", round, err)
		}
		free()
		again := b.open(t, location)
		if next, err := again.NextNumber(t.Context(), counted); err != nil || next <= number {
			t.Errorf("round %d: the next number is %d (%v), and %d was given", round, next, err, number)
		}
		for k := first; k <= n; k++ {
			last := steps - 1
			if k == n {
				last = step
			}
			checkKilled(t, again, k, last)
		}
		// The child may have begun the next key, but none after that.
		if step == steps-1 {
			checkKilled(t, again, n+1, -1)
		}
		if got, err := again.Get(t.Context(), childKey(n+2)); err != nil || got[0] != nil {
			t.Errorf("a key that the child did not write: %v, %v", got[0], err)
		}
		first = n + 2
		if t.Failed() {
			return
		}
	}
}

// runAndKill runs a child. It kills the child when the time after has passed since the child's first line. n is the
// last key that the child reported, step the last step of that key, and numbers are all numbers that the child
// reserved.
func runAndKill(t *testing.T, location string, first int, after time.Duration) (n, step int, numbers []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envLocation+"="+location, envFirst+"="+strconv.Itoa(first))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	started := false
	for lines.Scan() {
		var number int
		switch fields, _ := fmt.Sscanf(lines.Text(), "%d %d %d", &n, &step, &number); {
		case fields == 3:
			numbers = append(numbers, number)
		case fields != 2:
			t.Errorf("the child wrote %q", lines.Text())
		}
		if !started {
			started = true
			// Kill sends SIGKILL. This loop reads until then.
			defer time.AfterFunc(after, func() { _ = cmd.Process.Kill() }).Stop()
		}
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	if !started || stderr.Len() > 0 {
		t.Fatalf("child: %v: %s", err, stderr.String())
	}
	return n, step, numbers
}

// checkKilled checks key n after a kill. The child reported the steps up to done (-1: none); the step after done may be
// in the store or not.
func checkKilled(t *testing.T, s metastore.Store, n, done int) {
	t.Helper()
	ctx := t.Context()
	name := childKey(n)
	seen := stepOf(t, s, name)
	switch {
	case done >= stepUse && done < stepRemove:
		next := map[int]int{stepPut: stepSoftDelete, stepSoftDelete: stepSoftDelete, stepUndelete: stepRemove}
		if n, ok := next[done]; seen != stepAppend && (!ok || seen != n) {
			t.Errorf("%s: seen %d after step %d", name, seen, done)
		}
	case seen != done && seen != done+1 && done >= 0:
		t.Errorf("%s: seen %d after step %d", name, seen, done)
	}
	uses, err := s.Uses(ctx)
	must(t, err)
	count := 0
	for _, u := range uses {
		if u.Version == name && u.Count == 1 {
			count++
		}
	}
	if count != 0 && count != 2 || done >= stepUse && count == 0 || done < stepAppend && count != 0 {
		t.Errorf("%s: %d counters after step %d", name, count, done)
	}
	records, err := s.Records(ctx, "run")
	must(t, err)
	found := slices.ContainsFunc(records, func(r metastore.Record) bool {
		return r.Item == name && string(r.Data) == name
	})
	if found != (done >= stepPut) && (done != stepUse || !found) {
		t.Errorf("%s: record %v after step %d", name, found, done)
	}
}

// stepOf returns the last step whose result is visible in the key, its intent and the deleted keys. A step that changes
// none of them counts as the step before it.
func stepOf(t *testing.T, s metastore.Store, name string) int {
	t.Helper()
	ctx := t.Context()
	got, err := s.Get(ctx, name)
	must(t, err)
	pending, err := s.Pending(ctx)
	must(t, err)
	var intent *metastore.Intent
	for i := range pending {
		if pending[i].Key == name {
			intent = &pending[i]
		}
	}
	deleted, err := s.DeletedKeys(ctx)
	must(t, err)
	inDeleted := slices.IndexFunc(deleted, func(d metastore.DeletedKey) bool { return d.Name == name })
	switch {
	case inDeleted >= 0:
		if got[0] != nil || intent != nil || len(deleted[inDeleted].List) != 2 {
			t.Errorf("%s: deleted %+v, and also key %v, intent %v", name, deleted[inDeleted], got[0], intent)
		}
		return stepSoftDelete
	case got[0] == nil && intent == nil:
		return stepNumber
	case got[0] == nil && intent.Op == "create":
		return stepBegin
	case got[0] == nil && intent.Op == "delete":
		if len(intent.Refs) != 2 {
			t.Errorf("%s: intent %+v", name, intent)
		}
		return stepRemove
	case intent != nil:
		t.Errorf("%s: both a key and an intent %q", name, intent.Op)
		return stepNumber
	case len(got[0].List) == 1:
		return stepInsert
	}
	return stepAppend
}
