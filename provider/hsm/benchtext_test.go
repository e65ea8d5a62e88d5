package hsm_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"claviger/provider/hsm"
)

// TestWriteBench: the text below the table says what * means, and compares the first row's median with 30 ms.
func TestWriteBench(t *testing.T) {
	for median, want := range map[time.Duration]string{
		12 * time.Millisecond: "takes 12ms (median, one session, one EDEK a call).\nThat is below the 30ms",
		30 * time.Millisecond: "That is equal to the 30ms",
		31 * time.Millisecond: "takes 31ms (median, one session, one EDEK a call).\nThat is above the 30ms",
	} {
		var b bytes.Buffer
		hsm.WriteBench(&b, []hsm.Measurement{
			{Sessions: 1, EDEKs: 1, Calls: 10, Median: median, PerSec: 80},
			{Sessions: 2, EDEKs: 1, Calls: 20, Median: time.Second, PerSec: 160, Knee: true},
		})
		table, below, _ := strings.Cut(b.String(), "\n\n")
		if rows := strings.Split(table, "\n"); len(rows) != 3 || strings.HasSuffix(rows[1], "*") ||
			!strings.HasSuffix(rows[2], "\t160\t*") {
			t.Errorf("the table is\n%s", table)
		}
		if !strings.HasPrefix(below, "* the fewest sessions") || !strings.Contains(below, want) {
			t.Errorf("with %v the text below the table is\n%s", median, below)
		}
	}
}
