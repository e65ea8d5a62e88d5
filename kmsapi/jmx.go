package kmsapi

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Hadoop's KMS shows its figures as JMX beans in JSON, at /jmx and /kms/jmx.
// Monitoring of clusters reads them there. This server shows the beans that have a
// meaning for it: the meters of calls, the figures of the web server and of
// delegation tokens, and the figures that any process has (beans.go).

// meterOf maps an operation to the meter that counts its calls.
var meterOf = map[string]string{
	"create_key": "admin", "delete_key": "admin", "roll_new_version": "admin", "invalidate_cache": "admin",
	"undelete_key": "admin", "purge_key": "admin", "migrate_key": "admin", "get_deleted_keys": "admin",
	"get_keys_metadata": "admin", "get_keys": "admin", "get_metadata": "admin",
	"get_current_key": "key", "get_key_versions": "key", "get_key_version": "key",
	"generate_eek": "generate_eek", "decrypt_eek": "decrypt_eek", "reencrypt_eek": "reencrypt_eek",
	"reencrypt_eek_batch": "reencrypt_eek_batch",
}

// meterNames are all meters, in the order in which they are shown.
var meterNames = []string{
	"admin", "key", "invalid", "unauthorized", "unauthenticated",
	"generate_eek", "decrypt_eek", "reencrypt_eek", "reencrypt_eek_batch",
}

// gauges holds the figures that the beans show.
type gauges struct {
	began  time.Time
	op     Operations
	host   string
	meters map[string]*meter // not changed after newGauges
	web    web
	tokens tokenFigures
	ranger *rangerFigures
}

func newGauges(op Operations, now time.Time) *gauges {
	if op.ProcessName == "" {
		op.ProcessName = "KMS"
	}
	g := &gauges{began: now, op: op, host: hostname(), meters: make(map[string]*meter), ranger: newRangerFigures()}
	for _, name := range meterNames {
		g.meters[name] = newMeter(now)
	}
	return g
}

// count counts an answered request, as Hadoop's KMSAuthenticationFilter and KMS
// do. As in Hadoop, a refusal by the key-level rules is not "unauthorized".
func (g *gauges) count(op string, status int, denied bool, now time.Time) {
	if m, ok := g.meters[meterOf[op]]; ok {
		m.mark(now)
	}
	if denied {
		g.meters["unauthorized"].mark(now)
	}
	switch status {
	case http.StatusOK, http.StatusCreated:
	case http.StatusUnauthorized:
		g.meters["unauthenticated"].mark(now)
	default:
		g.meters["invalid"].mark(now)
	}
}

// meterTick is the time between two updates of a meter's moving averages. com.codahale.metrics.Meter, whose figures a
// meter shows, has the same interval.
const meterTick = 5 * time.Second

// meter counts events and their rate over the last 1, 5 and 15 minutes. It has no
// goroutine: mark and bean update the averages.
type meter struct {
	began     time.Time
	count     atomic.Int64
	uncounted atomic.Int64 // events since the last tick
	nextTick  atomic.Int64 // nanoseconds after began

	mu    sync.Mutex
	ticks int64 // ticks done
	rates [3]float64
}

// windows are the times of the averages, in minutes.
var windows = [3]float64{1, 5, 15}

func newMeter(now time.Time) *meter {
	m := &meter{began: now}
	m.nextTick.Store(int64(meterTick))
	return m
}

func (m *meter) mark(now time.Time) {
	m.tick(now)
	m.count.Add(1)
	m.uncounted.Add(1)
}

// tick does all ticks up to now. All new events count for the first of them; in
// the others the rates only decay.
func (m *meter) tick(now time.Time) {
	age := now.Sub(m.began)
	if int64(age) < m.nextTick.Load() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	due := int64(age / meterTick)
	n := due - m.ticks
	if n <= 0 {
		return // another goroutine did these ticks
	}
	rate := float64(m.uncounted.Swap(0)) / meterTick.Seconds()
	for i, minutes := range windows {
		keep := math.Exp(-meterTick.Minutes() / minutes)
		if m.ticks == 0 {
			m.rates[i] = rate // the first tick has no earlier rate
		} else {
			m.rates[i] = keep*m.rates[i] + (1-keep)*rate
		}
		m.rates[i] *= math.Pow(keep, float64(n-1))
	}
	m.ticks = due
	m.nextTick.Store((due + 1) * int64(meterTick))
}

func (m *meter) bean(name string, now time.Time) bean {
	m.tick(now)
	m.mu.Lock()
	rates := m.rates
	m.mu.Unlock()
	count, mean := m.count.Load(), 0.0
	if elapsed := now.Sub(m.began).Seconds(); count > 0 && elapsed > 0 {
		mean = float64(count) / elapsed
	}
	return bean{"metrics:name=hadoop.kms." + name + ".calls.meter", []attribute{
		{"modelerType", "com.codahale.metrics.JmxReporter$JmxMeter"},
		{"Count", count},
		{"FifteenMinuteRate", rates[2]}, {"FiveMinuteRate", rates[1]}, {"MeanRate", mean}, {"OneMinuteRate", rates[0]},
		{"RateUnit", "events/second"},
	}}
}

