package heap

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live, other uint64
		want        int64
	}{
		{0, 0, leastLimit}, {10 * mib, 10 * mib, leastLimit}, {20 * mib, 8 * mib, leastLimit},
		{20 * mib, 20 * mib, 60 * mib}, {1024 * mib, 30 * mib, 2078 * mib}, {math.MaxInt64, 0, math.MaxInt64 / 2},
	} {
		if got := limit(c.live, c.other); got != c.want {
			t.Errorf("%d live, %d other: %d, want %d", c.live, c.other, got, c.want)
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
