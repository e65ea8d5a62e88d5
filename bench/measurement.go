package bench

import (
	"fmt"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Measurement is the result of one load of one KMS.
type Measurement struct {
	KMS         string  `json:"kms"`
	Load        string  `json:"load"`
	Connections int     `json:"connections"`
	Connect     string  `json:"connect"`
	Rate        float64 `json:"rate,omitempty"` // requests a second that were due; absent if there was no schedule
	Seconds     float64 `json:"seconds"`
	Requests    int     `json:"requests"` // with the right answer
	EDEKs       int     `json:"edeks"`
	// Failures counts the requests with a wrong answer or no answer. Reasons counts them by the text of the error.
	Failures  int            `json:"failures"`
	Reasons   map[string]int `json:"reasons,omitempty"`
	PerSecond float64        `json:"perSecond"` // requests
	// CPUSeconds, PerCPUSecond and Memory (MiB, the greatest that was seen) are those of the server's processes on this
	// machine; absent if they cannot be read.
	CPUSeconds   float64   `json:"cpuSeconds,omitempty"`
	PerCPUSecond float64   `json:"perCPUSecond,omitempty"`
	Memory       float64   `json:"memoryMiB,omitempty"`
	Latency      Quantiles `json:"latencyMs"`
	// Lateness is how late this process itself sent requests. Doubtful is true if it is a tenth of the latency or more.
	Lateness *Quantiles `json:"latenessMs,omitempty"`
	Doubtful bool       `json:"doubtful,omitempty"`
}

// Quantiles are quantiles of times, in milliseconds.
type Quantiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

func quantiles(h *hdrhistogram.Histogram) Quantiles {
	ms := func(us int64) float64 { return float64(us) / 1000 }
	return Quantiles{ms(h.ValueAtQuantile(50)), ms(h.ValueAtQuantile(90)), ms(h.ValueAtQuantile(99)),
		ms(h.ValueAtQuantile(99.9)), ms(h.Max())}
}

// merge adds up the results of the workers.
func (r *run) merge(workers []*worker, took time.Duration) *Measurement {
	m := &Measurement{KMS: r.t.name, Load: r.load, Connections: r.connections, Connect: r.connect, Rate: r.rate,
		Seconds: took.Seconds(), Reasons: map[string]int{}}
	latency, lateness := hdrhistogram.New(1, slowest, digits), hdrhistogram.New(1, slowest, digits)
	for _, w := range workers {
		m.Requests += w.done
		m.EDEKs += w.edeks
		for text, n := range w.failed {
			m.Failures += n
			m.Reasons[text] += n
		}
		latency.Merge(w.latency)
		lateness.Merge(w.lateness)
	}
	m.PerSecond = float64(m.Requests) / took.Seconds()
	m.Latency = quantiles(latency)
	if r.rate > 0 {
		q := quantiles(lateness)
		m.Lateness = &q
		m.Doubtful = 10*q.P99 > m.Latency.P99
	}
	return m
}

func (m *Measurement) setCPU(used time.Duration) {
	if used > 0 {
		m.CPUSeconds = used.Seconds()
		m.PerCPUSecond = float64(m.Requests) / used.Seconds()
	}
}

// medianRound returns the measurement whose work per CPU-second, or per second, is the median of several rounds.
func medianRound(rounds []*Measurement) *Measurement {
	sorted := slices.SortedFunc(slices.Values(rounds), func(a, b *Measurement) int {
		switch {
		case a.work() < b.work():
			return -1
		case a.work() > b.work():
			return 1
		}
		return 0
	})
	return sorted[len(sorted)/2]
}

// work is the figure by which rounds and servers are compared: requests per CPU-second of the server, because the load
// itself takes processor time on this machine. If the server's CPU time is not known, it is requests per second.
func (m *Measurement) work() float64 {
	if m.PerCPUSecond > 0 {
		return m.PerCPUSecond
	}
	return m.PerSecond
}

// Ratio is the work of a KMS divided by that of the last KMS of the command line, in the same round: the median, and
// the lowest and highest of all rounds.
type Ratio struct {
	KMS    string  `json:"kms"`
	To     string  `json:"to"`
	Load   string  `json:"load"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

func ratio(rounds, to []*Measurement) Ratio {
	r := Ratio{KMS: rounds[0].KMS, To: to[0].KMS, Load: rounds[0].Load}
	var all []float64
	for i := range rounds {
		if w := to[i].work(); w > 0 {
			all = append(all, rounds[i].work()/w)
		}
	}
	if len(all) > 0 {
		slices.Sort(all)
		r.Low, r.Median, r.High = all[0], all[len(all)/2], all[len(all)-1]
	}
	return r
}

func (r Ratio) String() string {
	return fmt.Sprintf("%.2f (%.2f to %.2f)", r.Median, r.Low, r.High)
}
