// Package heap lets the garbage collector of a server run seldom while the server needs little memory, and gives memory
// back to the operating system after a load.
//
// Go's default lets the heap grow to twice the live objects before it collects. A server with few live objects then
// collects every few milliseconds under load. If the heap may grow to five times the live objects, a batch of EDEKs
// takes a fifth less processor time. A limit of the memory keeps the heap small when many objects live at one time.
package heap

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// leastLimit is the least limit, in bytes, of the memory that Go manages. The pages of the program and the memory
	// of libraries in C are not part of it.
	leastLimit = 48 << 20
	// percent is the size, in percent of the live objects, by which the heap grows between two collections while the
	// memory is below its limit.
	percent = 400
	// largeRoom is the number of bytes by which the heap grows between two collections when many objects live.
	largeRoom = 64 << 20

	// idlePeriod is the time between two checks whether the process is idle.
	idlePeriod = 15 * time.Second
	// idleBytes is the number of bytes that an idle process allocates at most in an idlePeriod.
	idleBytes = 4 << 20
	// spareBytes is the size of the heap without live objects from which on an idle process gives memory back.
	spareBytes = 8 << 20
)

// Manage sets how far the heap may grow, until ctx ends. If the environment has GOGC or GOMEMLIMIT, it does nothing:
// the operator has chosen.
func Manage(ctx context.Context) {
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if _, set := os.LookupEnv(name); set {
			return
		}
	}
	before, m := debug.SetGCPercent(percent), newManager()
	m.adjust()
	m.awaitCollection()
	tick := time.NewTicker(idlePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.stop()
			debug.SetGCPercent(before)
			debug.SetMemoryLimit(math.MaxInt64)
			return
		case <-tick.C:
			if m.idle() {
				debug.FreeOSMemory()
			}
		}
	}
}

// manager sets the limit of the memory after each collection.
type manager struct {
	mu      sync.Mutex
	limit   int64
	stopped bool
	usage   usage

	allocated uint64 // at the last call of idle
}

func newManager() *manager { return &manager{usage: newUsage()} }

// awaitCollection lets adjust be called after the next collection: it makes an object that nothing refers to.
func (m *manager) awaitCollection() {
	runtime.AddCleanup(&struct{ _ [64]byte }{}, func(m *manager) {
		if m.adjust() {
			m.awaitCollection()
		}
	}, m)
}

// adjust sets the limit that fits the live objects. It returns false after stop.
func (m *manager) adjust() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return false
	}
	m.usage.read()
	// A new limit stops all goroutines for some microseconds, so adjust ignores a small change.
	if l := limit(m.usage.live(), m.usage.stacks(), m.usage.other()); l > m.limit*11/10 || l < m.limit*9/10 {
		m.limit = l
		debug.SetMemoryLimit(l)
	}
	return true
}

// limit returns the limit if the heap has live bytes of live objects, and Go needs other bytes beside the heap, of
// which stacks are bytes of the goroutines' stacks. A collection scans live objects and stacks. Between two collections
// the heap may grow by twice what the next one scans, up to largeRoom, but always by as much as the next one scans, as
// Go does by default. With less room, a server with many connections would scan their stacks all the time.
func limit(live, stacks, other uint64) int64 {
	scanned := live + stacks
	room := max(min(2*scanned, largeRoom), scanned)
	return int64(min(max(leastLimit, live+other+room), math.MaxInt64/2)) //nolint:gosec // the minimum fits
}

func (m *manager) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
}

// idle returns true if the process allocated little since the last call, and has memory that it does not need.
func (m *manager) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.usage.read()
	allocated := m.usage.allocated()
	since := allocated - m.allocated
	m.allocated = allocated
	return since < idleBytes && m.usage.heap() > m.usage.live()+spareBytes
}

// usage are figures of Go's memory, all in bytes.
type usage []metrics.Sample

func newUsage() usage {
	return usage{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"}}
}

func (u usage) read()        { metrics.Read(u) }
func (u usage) live() uint64 { return u[0].Value.Uint64() } // at the last collection

// allocated returns how much was allocated since the start of the process.
func (u usage) allocated() uint64 { return u[1].Value.Uint64() }

// heap returns the size of the heap's objects, of which some may be garbage, and of its free memory.
func (u usage) heap() uint64 { return u[2].Value.Uint64() + u[3].Value.Uint64() }

// other returns the size of the other memory that counts for the limit: stacks, unused parts of spans, records of
// the runtime.
func (u usage) other() uint64 { return u[5].Value.Uint64() - u[4].Value.Uint64() - u.heap() }

// stacks returns the size of the goroutines' stacks.
func (u usage) stacks() uint64 { return u[6].Value.Uint64() }
