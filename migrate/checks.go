package migrate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/provider"
)

// Status is a check's outcome. Its zero value is OK.
type Status string

// The outcomes. OK means that the check was made and passed. A warning is for the operator to judge. A failure
// makes a plan not ready; NotTried does too, if the check is needed.
const (
	OK       Status = ""
	Warning  Status = "warning"
	NotTried Status = "not tried"
	Failure  Status = "failure"
)

// MarshalText writes OK as "ok".
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Status) String() string {
	if s == OK {
		return "ok"
	}
	return string(s)
}

// Check is one requirement, and the measured fact.
type Check struct {
	Name     string `json:"name"`
	Status   Status `json:"status"`
	Measured string `json:"measured"`
	Cure     string `json:"cure,omitempty"`
	// Needed: the cut-over fails if the requirement is not met, so NotTried does not count as OK.
	Needed bool `json:"needed,omitempty"`
}

// stops reports that the check makes a plan not ready.
func (c *Check) stops() bool { return c.Status == Failure || c.Status == NotTried && c.Needed }

// Probes are the measurements of Plan beyond keys. Each may be nil or empty: its check is then NotTried.
type Probes struct {
	// User is our user name at the source, for messages. KerberosUser is our user name at a source that demands
	// Kerberos, as far as it is known.
	User, KerberosUser string
	// Latency measures round trips to the HSM, each with the smallest possible call.
	Latency func(ctx context.Context) ([]time.Duration, error)
	// Room returns how many more keys the token can hold. known is false if the token does not report it.
	Room func(ctx context.Context) (keys int, known bool, err error)
	// Alive checks a source that is not a KMS: provider.Health.
	Alive func(ctx context.Context) error
	// Source probes each host of a source that is a KMS: SourceKMS.Probe.
	Source func(ctx context.Context) []HostFacts
	// AsUser is the short name of a user who reads files. Plan opens EDEKs at the source on behalf of this
	// user.
	AsUser string
	// MoreChecks makes further checks: of other sources.
	MoreChecks func(ctx context.Context) []Check
	// OtherSources are sources that open old EDEKs of the source's keys, and that are tried before the source itself.
	// If the source is a Key Trustee KMS, its trustee is such a source: it has the keys, but is not a KMS.
	OtherSources []Source
	// NameNode is the NameNode's user, and the place that names it.
	NameNode NameNode
	// Rules reads the rules of this server. decide is nil if they cannot be read; the check gives the
	// reason.
	Rules func(ctx context.Context) (c Check, decide Decide)
	// HDFS returns a property of the cluster's core-site.xml and hdfs-site.xml.
	HDFS func(name string) (value string, ok bool)
	// OwnAddresses are the addresses ("host:port") by which clients reach this server.
	OwnAddresses []string
	// Lookup resolves a host name; nil asks the system.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// LocalAddrs are this machine's addresses; nil reads them from the system.
	LocalAddrs func() ([]netip.Addr, error)
}

// The limits of the checks.
const (
	// maxSkew is the largest difference of the source's clock from ours. Signed cookies and Kerberos depend on
	// clocks; Kerberos fails at 5 minutes.
	maxSkew = 30 * time.Second
	// kerberosSkew is the largest difference of clocks that Kerberos accepts by default.
	kerberosSkew = 5 * time.Minute
)

// Requirements are checks of the requirements of Cloudera's procedure, which Plan makes, too. Those that do not apply
// to the source, or were not tried, are nil.
type Requirements struct {
	Latency, Alive, OtherHost, KeyHSM, HDFS *Check

	Clocks *Check      // those of the source's hosts
	Hosts  []HostFacts // of a source that is a KMS
}

// Requirements makes the checks that need no right at the source. It reads no key, and changes nothing.
func (e *Engine) Requirements(ctx context.Context) (r Requirements, err error) {
	h, err := e.read(ctx, e.cfg.Source.URI())
	if err != nil {
		return r, err
	}
	last := h.last()
	checks, facts := e.cfg.Probes.run(ctx, e.now)
	checks = append(checks, e.cfg.Probes.hdfs(ctx, facts,
		last != nil && (last.State == Complete || last.State == Finished)))
	r.Hosts = facts
	for name, to := range map[string]**Check{nameClocks: &r.Clocks, nameLatency: &r.Latency, nameAlive: &r.Alive,
		nameOtherHost: &r.OtherHost, NameKeyHSM: &r.KeyHSM, nameHDFS: &r.HDFS} {
		if i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name }); i >= 0 {
			*to = &checks[i]
		}
	}
	return r, nil
}

