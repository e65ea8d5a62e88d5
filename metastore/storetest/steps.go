package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// begunStep begins a step whose version has the id.
func begunStep(t *testing.T, s metastore.Store, key, op, id string) metastore.Intent {
	t.Helper()
	i, err := s.Begin(t.Context(), metastore.Intent{Key: key, Op: op, Refs: refs(id)})
	must(t, err)
	return i
}

func wantPending(t *testing.T, s metastore.Store, want ...metastore.Intent) {
	t.Helper()
	got, err := s.Pending(t.Context())
	must(t, err)
	if len(got) != len(want) {
		t.Fatalf("Pending: %+v, want %+v", got, want)
	}
	for n, i := range want {
		if !got[n].Same(i) {
			t.Errorf("Pending: %+v, want %+v", got[n], i)
		}
	}
}

// testFinishCreate: a step that another process took or ended makes no key.
func testFinishCreate(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	first := begunStep(t, s, "k", "create", "01")
	wantKind(t, s.FinishCreate(ctx, first, key("k", "02")), claviger.Invalid)
	wantKind(t, s.FinishCreate(ctx, first, key("k", "01", "02")), claviger.Invalid)
	wantKind(t, s.FinishCreate(ctx, first, key("other", "01")), claviger.Invalid)

	taken, err := s.Take(ctx, first, "create")
	must(t, err)
	if !taken.Begun.After(first.Begun) {
		t.Errorf("begun %v, and taken %v", first.Begun, taken.Begun)
	}
	wantPending(t, s, taken)
	_, err = s.Take(ctx, first, "create")
	wantKind(t, err, claviger.Unavailable)
	wantKind(t, s.FinishCreate(ctx, first, key("k", "01")), claviger.Unavailable)

	must(t, s.Drop(ctx, "k"))
	_, err = s.Take(ctx, taken, "delete")
	wantKind(t, err, claviger.Unavailable)
	wantKind(t, s.FinishCreate(ctx, taken, key("k", "01")), claviger.Unavailable)

	second := begunStep(t, s, "k", "create", "02")
	wantKind(t, s.FinishCreate(ctx, taken, key("k", "01")), claviger.Unavailable)
	deletion, err := s.Take(ctx, second, "delete")
	must(t, err)
	wantKind(t, s.FinishCreate(ctx, second, key("k", "02")), claviger.Unavailable)
	if got, err := s.Get(ctx, "k"); err != nil || got[0] != nil {
		t.Errorf("a step that had ended made %+v, %v", got[0], err)
	}
	if deletion.Op != "delete" || deletion.Refs[0] != second.Refs[0] {
		t.Errorf("%+v", deletion)
	}
	wantPending(t, s, deletion)
	must(t, s.Drop(ctx, "k"))

	third := begunStep(t, s, "k", "create", "03")
	must(t, s.FinishCreate(ctx, third, key("k", "03")))
	wantPending(t, s)
	wantKind(t, s.FinishCreate(ctx, third, key("k", "03")), claviger.KeyExists)
	got, err := s.Get(ctx, "k")
	must(t, err)
	wantKey(t, got[0], key("k", "03"))
}

// testFinishRoll: a step that another process took or ended adds no version.
func testFinishRoll(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Insert(ctx, key("k", "01")))
	first := begunStep(t, s, "k", "roll", "02")
	wantKind(t, s.FinishRoll(ctx, first, version("03", 3)), claviger.Invalid)
	taken, err := s.Take(ctx, first, "roll")
	must(t, err)
	wantKind(t, s.FinishRoll(ctx, first, version("02", 2)), claviger.Unavailable)
	must(t, s.Drop(ctx, "k"))
	second := begunStep(t, s, "k", "roll", "03")
	wantKind(t, s.FinishRoll(ctx, taken, version("02", 2)), claviger.Unavailable)
	wantPending(t, s, second)
	must(t, s.FinishRoll(ctx, second, version("03", 3)))
	wantPending(t, s)
	wantKind(t, s.FinishRoll(ctx, second, version("03", 3)), claviger.Unavailable)
	got, err := s.Get(ctx, "k")
	must(t, err)
	if l := got[0].List; len(l) != 2 || !sameVersion(l[1], version("03", 3)) {
		t.Errorf("%+v", l)
	}
	none := begunStep(t, s, "none", "roll", "04")
	wantKind(t, s.FinishRoll(ctx, none, version("04", 4)), claviger.KeyNotFound)
	wantPending(t, s, none)
}

// testTakeDuringFinish: of two nodes, one finishes steps and the other takes them to destroy their objects. For each
// step exactly one of the two succeeds.
func testTakeDuringFinish(t *testing.T, b Backend, s metastore.Store, location string) {
	other := b.open(t, location)
	must(t, s.Insert(t.Context(), key("k", "00")))
	finished, versions := 0, 1
	for n := range 30 {
		id := fmt.Sprintf("0%d", n+10)
		i := begunStep(t, s, "k", "roll", id)
		var finish, take error
		var both sync.WaitGroup
		both.Go(func() { finish = s.FinishRoll(t.Context(), i, version(id, int64(n))) })
		both.Go(func() {
			time.Sleep((1<<(n/3) - 1) * 20 * time.Microsecond) // so that in some rounds it comes too late
			_, take = other.Take(t.Context(), i, "delete")
		})
		both.Wait()
		if (finish == nil) == (take == nil) {
			t.Fatalf("step %d: finished: %v; taken: %v", n, finish, take)
		}
		wantKind(t, errors.Join(finish, take), claviger.Unavailable)
		if finish == nil {
			finished++
			versions++
		}
		must(t, s.Drop(t.Context(), "k"))
	}
	t.Logf("%d of 30 steps were finished", finished)
	got, err := s.Get(t.Context(), "k")
	must(t, err)
	if len(got[0].List) != versions {
		t.Errorf("%d versions, want %d", len(got[0].List), versions)
	}
}

// stepCalls are calls of the methods that end steps.
func stepCalls(s metastore.Store) map[string]func(context.Context) error {
	i := metastore.Intent{Key: "k", Op: "roll", Refs: refs("02"), Begun: at(1)}
	create := metastore.Intent{Key: "new", Op: "create", Refs: refs("0f"), Begun: at(1)}
	return map[string]func(context.Context) error{
		"Take":         func(ctx context.Context) error { _, err := s.Take(ctx, i, "delete"); return err },
		"FinishRoll":   func(ctx context.Context) error { return s.FinishRoll(ctx, i, version("02", 1)) },
		"FinishCreate": func(ctx context.Context) error { return s.FinishCreate(ctx, create, key("new", "0f")) },
	}
}

// stepOperations are calls that begin, take and finish steps, see Operations.
func stepOperations() []Operation {
	var create, roll metastore.Intent
	begin := func(i *metastore.Intent, op, id string) func(context.Context, Full) error {
		return func(ctx context.Context, s Full) (err error) {
			*i, err = s.Begin(ctx, metastore.Intent{Key: "step", Op: op, Refs: refs(id)})
			return err
		}
	}
	return []Operation{
		{"Begin a creation", begin(&create, "create", "50")},
		{"Take", func(ctx context.Context, s Full) error {
			taken, err := s.Take(ctx, create, "create")
			if err == nil {
				create = taken
			}
			return err
		}},
		{"FinishCreate", func(ctx context.Context, s Full) error {
			return s.FinishCreate(ctx, create, key("step", "50"))
		}},
		{"Begin a roll", begin(&roll, "roll", "51")},
		{"FinishRoll", func(ctx context.Context, s Full) error { return s.FinishRoll(ctx, roll, version("51", 5)) }},
	}
}
