package kmsapi

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"sync/atomic"
	"time"

	"claviger/authn"
)

// spread collects durations: their number, sum, maximum, and the sum of squares
// for the standard deviation. sum is in nanoseconds, squares and most are of
// milliseconds.
type spread struct {
	n, sum, squares, most atomic.Int64
}

func (s *spread) add(took time.Duration) {
	ms := took.Milliseconds()
	s.n.Add(1)
	s.sum.Add(int64(took))
	s.squares.Add(ms * ms)
	raise(&s.most, ms)
}

// mean returns the mean in milliseconds.
func (s *spread) mean() float64 {
	n := s.n.Load()
	if n == 0 {
		return 0
	}
	return float64(s.sum.Load()) / float64(n) / float64(time.Millisecond)
}

func (s *spread) deviation() float64 {
	n := float64(s.n.Load())
	if n == 0 {
		return 0
	}
	mean := s.mean()
	return math.Sqrt(max(0, float64(s.squares.Load())/n-mean*mean))
}

// raise sets v to n if v is less.
func raise(v *atomic.Int64, n int64) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// web holds the figures of the web server. In Hadoop, Jetty's StatisticsHandler
// has them.
type web struct {
	active, activeMost, bytes atomic.Int64
	times                     spread
	responses                 [5]atomic.Int64 // 1xx to 5xx
}

func (w *web) begin() { raise(&w.activeMost, w.active.Add(1)) }

func (w *web) end(status int, took time.Duration) {
	w.active.Add(-1)
	w.times.add(took)
	if i := status/100 - 1; i >= 0 && i < len(w.responses) {
		w.responses[i].Add(1)
	}
}

// tokenFigures holds the figures of delegation tokens.
type tokenFigures struct {
	stored, updated, removed spread
	failed                   atomic.Int64
}

// count counts an operation on a token.
func (t *tokenFigures) count(res authn.DelegationResult, took time.Duration) {
	switch {
	case res.Refusal != nil && (res.Refusal.Kind == authn.BadDelegation || res.Refusal.Kind == authn.UnknownDelegation):
		t.failed.Add(1)
	case res.Refusal != nil:
	case res.Token != "":
		t.stored.add(took)
	case !res.Expires.IsZero():
		t.updated.add(took)
	default:
		t.removed.add(took)
	}
}

func (g *gauges) webBean(now time.Time) bean {
	name := "HttpServer2-" + strconv.Itoa(g.op.Port)
	w := &g.web
	list := []attribute{{"modelerType", name}, {"tag.Context", "http"}, {"tag.Hostname", g.host}}
	requests := w.times.n.Load() + w.active.Load()
	// This server dispatches each request exactly once, and has no asynchronous
	// requests.
	for _, kind := range []string{"Dispatched", "Request"} {
		total := time.Duration(w.times.sum.Load()).Milliseconds()
		if kind == "Dispatched" {
			list = append(list, attribute{kind, requests}, attribute{"AsyncDispatches", 0},
				attribute{"AsyncRequests", 0}, attribute{"AsyncRequestsWaiting", 0},
				attribute{"AsyncRequestsWaitingMax", 0},
				attribute{"DispatchedActive", w.active.Load()}, attribute{"DispatchedActiveMax", w.activeMost.Load()})
		} else {
			list = append(list, attribute{"RequestsActive", w.active.Load()},
				attribute{"RequestsActiveMax", w.activeMost.Load()})
		}
		list = append(list, attribute{kind + "TimeMax", w.times.most.Load()},
			attribute{kind + "TimeMean", w.times.mean()}, attribute{kind + "TimeStdDev", w.times.deviation()},
			attribute{kind + "TimeTotal", total})
	}
	for i := range w.responses {
		list = append(list, attribute{"Responses" + strconv.Itoa(i+1) + "xx", w.responses[i].Load()})
	}
	return bean{"Hadoop:service=" + g.op.ProcessName + ",name=" + name, append(list,
		attribute{"ResponsesBytesTotal", w.bytes.Load()}, attribute{"StatsOnMs", now.Sub(g.began).Milliseconds()},
		attribute{"Expires", 0}, attribute{"Requests", requests})}
}

