package bench

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Lines of a keystore file: where the HSM's library runs.
const (
	inProcess = "worker = no"
	inWorker  = "worker = yes"
)

// manyClients is the number of connections of single decrypts in BenchmarkWorker and BenchmarkRoundTrip.
const manyClients = 256

// rounds is the number of rounds of each server in BenchmarkWorker. The servers take turns, because the machine may
// become faster or slower meanwhile.
const rounds = 10

func appendLines(b testing.TB, file string, lines []string) {
	b.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.WriteString(strings.Join(lines, "\n") + "\n"); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWorker compares a server whose HSM's library runs in the server's own process with one whose library runs in
// a worker. It reports the work per CPU-second of all processes of a server, and how much less that is with a worker.
func BenchmarkWorker(b *testing.B) {
	names := []string{"in-process", "worker"}
	servers := []*target{startClaviger(b, inProcess), startClaviger(b, inWorker)}
	type load struct {
		method, path string
		body         []byte
	}
	loads := map[string][]load{}
	for i, t := range servers {
		if len(t.pids) != i+1 {
			b.Fatalf("%s: processes %v", names[i], t.pids)
		}
		decryptPath, decrypt, batchPath, batch := t.requests(b)
		key, _, _ := strings.Cut(batchPath, "/_reencryptbatch")
		for name, l := range map[string]load{
			"decrypt":    {http.MethodPost, decryptPath, decrypt},
			"batch-1000": {http.MethodPost, batchPath, batch},
			"generate":   {http.MethodGet, key + "/_eek?eek_op=generate&num_keys=350", nil},
		} {
			loads[name] = append(loads[name], l)
		}
	}
	for _, l := range []struct {
		name        string
		connections int
		part        int // one request takes about as long as part decrypts, so b.N/part requests are sent
	}{{"decrypt", manyClients, 1}, {"decrypt", 1, 1}, {"batch-1000", 4, 20}, {"generate", 4, 5}} {
		b.Run(fmt.Sprintf("%s/%d-connections", l.name, l.connections), func(b *testing.B) {
			n := b.N/rounds/l.part + 1
			var used [2]time.Duration
			for round := range 1 + rounds {
				for i, t := range servers {
					before := t.cpu(b)
					r := loads[l.name][i]
					t.send(b, r.method, r.path, r.body, n, l.connections)
					if round > 0 { // the first is the warm-up
						used[i] += t.cpu(b) - before
					}
				}
			}
			var rate [2]float64
			for i, d := range used {
				rate[i] = float64(n*rounds) / d.Seconds()
				b.ReportMetric(rate[i], names[i]+"/cpu-s")
			}
			b.ReportMetric(100*(1-rate[1]/rate[0]), "%-less")
			b.ReportMetric(servers[0].rss(b), names[0]+"-MiB")
			b.ReportMetric(servers[1].rss(b), names[1]+"-MiB")
		})
	}
}
