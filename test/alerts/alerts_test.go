package alerts

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"claviger/test/hadoop"
)

// fault is something that goes wrong in a plant, and what mends it.
type fault struct {
	phase
	begin func(p *plant)
	shows string // a pattern of /metrics of the first server once the fault is there
	look  func(p *plant)
	mend  func(p *plant)
	after func(p *plant) // once the plant is well again
	lasts bool           // the plant is not well until long after mend: no phase without alerts follows
}

// scenario is a plant, and the faults that it has one after the other.
type scenario struct {
	plant  func(t *testing.T) *plant
	faults []fault
}

var scenarios = map[string]scenario{
	"HSM":          {hsmPlant("alerts-hsm"), hsmFaults},
	"queue":        {hsmPlant("alerts-queue"), queueFaults},
	"lost keys":    {lostKeysPlant, lostKeysFaults},
	"audit":        {auditPlant, auditFaults},
	"rules":        {keystorePlant, rulesFaults},
	"certificates": {tlsPlant, certificateFaults},
	"connections":  {connectionsPlant, connectionsFaults},
	"slots":        {slotsPlant, slotsFaults},
	"source":       {sourcePlant, sourceFaults},
	"down":         {twoPlant, downFaults},
	"trustee":      {trusteePlant, trusteeFaults},
}

// TestAlerts: each alert fires while a real server has its fault, and none fires on servers that are well and under
// load, before the fault and after it.
func TestAlerts(t *testing.T) {
	needsPromtool(t)
	hadoop.Binary(t) // before all servers run, and use the processors
	for name, s := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := s.plant(t)
			p.untilWell()
			p.recordWell("well")
			p.wasLoaded()
			if name == "HSM" {
				p.limitsAreBounds()
			}
			for _, f := range s.faults {
				f.happens(p)
			}
			p.play()
		})
	}
}

// happens provokes a fault, reads the figures, and mends it.
func (f fault) happens(p *plant) {
	p.t.Helper()
	f.begin(p)
	if f.shows != "" {
		p.until(p.servers[0], f.shows)
	}
	p.record(f.phase)
	if f.look != nil {
		f.look(p)
	}
	if f.mend(p); f.lasts {
		return
	}
	p.untilWell()
	p.recordWell("well after: " + f.name)
	if f.after != nil {
		f.after(p)
	}
}

// wasLoaded fails the test if a KMS has served no load in the first phase, which would prove nothing.
func (p *plant) wasLoaded() {
	p.t.Helper()
	for i, n := range p.kms {
		read := p.phases[0].ofServers[p.servers[i].name]
		for _, op := range []string{"generate_eek", "decrypt_eek"} {
			series := `claviger_kms_request_seconds_count{op="` + op + `",status="200"}`
			if n.stopLoad != nil && read[len(read)-1].values[series] <= read[0].values[series] {
				p.t.Errorf("%s: %s does not grow: %v", p.servers[i].name, series, read)
			}
		}
	}
}

var percentileLimit = regexp.MustCompile(`histogram_quantile\(.*?(claviger_\w+_bucket).* > ([0-9.]+)`)

// limitsAreBounds fails the test unless each limit of a percentile is a bound of its buckets. Within a bucket
// Prometheus guesses, so an alert would fire far below its limit.
func (p *plant) limitsAreBounds() {
	p.t.Helper()
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		p.t.Fatal(err)
	}
	limits := percentileLimit.FindAllStringSubmatch(string(rules), -1)
	if len(limits) < 3 {
		p.t.Errorf("only %d limits of percentiles", len(limits))
	}
	text, err := p.servers[0].metrics()
	for _, m := range limits {
		if err != nil || !regexp.MustCompile(m[1]+`\{.*le="`+regexp.QuoteMeta(m[2])+`"`).MatchString(text) {
			p.t.Errorf("%s is not a bound of the buckets of %s (%v)", m[2], m[1], err)
		}
	}
}

// TestEachAlert: each alert of the rules is provoked by a fault.
func TestEachAlert(t *testing.T) {
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var provoked []string
	for _, s := range scenarios {
		for _, f := range s.faults {
			provoked = append(provoked, f.alerts...)
		}
	}
	alerts := alertPage.FindAllStringSubmatch(string(rules), -1)
	if len(alerts) < 20 {
		t.Errorf("only %d alerts", len(alerts))
	}
	for _, m := range alerts {
		if !slices.Contains(provoked, m[1]) {
			t.Errorf("no fault provokes %s", m[1])
		}
	}
}
