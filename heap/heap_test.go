package heap

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimit(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live, stacks, other uint64
		want                int64
	}{
		{0, 0, 0, leastLimit}, {6 * mib, 4 * mib, 12 * mib, leastLimit}, {12 * mib, 12 * mib, 25 * mib, 85 * mib},
		{20 * mib, 20 * mib, 40 * mib, 124 * mib}, {100 * mib, 100 * mib, 150 * mib, 450 * mib},
		{1024 * mib, 0, 30 * mib, 2078 * mib}, {math.MaxInt64, 0, 0, math.MaxInt64 / 2},
	} {
		if got := limit(c.live, c.stacks, c.other); got != c.want {
			t.Errorf("%d live, %d stacks, %d other: %d, want %d", c.live, c.stacks, c.other, got, c.want)
		}
	}
}

// present returns growth and limit as they are set.
func present() (percent int, limit int64) {
	limit = debug.SetMemoryLimit(-1) // a negative limit changes nothing
	percent = debug.SetGCPercent(-1)
	debug.SetGCPercent(percent)
	return percent, limit
}

// unset takes variables out of the environment of this test.
func unset(t *testing.T, names ...string) {
	for _, n := range names {
		t.Setenv(n, "") // restores the variable at the end
		if err := os.Unsetenv(n); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitLimit collects until the limit is as wanted.
func awaitLimit(t *testing.T, when string, ok func(int64) bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(debug.SetMemoryLimit(-1)); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: the limit is %d", when, debug.SetMemoryLimit(-1))
		}
		runtime.GC()
	}
}

// TestManage: the limit rises while the live objects take much memory, and falls when they are gone.
func TestManage(t *testing.T) {
	unset(t, "GOGC", "GOMEMLIMIT")
	defer debug.SetGCPercent(debug.SetGCPercent(150))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Manage(ctx); close(done) }()
	awaitLimit(t, "few objects", func(l int64) bool { return l == leastLimit })
	if p, _ := present(); p != percent {
		t.Errorf("the heap grows by %d %%, want %d %%", p, percent)
	}
	large := make([]byte, 2*leastLimit)
	awaitLimit(t, "many objects", func(l int64) bool { return l >= 2*int64(len(large)) })
	runtime.KeepAlive(large)
	large = nil
	awaitLimit(t, "few objects again", func(l int64) bool { return l == leastLimit })
	stop()
	<-done
	if p, l := present(); p != 150 || l != math.MaxInt64 {
		t.Errorf("after the end: %d %%, limit %d; want 150 %%, and no limit", p, l)
	}
	large = make([]byte, 2*leastLimit)
	for range 3 {
		collect(t)
	}
	runtime.KeepAlive(large)
	if _, l := present(); l != math.MaxInt64 {
		t.Errorf("a collection after the end has set the limit %d", l)
	}
}

// collect runs a collection, and waits until it has run the cleanups of an object.
func collect(t *testing.T) {
	t.Helper()
	done := make(chan struct{})
	runtime.AddCleanup(&struct{ _ [64]byte }{}, func(c chan struct{}) { close(c) }, done)
	runtime.GC()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the cleanup of an object has not run")
	}
}

// TestStop: after stop no collection is awaited any more.
func TestStop(t *testing.T) {
	m := newManager()
	m.stop()
	_, before := present()
	if again := m.adjust(); again {
		t.Error("the next collection is awaited")
	}
	if _, l := present(); l != before {
		t.Errorf("the limit %d was set", l)
	}
}

// TestStart: the limit holds from the start, not only after a collection.
func TestStart(t *testing.T) {
	unset(t, "GOGC", "GOMEMLIMIT")
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		runtime.GC()
		before := collections()
		go Manage(ctx)
		synctest.Wait()
		if _, l := present(); l != leastLimit && collections() == before {
			t.Errorf("the limit is %d, want %d", l, leastLimit)
		}
	})
}

// collections returns how many collections have run.
func collections() uint32 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.NumGC
}

// TestIdleProcess: while the process is idle, Manage gives the memory that no object needs back to the system.
func TestIdleProcess(t *testing.T) {
	unset(t, "GOGC", "GOMEMLIMIT")
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go Manage(ctx)
		time.Sleep(idlePeriod + 1)
		defer debug.SetGCPercent(debug.SetGCPercent(-1)) // so only Manage collects the garbage
		garbage := make([]byte, 3*spareBytes)
		runtime.KeepAlive(garbage)
		spare := func() int64 {
			u := newUsage()
			u.read()
			return int64(u.heap()) - int64(u.live()) //nolint:gosec // small
		}
		if got := spare(); got < spareBytes {
			t.Fatalf("%d bytes are garbage or free, want %d or more", got, spareBytes)
		}
		time.Sleep(idlePeriod) // in which the garbage was allocated
		if got := spare(); got < spareBytes {
			t.Errorf("%d bytes are left, although the process was not idle", got)
		}
		time.Sleep(idlePeriod)
		if got := spare(); got > spareBytes {
			t.Errorf("%d bytes are garbage or free after an idle period", got)
		}
	})
}

// TestOperatorChooses: a growth or a limit of the environment stays.
func TestOperatorChooses(t *testing.T) {
	for name, value := range map[string]string{"GOGC": "70", "GOMEMLIMIT": "50MiB"} {
		t.Run(name, func(t *testing.T) {
			unset(t, "GOGC", "GOMEMLIMIT")
			t.Setenv(name, value)
			percent, limit := present()
			Manage(t.Context()) // returns at once
			if p, l := present(); p != percent || l != limit {
				t.Errorf("%d %%, limit %d; want %d %% and %d, as before", p, l, percent, limit)
			}
		})
	}
}

// TestIdle: a process is idle if it allocates little. An idle process gives back memory that no object needs.
func TestIdle(t *testing.T) {
	runtime.GC()
	m := newManager()
	m.idle()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	garbage := make([]byte, 2*spareBytes)
	runtime.KeepAlive(garbage)
	if m.idle() {
		t.Error("idle, although 16 MiB were allocated")
	}
	if !m.idle() {
		t.Error("not idle, although nothing was allocated and 16 MiB are garbage")
	}
	debug.FreeOSMemory()
	if m.idle() {
		t.Error("idle, although no memory is left over")
	}
}
