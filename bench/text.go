package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"claviger"
)

// text writes the report for people.
func (r *Report) text(w io.Writer) {
	fmt.Fprintln(w, "LOAD\tKMS\tCONN\tDUE/S\tDONE/S\tPER CPU-S\tP50 MS\tP90 MS\tP99 MS\tP99.9 MS\tMAX MS\tMIB\tFAILED")
	for _, m := range r.Measurements {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.0f\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t%d\n", m.Load,
			claviger.Printable(m.KMS), m.Connections, figure(m.Rate), m.PerSecond, figure(m.PerCPUSecond),
			m.Latency.P50, m.Latency.P90, m.Latency.P99, m.Latency.P999, m.Latency.Max, figure(m.Memory), m.Failures)
	}
	for _, x := range r.Ratios {
		fmt.Fprintf(w, "%s: %s does %s times the work of %s\n", x.Load, claviger.Printable(x.KMS), x,
			claviger.Printable(x.To))
	}
	for _, k := range r.Knees {
		fmt.Fprintln(w, k.text())
	}
	r.remarks(w)
}

// figure returns the text of a number. 0 means that the number is unknown.
func figure(x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", x)
}

func (k Knee) text() string {
	at := fmt.Sprintf("%d connections", k.Connections)
	if k.Rate > 0 {
		at = fmt.Sprintf("%.0f requests/s due", k.Rate)
	}
	text := fmt.Sprintf("%s: %s: more than %s brings no more work: %.0f requests/s, p99 %.1f ms", k.Load,
		claviger.Printable(k.KMS), at, k.PerSecond, k.P99)
	if k.Last {
		text = fmt.Sprintf("%s: %s: the greatest load did the most work: %.0f requests/s, p99 %.1f ms with %s; raise "+
			"--connections or --rate", k.Load, claviger.Printable(k.KMS), k.PerSecond, k.P99, at)
	}
	return text
}

// remarks writes which figures are doubtful, the failures, and how the figures were measured.
func (r *Report) remarks(w io.Writer) {
	for _, m := range r.Measurements {
		if m.Doubtful {
			fmt.Fprintf(w, "doubtful: %s, %s: this process sent its requests late (p99 %.2f ms); take a lower --rate, "+
				"or another machine\n", m.Load, claviger.Printable(m.KMS), m.Lateness.P99)
		}
		for _, reason := range slices.Sorted(maps.Keys(m.Reasons)) {
			fmt.Fprintf(w, "failed: %s, %s, %d times: %s\n", m.Load, claviger.Printable(m.KMS), m.Reasons[reason],
				claviger.Printable(reason))
		}
	}
	for _, text := range slices.Concat(r.Missed, r.NotRemoved) {
		fmt.Fprintln(w, claviger.Printable(text))
	}
	fmt.Fprintf(w, "%d cores, %s, %s; every answer that counts was right\n", r.Cores, r.Auth, r.At.Format(time.RFC3339))
}