// tokenBean shows averages since the start. Hadoop shows those of the last 10 s.
func (g *gauges) tokenBean() bean {
	const name = "DelegationTokenSecretManagerMetrics"
	t := &g.tokens
	return bean{"Hadoop:service=" + g.op.ProcessName + ",name=" + name, []attribute{
		{"modelerType", name}, {"tag.Context", "token"}, {"tag.Hostname", g.host},
		{"RemoveTokenNumOps", t.removed.n.Load()}, {"RemoveTokenAvgTime", t.removed.mean()},
		{"StoreTokenNumOps", t.stored.n.Load()}, {"StoreTokenAvgTime", t.stored.mean()},
		{"TokenFailure", t.failed.Load()},
		{"UpdateTokenNumOps", t.updated.n.Load()}, {"UpdateTokenAvgTime", t.updated.mean()},
	}}
}

// mebibytes converts bytes to units of 2^20 bytes, as in JvmMetrics.
func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// jvmBean fills Hadoop's bean JvmMetrics. The heap is Go's, and goroutines count
// as threads. Go does not count the goroutines that wait for a time, nor those
// that have ended, so ThreadsTimedWaiting and ThreadsTerminated are 0.
func (g *gauges) jvmBean() bean {
	mem := readMemory()
	samples := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/sched/goroutines/running:goroutines"}, {Name: "/sched/goroutines/runnable:goroutines"},
		{Name: "/sched/goroutines/waiting:goroutines"}, {Name: "/sched/goroutines/not-in-go:goroutines"},
	}
	metrics.Read(samples)
	var n [5]int64
	for i, s := range samples {
		n[i] = count(s)
	}
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	limit := -1.
	if mem.limit >= 0 {
		limit = mebibytes(mem.limit)
	}
	var sessionTag any // without a session it is null, as in Hadoop
	if g.op.SessionID != "" {
		sessionTag = g.op.SessionID
	}
	return bean{"Hadoop:service=" + g.op.ProcessName + ",name=JvmMetrics", []attribute{
		{"modelerType", "JvmMetrics"}, {"tag.Context", "jvm"}, {"tag.ProcessName", g.op.ProcessName},
		{"tag.SessionId", sessionTag}, {"tag.Hostname", g.host},
		{"MemNonHeapUsedM", mebibytes(mem.other)}, {"MemNonHeapCommittedM", mebibytes(mem.other)},
		{"MemNonHeapMaxM", -1.}, {"MemHeapUsedM", mebibytes(mem.used)}, {"MemHeapCommittedM", mebibytes(mem.committed)},
		{"MemHeapMaxM", limit}, {"MemMaxM", limit},
		{"GcCount", n[0]}, {"GcTimeMillis", gc.PauseTotal.Milliseconds()},
		// The figures of JvmPauseMonitor, which this server does not have.
		{"GcNumWarnThresholdExceeded", 0}, {"GcNumInfoThresholdExceeded", 0}, {"GcTotalExtraSleepTime", 0},
		{"ThreadsNew", 0}, {"ThreadsRunnable", n[1] + n[2]}, {"ThreadsBlocked", n[4]}, {"ThreadsWaiting", n[3]},
		{"ThreadsTimedWaiting", 0}, {"ThreadsTerminated", 0},
	}}
}

// count returns a figure of runtime/metrics; 0 if this Go version does not have it.
func count(s metrics.Sample) int64 {
	if s.Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return int64(min(s.Value.Uint64(), math.MaxInt64)) //nolint:gosec // it fits after min
}

// memory is the memory of the process in bytes. limit is -1 if there is none.
type memory struct{ used, committed, other, limit int64 }

func readMemory() memory {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	var n [5]int64
	for i, s := range samples {
		n[i] = count(s)
	}
	m := memory{used: n[0], committed: n[0] + n[1] + n[2], limit: -1}
	m.other = n[3] - n[4] - m.committed
	if l := debug.SetMemoryLimit(-1); l < math.MaxInt64 { // -1 changes nothing
		m.limit = l
	}
	return m
}

// memoryBean fills java.lang:type=Memory, whose fields mean the same for Go's
// heap. -1 means "not defined", as in java.lang.management.MemoryUsage.
func memoryBean() bean {
	m := readMemory()
	type usage struct {
		Committed int64 `json:"committed"`
		Init      int64 `json:"init"`
		Max       int64 `json:"max"`
		Used      int64 `json:"used"`
	}
	return bean{"java.lang:type=Memory", []attribute{
		{"modelerType", "claviger"}, {"Verbose", false},
		{"HeapMemoryUsage", usage{m.committed, -1, m.limit, m.used}},
		{"NonHeapMemoryUsage", usage{m.other, -1, -1, m.other}},
		{"ObjectName", "java.lang:type=Memory"},
	}}
}

// hostname returns the host's name for the beans; "" if it is not known.
func hostname() string {
	host, _ := os.Hostname()
	return host
}
