package console

import (
	"context"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// checkStates are the results of the checks of /readyz as metrics, so that alerts need not read /readyz, too.
type checkStates struct {
	probes  []*probe
	details bool // names as in Check.Name; otherwise Check.Anonymous
}

var (
	checkOK = prometheus.NewDesc("claviger_check_ok", "Checks of /readyz: 1 if the check passed, else 0. A check that "+
		"is informational takes no node out of service.", []string{"check", "informational"}, nil)
	ready = prometheus.NewDesc("claviger_ready", "Whether the node can serve requests of a purpose (1 or 0), as "+
		"/readyz?for= answers.", []string{"for"}, nil)
)

// addChecks adds the metrics of the checks.
func (m *Metrics) addChecks(probes []*probe) {
	if len(probes) == 0 {
		return
	}
	m.registry.MustRegister(&checkStates{probes, true})
	m.nameless.MustRegister(&checkStates{probes, false})
}

func (s *checkStates) Describe(ch chan<- *prometheus.Desc) { ch <- checkOK; ch <- ready }

func (s *checkStates) Collect(ch chan<- prometheus.Metric) {
	// This limit is below that of the whole answer. So a check that hangs is 0, and all other metrics are there.
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	results := results(ctx, s.probes)
	for i, p := range s.probes {
		name := p.Name
		if !s.details && p.Anonymous != "" {
			name = p.Anonymous
		}
		ch <- constant(checkOK, prometheus.GaugeValue, number(results[i].OK), name, strconv.FormatBool(p.Informational))
	}
	for purpose, can := range capable(s.probes, results, Purposes) {
		ch <- constant(ready, prometheus.GaugeValue, number(can), string(purpose))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// results runs the checks at the same time.
func results(ctx context.Context, probes []*probe) []Result {
	list := make([]Result, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		wg.Go(func() { list[i] = p.result(ctx) })
	}
	wg.Wait()
	return list
}

// capable returns for each purpose whether the node can serve it: no check that concerns the purpose fails.
func capable(probes []*probe, results []Result, purposes []Purpose) map[Purpose]bool {
	can := map[Purpose]bool{}
	for _, purpose := range purposes {
		can[purpose] = true
		for i, p := range probes {
			if !results[i].OK && !p.Informational && p.concerns(purpose) {
				can[purpose] = false
			}
		}
	}
	return can
}