// The names of checks that Requirements returns.
const (
	nameLatency   = "latency of the HSM"
	nameAlive     = "source alive"
	nameOtherHost = "source on another host"
	nameHDFS      = "HDFS not yet pointed here"
	nameClocks    = "clocks"
	// NameKeyHSM is the name of a check in Probes.MoreChecks.
	NameKeyHSM = "Key HSM behind the trustee"
)

// run makes the checks that need no key. It also returns the facts about the source's hosts.
func (p *Probes) run(ctx context.Context, now func() time.Time) ([]Check, []HostFacts) {
	checks := []Check{p.CheckLatency(ctx)}
	var facts []HostFacts
	if p.Source == nil {
		checks = append(checks, p.checkNonKMS(ctx))
	} else {
		facts = p.Source(ctx)
		checks = append(checks, alive(facts), p.otherHost(facts), CheckClocks(facts, now))
	}
	if p.MoreChecks != nil {
		checks = append(checks, p.MoreChecks(ctx)...)
	}
	return checks, facts
}

// checkNonKMS checks whether a source that is not a KMS is alive.
func (p *Probes) checkNonKMS(ctx context.Context) Check {
	c := Check{Name: nameAlive, Measured: "the source is not a KMS; its keys are read from where it keeps them"}
	if p.Alive == nil {
		c.Status = NotTried // the reading of its keys shows it
		return c
	}
	if err := p.Alive(ctx); err != nil {
		c.Status, c.Measured, c.Cure = Failure, claviger.Reason(err), "check that the place where the source keeps "+
			"its keys can be reached and used from here"
		return c
	}
	c.Measured += ", which answers"
	return c
}

// CheckLatency measures round trips to the HSM.
func (p *Probes) CheckLatency(ctx context.Context) Check {
	c := Check{Name: nameLatency}
	if p.Latency == nil {
		c.Status, c.Measured = NotTried, "the target does not report it"
		return c
	}
	times, err := p.Latency(ctx)
	if err == nil && len(times) == 0 {
		err = fmt.Errorf("no round trip was made")
	}
	if err != nil {
		c.Status, c.Measured, c.Cure = Failure, claviger.Reason(err), "check that the HSM can be reached and used: "+
			"claviger hsm inspect"
		return c
	}
	text, p99 := Percentiles(times)
	c.Measured = fmt.Sprintf("%s; at most %v is advised", text, provider.AdvisedLatency)
	if p99 > provider.AdvisedLatency {
		c.Status = Warning
		c.Cure = "bring the server nearer to the HSM; or let clients request fewer new EDEKs at once: lower " +
			"hadoop.security.kms.client.encrypted.key.cache.size in the NameNode's core-site.xml, and " +
			"hadoop.security.kms.encrypted.key.cache.size in kms-site.xml"
	}
	return c
}

// Percentiles describes the times of some round trips, and returns the 99th percentile.
func Percentiles(times []time.Duration) (text string, p99 time.Duration) {
	slices.Sort(times)
	p50, p99 := percentile(times, 50), percentile(times, 99)
	return fmt.Sprintf("p50 %s, p99 %s of %d round trips", milli(p50), milli(p99), len(times)), p99
}

// percentile returns a percentile of sorted times, by nearest rank.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

