package bench

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"claviger/bench"
	"claviger/test/hadoop"
)

var overload = flag.Bool("overload", false, "load a KMS with more than it can do, for two minutes; with -write, "+
	"write the tables of docs/performance.md")

// connectionCounts are the numbers of connections of the first part of TestOverload.
var connectionCounts = []int{64, 256, 640, 1024, 4096}

// decryptShare is the rate of decrypts beside the load that does not fit: the part of what the server can do.
const decryptShare = 0.5

// TestOverload measures a server that gets more than it can do: the throughput with many connections, and the latency
// of decrypts while batches and generates request all of the server.
func TestOverload(t *testing.T) {
	if !*overload {
		t.Skip("it takes two minutes; `make bench` runs it")
	}
	ours := hadoop.StartClaviger(t, options(t, true, nil, nil))
	connections := connectionsTable(t, ours)
	order := orderTable(t, ours.URL)
	if *writePage {
		page := filepath.Join(hadoop.Root(), "docs", "performance.md")
		replaceBetween(t, page, "connections", connections)
		replaceBetween(t, page, "order", order)
		return
	}
	t.Logf("\n%s\n%s", connections, order)
}

// connectionsTable measures the work per CPU-second with few and many connections, of our server and of an empty
// handler in turn.
func connectionsTable(t *testing.T, ours *hadoop.KMS) string {
	t.Helper()
	kms, empty := newTarget(t, ours.URL, ours.PID(), 0), startEmpty(t, false)
	path, body, _, _ := kms.requests(t)
	const n = 60_000 // requests of a round
	rates := map[*target][]float64{}
	for _, s := range []*target{kms, empty} {
		s.send(t, http.MethodPost, path, body, n, connectionCounts[0]) // warm-up
	}
	for _, count := range connectionCounts {
		for _, s := range []*target{kms, empty} {
			used := -s.cpu(t)
			s.send(t, http.MethodPost, path, body, n, count)
			used += s.cpu(t)
			rates[s] = append(rates[s], n/used.Seconds())
		}
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, "| connections | decrypts per CPU-second | part of the best | empty handler | part of its best "+
		"|\n"+
		"|---|---|---|---|---|")
	for i, count := range connectionCounts {
		fmt.Fprintf(&b, "| %s |", thousands(float64(count)))
		for _, s := range []*target{kms, empty} {
			fmt.Fprintf(&b, " %s | %.2f |", thousands(rates[s][i]), rates[s][i]/slices.Max(rates[s]))
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// orderTable measures decrypts at a fixed rate: alone, and while batches and generates of other connections request all
// that the server can do and more.
func orderTable(t *testing.T, url string) string {
	t.Helper()
	run := func(args ...string) *bench.Measurement {
		args = slices.Concat([]string{"bench", "kms", "-o", "json", "--quiet", "--rounds", "1", "--duration",
			fmt.Sprintf("%ds", *seconds)}, args, []string{url})
		var r bench.Report
		text := hadoop.Claviger(t, []string{"HADOOP_USER_NAME=bench"}, args...)
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Error(err)
			return &bench.Measurement{}
		}
		return r.Measurements[0]
	}
	capacity := run("--load", "decrypt", "--connections", "64").PerSecond
	rate := strconv.Itoa(int(capacity * decryptShare))
	decrypts := []string{"--load", "decrypt", "--connections", "64", "--rate", rate, "--warm-up", "0s"}
	rows := []struct {
		name   string
		others [][]string
	}{
		{"nothing", nil},
		{"batches of 1,000 on 64 connections", [][]string{{"--load", "batch", "--connections", "64"}}},
		{"generates of 350 on 64 connections", [][]string{{"--load", "generate", "--connections", "64"}}},
		{"both", [][]string{{"--load", "batch", "--connections", "64"}, {"--load", "generate", "--connections", "64"}}},
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "| besides %s decrypts a second | decrypts served a second | median | p99 | requests of others |\n"+
		"|---|---|---|---|---|\n", thousands(capacity*decryptShare))
	for _, row := range rows {
		var wg sync.WaitGroup
		others := make([]*bench.Measurement, len(row.others))
		for i, args := range row.others {
			wg.Go(func() {
				others[i] = run(append(args, "--warm-up", "1s", "--duration", fmt.Sprintf("%ds", *seconds+3))...)
			})
		}
		if len(others) > 0 {
			time.Sleep(3 * time.Second) // they make their keys, and load the server
		}
		m := run(decrypts...)
		wg.Wait()
		total := 0.0
		for _, o := range others {
			total += o.PerSecond
		}
		fmt.Fprintf(&b, "| %s | %s | %.1f ms | %.0f ms | %.0f/s |\n", row.name, thousands(m.PerSecond), m.Latency.P50,
			m.Latency.P99, total)
	}
	return b.String()
}