// bean is a JMX object.
type bean struct {
	name       string
	attributes []attribute // in the order of the answer
}

type attribute struct {
	name  string
	value any
}

// MarshalJSON keeps the order of the attributes, for human readers.
func (b bean) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, a := range append([]attribute{{"name", b.name}}, b.attributes...) {
		if i > 0 {
			out.WriteByte(',')
		}
		value, err := json.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		out.WriteString(strconv.Quote(a.name) + ":") // our names need no JSON escapes
		out.Write(value)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// beans returns all beans with their current values.
func (g *gauges) beans(now time.Time) []bean {
	list := []bean{g.jvmBean(), g.webBean(now), g.tokenBean(), memoryBean(), g.runtimeBean(now)}
	for _, name := range meterNames {
		list = append(list, g.meters[name].bean(name, now))
	}
	return list
}

func (g *gauges) runtimeBean(now time.Time) bean {
	return bean{"java.lang:type=Runtime", []attribute{
		{"modelerType", "claviger"},
		{"Name", strconv.Itoa(os.Getpid()) + "@" + g.host}, {"Pid", os.Getpid()},
		{"VmName", "Go"}, {"VmVersion", runtime.Version()},
		{"StartTime", g.began.UnixMilli()}, {"Uptime", now.Sub(g.began).Milliseconds()},
	}}
}

// jmx is Hadoop's JMXJsonServlet. The parameter qry selects beans by a pattern of
// their names; get selects one attribute by NAME::ATTRIBUTE.
func (c *call) jmx() {
	// Any authenticated user may read /kms/jmx, as in Hadoop's KMSJMXServlet.
	if !c.readMethod() || rawPath(c.r) == "/jmx" && !c.mayInstrument() {
		return
	}
	status, answer := c.queryBeans()
	body, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		c.Log.Error("jmx", "err", err)
		status, body = http.StatusInternalServerError, nil
	}
	h := c.w.Header()
	h.Set("Access-Control-Allow-Methods", "GET")
	h.Set("Access-Control-Allow-Origin", "*")
	c.answer(status, "application/json; charset=utf8", body)
}

// jmxError is the answer to a query that is wrong or finds no attribute.
type jmxError struct {
	Result  string `json:"result"`
	Message string `json:"message"`
}

func (c *call) queryBeans() (status int, answer any) {
	query, only := "*:*", ""
	if q, ok := c.param("qry"); ok {
		query = q
	}
	if get, ok := c.param("get"); ok {
		name, attr, ok := strings.Cut(get, "::")
		if !ok || attr == "" || strings.Contains(attr, "::") {
			return http.StatusBadRequest, jmxError{"ERROR", "query format is not as expected."}
		}
		query, only = name, attr
	}
	pattern, ok := parseObjectName(query)
	if !ok {
		return http.StatusBadRequest, jmxError{"ERROR",
			"qry is not an object name: it must be DOMAIN:KEY=VALUE,..., where * and ? are wildcards"}
	}
	found := []bean{}
	for _, b := range c.gauges.beans(time.Now()) {
		if !pattern.matches(b.name) {
			continue
		}
		if only != "" && only != "*" {
			i := slices.IndexFunc(b.attributes, func(a attribute) bool { return a.name == only })
			if i < 0 {
				return http.StatusNotFound, jmxError{"ERROR", "No attribute with name " + only + " was found."}
			}
			b.attributes = slices.Compact([]attribute{b.attributes[0], b.attributes[i]}) // the first is modelerType
		}
		found = append(found, b)
	}
	return http.StatusOK, map[string]any{"beans": found}
}

// objectName is a pattern of javax.management.ObjectName.
type objectName struct {
	domain     string
	properties map[string]string
	more       bool // a matching name may have more properties
}

// parseObjectName parses DOMAIN:KEY=VALUE,... . A property "*" allows other
// properties. Quoted values are not supported: no bean here has one.
func parseObjectName(s string) (objectName, bool) {
	if s == "" {
		s = "*:*" // as in Java
	}
	domain, list, ok := strings.Cut(s, ":")
	if !ok || list == "" {
		return objectName{}, false
	}
	n := objectName{domain: domain, properties: map[string]string{}}
	for _, p := range strings.Split(list, ",") {
		if p == "*" && !n.more {
			n.more = true
			continue
		}
		key, value, ok := strings.Cut(p, "=")
		if _, twice := n.properties[key]; !ok || key == "" || twice {
			return objectName{}, false
		}
		n.properties[key] = value
	}
	return n, true
}

// matches reports whether a bean's name matches the pattern.
func (n objectName) matches(name string) bool {
	bean, _ := parseObjectName(name) // beans have correct names
	if !wildcard(n.domain, bean.domain) || !n.more && len(n.properties) != len(bean.properties) {
		return false
	}
	for key, pattern := range n.properties {
		if value, ok := bean.properties[key]; !ok || !wildcard(pattern, value) {
			return false
		}
	}
	return true
}

// wildcard reports whether s matches pattern, in which * is any text and ? is one
// byte. Its time is proportional to the product of the lengths.
func wildcard(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
