package hsm

import (
	"fmt"
	"io"
	"time"

	"claviger/provider"
)

// WriteBench writes the results of Bench as a table with tabs between its columns. The text below the table says what
// the table's mark means, and how the round trip compares with provider.AdvisedLatency.
func WriteBench(w io.Writer, results []Measurement) {
	fmt.Fprintln(w, "SESSIONS\tEDEKS A CALL\tCALLS\tMEDIAN\tP90\tP99\tMAX\tEDEKS/S\t")
	for _, r := range results {
		knee, us := map[bool]string{true: "*"}[r.Knee], time.Microsecond
		fmt.Fprintf(w, "%d\t%d\t%d\t%v\t%v\t%v\t%v\t%.0f\t%s\n", r.Sessions, r.EDEKs, r.Calls, r.Median.Round(us),
			r.P90.Round(us), r.P99.Round(us), r.Max.Round(us), r.PerSec, knee)
	}
	fmt.Fprint(w, "\n* the fewest sessions, or the smallest call, with nine tenths of the best rate\n")
	if len(results) == 0 {
		return
	}
	trip, than := results[0].Median, "below"
	switch {
	case trip > provider.AdvisedLatency:
		than = "above"
	case trip == provider.AdvisedLatency:
		than = "equal to"
	}
	fmt.Fprintf(w, "One round trip to the HSM takes %v (median, one session, one EDEK a call).\n"+
		"That is %s the %v that Cloudera's procedure advises at most.\n", trip.Round(time.Microsecond), than,
		provider.AdvisedLatency)
}