func milli(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func alive(facts []HostFacts) Check {
	c := Check{Name: nameAlive}
	var measured, cures []string
	up := 0
	for _, f := range facts {
		if f.Err != nil {
			measured = append(measured, f.Base+": "+f.Err.Error())
			cures = append(cures, f.Cure)
			continue
		}
		up++
		m := fmt.Sprintf("%s answers in %s", f.Base, milli(f.Took))
		if f.Server != "" {
			m += " (" + claviger.Printable(f.Server) + ")"
		}
		if strings.HasPrefix(f.Base, "http:") {
			m += ", without TLS"
		}
		measured = append(measured, m)
	}
	c.Measured, c.Cure = strings.Join(measured, "; "), strings.Join(slices.Compact(cures), "; ")
	switch {
	case up == 0:
		c.Status = Failure
	case up < len(facts):
		c.Status = Warning
	}
	return c
}

// otherHost checks that source and target are on different hosts, as Cloudera's procedure demands.
func (p *Probes) otherHost(facts []HostFacts) Check {
	c := Check{Name: nameOtherHost}
	local, err := p.localAddrs()
	if err != nil {
		c.Status, c.Measured = NotTried, "this host's addresses are not known: "+err.Error()
		return c
	}
	var measured []string
	for _, f := range facts {
		switch i := slices.IndexFunc(f.Addrs, func(a netip.Addr) bool {
			return a.IsLoopback() || slices.Contains(local, a.Unmap())
		}); {
		case len(f.Addrs) == 0:
			c.Status = Warning
			measured = append(measured, f.Host+" has no address")
		case i >= 0:
			c.Status = Warning
			c.Cure = "run source and target on different hosts, so that they share no ports, no memory and no failures"
			measured = append(measured, fmt.Sprintf("%s (%s) is this host", f.Host, f.Addrs[i]))
		default:
			measured = append(measured, fmt.Sprintf("%s is %s", f.Host, f.Addrs[0]))
		}
	}
	c.Measured = strings.Join(measured, "; ")
	return c
}

// checkSelf finds out whether the source is this server. If this server runs, err shows it; otherwise this server's
// address and port show it.
func (p *Probes) checkSelf(ctx context.Context, facts []HostFacts, err error) (c Check, found bool) {
	c = Check{Name: "source is another server", Status: Failure, Cure: "name the KMS from which keys are to be " +
		"migrated by " + propSource + ", or give this server another port"}
	own := p.endpoints(ctx, p.OwnAddresses, true)
	switch {
	case errors.Is(err, provider.ErrSourceIsSelf):
		c.Measured = "the source is this server itself, or another node of its metastore"
		return c, true
	case len(p.OwnAddresses) == 0:
		return c, false
	}
	for _, f := range facts {
		if own.any(sourceEndpoints([]HostFacts{f})) {
			c.Measured = fmt.Sprintf("%s is the address and port of this server", f.Base)
			return c, true
		}
	}
	return c, false
}

func (p *Probes) localAddrs() ([]netip.Addr, error) {
	if p.LocalAddrs != nil {
		return p.LocalAddrs()
	}
	as, err := net.InterfaceAddrs()
	var local []netip.Addr
	for _, a := range as {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				local = append(local, ip.Unmap())
			}
		}
	}
	return local, err
}

// CheckClocks compares the clocks of hosts with that of this host.
func CheckClocks(facts []HostFacts, now func() time.Time) Check {
	c := Check{Name: nameClocks}
	var measured []string
	for _, f := range facts {
		if f.Err != nil || f.Date.IsZero() {
			continue
		}
		// The Date header has whole seconds, and the host wrote it while we waited.
		skew := f.Date.Sub(f.DateBegan.Add(f.DateTook / 2))
		if skew.Abs() < time.Second+f.DateTook {
			skew = 0
		}
		skew = skew.Round(time.Second)
		switch {
		case skew == 0:
			measured = append(measured, f.Host+"'s clock agrees with this host's")
		case skew > 0:
			measured = append(measured, fmt.Sprintf("%s's clock is %v ahead of this host's", f.Host, skew))
		default:
			measured = append(measured, fmt.Sprintf("%s's clock is %v behind this host's", f.Host, -skew))
		}
		if skew.Abs() > maxSkew {
			c.Status = Warning
			c.Cure = "set both clocks by NTP: signed cookies, delegation tokens and Kerberos compare times"
		}
		if skew.Abs() >= kerberosSkew {
			c.Status = Failure
		}
	}
	if len(measured) == 0 {
		c.Status, measured = NotTried, []string{fmt.Sprintf("no answer with a date (this host's clock says %s)",
			now().Format(time.RFC3339))}
	}
	c.Measured = strings.Join(measured, "; ")
	return c
}

// whyUnreachable probes the source's hosts and returns a cure that fits their answers, or "".
func (p *Probes) whyUnreachable(ctx context.Context) string {
	if p.Source == nil {
		return ""
	}
	for _, f := range p.Source(ctx) {
		if f.Err != nil && f.Cure != "" {
			return f.Cure
		}
	}
	return ""
}

// hostOf returns the host of a base URL, for messages and lookups.
func hostOf(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base
	}
	return u.Hostname()
}
