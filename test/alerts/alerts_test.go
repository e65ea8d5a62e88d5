package alerts

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"claviger/test/hadoop"
)

// fault breaks a part of a deployment, and repairs it.
type fault struct {
	phase
	begin   func(d *deployment)
	symptom string // the test waits until /metrics of the first server matches it; "": no wait
	check   func(d *deployment)
	repair  func(d *deployment)
	after   func(d *deployment) // runs when the deployment is healthy again
	lasts   bool                // alerts fire long after repair: no healthy phase follows
}

// scenario is a deployment, and its faults in their order.
type scenario struct {
	deployment func(t *testing.T) *deployment
	faults     []fault
}

var scenarios = map[string]scenario{
	"HSM":          {hsmDeployment("alerts-hsm"), hsmFaults},
	"queue":        {hsmDeployment("alerts-queue"), queueFaults},
	"lost keys":    {lostKeysDeployment, lostKeysFaults},
	"audit":        {auditDeployment, auditFaults},
	"rules":        {keystoreDeployment, rulesFaults},
	"certificates": {tlsDeployment, certificateFaults},
	"connections":  {connectionsDeployment, connectionsFaults},
	"slots":        {slotsDeployment, slotsFaults},
	"source":       {sourceDeployment, sourceFaults},
	"down":         {twoNodeDeployment, downFaults},
	"trustee":      {trusteeDeployment, trusteeFaults},
}

// TestAlerts: each alert fires while a real server has its fault. No alert fires on healthy servers under load, before
// the fault and after it.
func TestAlerts(t *testing.T) {
	needsPromtool(t)
	hadoop.Binary(t) // builds the program now: running servers would slow the build
	for name, s := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "connections" && hadoop.RaceDetector {
				t.Skip("with the race detector, connections are refused too seldom on a busy machine for the rule")
			}
			d := s.deployment(t)
			d.untilHealthy()
			d.recordHealthy("healthy")
			d.checkLoad()
			if name == "HSM" {
				d.checkPercentileLimits()
			}
			for _, f := range s.faults {
				f.run(d)
			}
			d.play()
		})
	}
}

// run provokes a fault, records the metrics, and repairs the fault.
func (f fault) run(d *deployment) {
	d.t.Helper()
	f.begin(d)
	if f.symptom != "" {
		d.until(d.servers[0], f.symptom)
	}
	d.record(f.phase)
	if f.check != nil {
		f.check(d)
	}
	if f.repair(d); f.lasts {
		return
	}
	d.untilHealthy()
	d.recordHealthy("healthy after: " + f.name)
	if f.after != nil {
		f.after(d)
	}
}

// checkLoad fails the test if a KMS served no load in the first phase: without load, silent alerts prove nothing.
func (d *deployment) checkLoad() {
	d.t.Helper()
	for i, n := range d.kms {
		read := d.phases[0].byServer[d.servers[i].name]
		for _, op := range []string{"generate_eek", "decrypt_eek"} {
			series := `claviger_kms_request_seconds_count{op="` + op + `",status="200"}`
			if n.stopLoad != nil && read[len(read)-1].values[series] <= read[0].values[series] {
				d.t.Errorf("%s: %s does not grow: %v", d.servers[i].name, series, read)
			}
		}
	}
}

var percentileLimit = regexp.MustCompile(`histogram_quantile\(.*?(claviger_\w+_bucket).* > ([0-9.]+)`)

// checkPercentileLimits fails the test unless each limit of a percentile in the rules is a bound of a bucket.
// Prometheus interpolates within a bucket, so an alert with another limit would fire far below the limit.
func (d *deployment) checkPercentileLimits() {
	d.t.Helper()
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		d.t.Fatal(err)
	}
	limits := percentileLimit.FindAllStringSubmatch(string(rules), -1)
	if len(limits) < 3 {
		d.t.Errorf("only %d limits of percentiles", len(limits))
	}
	text, err := d.servers[0].metrics()
	for _, m := range limits {
		if err != nil || !regexp.MustCompile(m[1]+`\{.*le="`+regexp.QuoteMeta(m[2])+`"`).MatchString(text) {
			d.t.Errorf("%s is not a bound of the buckets of %s (%v)", m[2], m[1], err)
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
