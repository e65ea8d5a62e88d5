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

// The crash test starts the test binary again, with these two in its
// environment: where the store is, and the number of the first key to write.
const (
	envWhere = "CLAVIGER_STORETEST_WHERE"
	envFirst = "CLAVIGER_STORETEST_FIRST"
)

// Main is what the TestMain of a backend's test calls:
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m, open)) }
func Main(m *testing.M, open func(ctx context.Context, where string) (metastore.Store, error)) int {
	where := os.Getenv(envWhere)
	if where == "" {
		return m.Run()
	}
	first, err := strconv.Atoi(os.Getenv(envFirst))
	if err == nil {
		err = writeForever(context.Background(), open, where, first)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// The steps that the child does to each key, in order. It says so on standard
// output when the store has returned from one.
const (
	stepNumber = iota
	stepBegin
	stepInsert
	stepAppend
	stepUse
	stepPut
	stepShelve
	stepUnshelve
	stepRemove
	steps
)

func childKey(n int) string { return fmt.Sprintf("key%05d", n) }

func writeForever(ctx context.Context, open func(context.Context, string) (metastore.Store, error), where string,
	first int) error {
	s, err := open(ctx, where)
	if err != nil {
		return err
	}
	if _, err := s.Lock(ctx, "kill"); err != nil {
		return err
	}
	// The child before this one may have reported the number of what it left.
	if err := s.Drop(ctx, counted); err != nil {
		return err
	}
	for n := first; ; n++ {
		k := childKey(n)
		for step := range steps {
			number := ""
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
			case stepShelve:
				err = s.Shelve(ctx, k)
			case stepUnshelve:
				err = s.Unshelve(ctx, k, k+"a")
			case stepRemove:
				_, err = s.Remove(ctx, k)
			}
			if err != nil {
				return err
			}
			if _, err := fmt.Printf("%d %d %s\n", n, step, number); err != nil {
				return err
			}
		}
	}
}

// counted is a name whose numbers the child reserves, one a round, and gives up.
const counted = "counted"

// reserve begins a step with one number, and drops it.
func reserve(ctx context.Context, s metastore.Store) (number string, err error) {
	in, err := s.Begin(ctx, metastore.Intent{Key: counted, Op: "roll", Refs: []metastore.Ref{{Object: "0bcc"}}})
	if err != nil {
		return "", err
	}
	return in.Refs[0].ID, s.Drop(ctx, counted)
}

// testKill kills a process that writes, over and over, at moments that have
// nothing to do with what it is writing: what the store had returned from is
// there, what it was in is there wholly or not at all.
func testKill(t *testing.T, b Backend, s metastore.Store, where string) {
	first, number := 0, -1
	for round := range 8 {
		n, step, numbers := killed(t, where, first, time.Duration(3+7*round)*time.Millisecond)
		for _, got := range numbers {
			if got <= number {
				t.Fatalf("round %d: number %d was given after %d", round, got, number)
			}
			number = got
		}
		// The child's lock died with it. A server that kept it may take a moment to
		// notice.
		patient, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		free, err := s.Lock(patient, "kill")
		cancel()
		if err != nil {
			t.Fatalf("round %d: the lock of a killed process is still held: %v", round, err)
		}
		free()
		again := b.open(t, where)
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
		// The next one may have been begun, and no other.
		if step == steps-1 {
			checkKilled(t, again, n+1, -1)
		}
		if got, err := again.Get(t.Context(), childKey(n+2)); err != nil || got[0] != nil {
			t.Errorf("a key that nobody wrote: %v, %v", got[0], err)
		}
		first = n + 2
		if t.Failed() {
			return
		}
	}
}

// killed runs a child and kills it some time after its first word. It returns
// the last step that the child is known to have done, and the numbers that it was
// given.
func killed(t *testing.T, where string, first int, after time.Duration) (n, step int, numbers []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envWhere+"="+where, envFirst+"="+strconv.Itoa(first))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	heard := false
	for lines.Scan() {
		var number int
		switch had, _ := fmt.Sscanf(lines.Text(), "%d %d %d", &n, &step, &number); {
		case had == 3:
			numbers = append(numbers, number)
		case had != 2:
			t.Errorf("child said %q", lines.Text())
		}
		if !heard {
			heard = true
			// Kill is SIGKILL. It comes while this loop goes on reading.
			defer time.AfterFunc(after, func() { _ = cmd.Process.Kill() }).Stop()
		}
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	if !heard || stderr.Len() > 0 {
		t.Fatalf("child: %v: %s", err, stderr.String())
	}
	return n, step, numbers
}

// checkKilled checks a key of which the steps up to done are known to be done;
// the one after it may be done too.
func checkKilled(t *testing.T, s metastore.Store, n, done int) {
	t.Helper()
	ctx := t.Context()
	name := childKey(n)
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
	deleted, err := s.Shelved(ctx)
	must(t, err)
	onShelf := slices.IndexFunc(deleted, func(d metastore.Shelved) bool { return d.Name == name })
	// How far the key has come, by what is seen of it.
	seen := stepNumber
	switch {
	case onShelf >= 0:
		seen = stepShelve
		if got[0] != nil || intent != nil || len(deleted[onShelf].List) != 2 {
			t.Errorf("%s: shelved %+v; at once key %v, intent %v", name, deleted[onShelf], got[0], intent)
		}
	case got[0] == nil && intent == nil:
	case got[0] == nil && intent.Op == "create":
		seen = stepBegin
	case got[0] == nil && intent.Op == "delete":
		seen = stepRemove
		if len(intent.Refs) != 2 {
			t.Errorf("%s: intent %+v", name, intent)
		}
	case intent != nil:
		t.Errorf("%s: key and intent %q at once", name, intent.Op)
	case len(got[0].List) == 1:
		seen = stepInsert
	default:
		seen = stepAppend // or a later one that does not change the key
	}
	switch {
	case done >= stepUse && done < stepRemove:
		next := map[int]int{stepPut: stepShelve, stepShelve: stepShelve, stepUnshelve: stepRemove}
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
	found := false
	for _, r := range records {
		found = found || r.Item == name && string(r.Data) == name
	}
	if found != (done >= stepPut) && (done != stepUse || !found) {
		t.Errorf("%s: record %v after step %d", name, found, done)
	}
}
