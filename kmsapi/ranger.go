package kmsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"claviger/kmswire"
)

// Clients of Apache Ranger's KMS use more than Hadoop's KMS has: /kms/api/status
// before their first request, one request for a data key both encrypted and in
// the clear, and figures under /kms/metrics. Paths and formats are Ranger's (its
// classes RangerKMSRestApi, KMS, MetricREST).
const (
	pathStatus     = base + "/api/status"
	pathJSON       = base + "/metrics/json"
	pathPrometheus = base + "/metrics/prometheus"
)

// rangerStatus says only that the server runs. /readyz says whether it can serve.
func (c *call) rangerStatus() {
	if c.readMethod() {
		c.answer(http.StatusOK, "application/json", []byte(`{"status":"KMS service is running"}`))
	}
}

// dataKey makes an EDEK and decrypts it. The caller needs both rights; the keyring
// checks them, the second one before it decrypts.
func dataKey(ctx context.Context, c *call) error {
	if err := c.admit(ctx, generates, 1); err != nil {
		return err
	}
	edeks, err := c.Ring.Generate(ctx, c.caller, c.name, 1)
	if err != nil {
		return generateError(c, err)
	}
	dek, err := c.Ring.Decrypt(ctx, c.caller, c.name, true, edeks[0])
	if err != nil {
		return err
	}
	c.edeks = 1
	c.json(http.StatusOK, func(b []byte) []byte {
		b = kmswire.AppendEDEK(append(b, `{"edek":`...), &c.name, &edeks[0])
		b = kmswire.AppendDEK(append(b, `,"dek":`...), c.name, dek)
		return append(b, '}')
	})
	dek.Wipe()
	return nil
}

// rangerNames are the beginnings of the names of Ranger's figures, by operation.
var rangerNames = map[string]string{
	"create_key": "KEY_CREATE", "delete_key": "DELETE_KEY", "roll_new_version": "ROLL_NEW_VERSION",
	"invalidate_cache": "INVALIDATE_CACHE", "get_keys_metadata": "GET_KEYS_METADATA", "get_keys": "GET_KEYS",
	"get_metadata": "GET_METADATA", "get_current_key": "GET_CURRENT_KEY", "get_key_versions": "GET_KEY_VERSIONS",
	"get_key_version": "GET_KEY_VERSION", "generate_eek": "EEK_GENERATE", "decrypt_eek": "EEK_DECRYPT",
	"reencrypt_eek": "EEK_REENCRYPT", "reencrypt_eek_batch": "REENCRYPT_EEK_BATCH",
}

// rangerFigures holds the figures that Ranger has and Hadoop lacks.
type rangerFigures struct {
	byOp        map[string]*rangerFigure // by operation; the map does not change
	total       atomic.Int64
	names       atomic.Int64 // names in requests of get_keys_metadata
	reencrypted atomic.Int64 // EDEKs in batches
}

type rangerFigure struct{ calls, millis atomic.Int64 }

func newRangerFigures() *rangerFigures {
	f := &rangerFigures{byOp: make(map[string]*rangerFigure)}
	for op := range rangerNames {
		f.byOp[op] = new(rangerFigure)
	}
	return f
}

// count counts an answered request.
func (f *rangerFigures) count(c *call, took time.Duration) {
	f.total.Add(1)
	op := c.op()
	figure := f.byOp[op]
	if figure == nil {
		return
	}
	figure.calls.Add(1)
	figure.millis.Add(took.Milliseconds())
	switch op {
	case "get_keys_metadata":
		f.names.Add(int64(len(c.query["key"])))
	case "reencrypt_eek_batch":
		f.reencrypted.Add(int64(c.edeks))
	}
}

// figure is a figure in Ranger's form: a counter or a gauge.
type figure struct {
	name    string
	value   int64
	counter bool
}

// figures returns the current figures, sorted by name.
func (g *gauges) figures() []figure {
	list := []figure{
		{"TOTAL_CALL_COUNT", g.ranger.total.Load(), true},
		{"UNAUTHENTICATED_CALLS_COUNT", g.meters["unauthenticated"].count.Load(), true},
		{"UNAUTHORIZED_CALLS_COUNT", g.meters["unauthorized"].count.Load(), true},
		{"GET_KEYS_METADATA_KEYNAMES_COUNT", g.ranger.names.Load(), true},
		{"REENCRYPT_EEK_BATCH_KEYS_COUNT", g.ranger.reencrypted.Load(), true},
	}
	for op, stem := range rangerNames {
		f := g.ranger.byOp[op]
		list = append(list, figure{stem + "_COUNT", f.calls.Load(), true},
			figure{stem + "_ELAPSED_TIME", f.millis.Load(), false})
	}
	slices.SortFunc(list, func(a, b figure) int { return strings.Compare(a.name, b.name) })
	return list
}

// rangerJSON serves /kms/metrics/json: a map of records. This server has one,
// "KMS".
func (c *call) rangerJSON() {
	if !c.readMethod() || !c.mayInstrument() {
		return
	}
	record := make(map[string]int64)
	for _, f := range c.gauges.figures() {
		record[f.name] = f.value
	}
	body, err := json.Marshal(map[string]map[string]int64{"KMS": record})
	if err != nil { // numbers always encode
		c.fail(err)
		return
	}
	c.answer(http.StatusOK, "application/json", body)
}

// rangerPrometheus serves /kms/metrics/prometheus. The name of a metric is the name
// of the record and the name of the figure in lower case, without a separator.
func (c *call) rangerPrometheus() {
	if !c.readMethod() || !c.mayInstrument() {
		return
	}
	var b []byte
	for _, f := range c.gauges.figures() {
		kind := "gauge"
		if f.counter {
			kind = "counter"
		}
		name := "kms" + strings.ToLower(f.name)
		b = fmt.Appendf(b, "# TYPE %s %s\n%s{context=\"kms\",hostname=%q} %d\n",
			name, kind, name, c.gauges.host, f.value)
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", b)
}
