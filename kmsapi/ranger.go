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

// Clients that know Apache Ranger's KMS ask for more than Hadoop's KMS has:
// /kms/api/status before anything else, a data key in both forms by one request,
// and figures under /kms/metrics. The paths and the forms are Ranger's (its
// classes RangerKMSRestApi, KMS, MetricREST).
const (
	pathStatus     = base + "/api/status"
	pathJSON       = base + "/metrics/json"
	pathPrometheus = base + "/metrics/prometheus"
)

// rangerStatus says that the server answers; /readyz says whether it can serve.
func (c *call) rangerStatus() {
	if c.reads() {
		c.answer(http.StatusOK, "application/json", []byte(`{"status":"KMS service is running"}`))
	}
}

// dataKey makes an EDEK and opens it at once, for who has the rights to both. All
// rules are asked by the keyring, those of the second before the DEK is known.
func dataKey(ctx context.Context, c *call) error {
	if err := c.admit(ctx, generates, 1); err != nil {
		return err
	}
	edeks, err := c.Ring.Generate(ctx, c.caller, c.name, 1)
	if err != nil {
		return insideGenerate(c, err)
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
	wipe(dek)
	return nil
}

// rangerNames are the stems of Ranger's names of what it counts, by operation.
var rangerNames = map[string]string{
	"create_key": "KEY_CREATE", "delete_key": "DELETE_KEY", "roll_new_version": "ROLL_NEW_VERSION", "invalidate_cache": "INVALIDATE_CACHE",
	"get_keys_metadata": "GET_KEYS_METADATA", "get_keys": "GET_KEYS", "get_metadata": "GET_METADATA",
	"get_current_key": "GET_CURRENT_KEY", "get_key_versions": "GET_KEY_VERSIONS", "get_key_version": "GET_KEY_VERSION",
	"generate_eek": "EEK_GENERATE", "decrypt_eek": "EEK_DECRYPT", "reencrypt_eek": "EEK_REENCRYPT", "reencrypt_eek_batch": "REENCRYPT_EEK_BATCH",
}

// rangerFigures are what Ranger counts beside Hadoop's meters.
type rangerFigures struct {
	of          map[string]*rangerFigure // by operation; not changed
	total       atomic.Int64
	names       atomic.Int64 // asked for by get_keys_metadata
	reencrypted atomic.Int64 // EDEKs of batches
}

type rangerFigure struct{ calls, millis atomic.Int64 }

func newRangerFigures() *rangerFigures {
	f := &rangerFigures{of: make(map[string]*rangerFigure)}
	for op := range rangerNames {
		f.of[op] = new(rangerFigure)
	}
	return f
}

// count takes an answered request into account.
func (f *rangerFigures) count(c *call, took time.Duration) {
	f.total.Add(1)
	op := c.op()
	of := f.of[op]
	if of == nil {
		return
	}
	of.calls.Add(1)
	of.millis.Add(took.Milliseconds())
	switch op {
	case "get_keys_metadata":
		f.names.Add(int64(len(c.query["key"])))
	case "reencrypt_eek_batch":
		f.reencrypted.Add(int64(c.edeks))
	}
}

// figure is one as it is shown; a gauge unless it is a counter.
type figure struct {
	name    string
	value   int64
	counter bool
}

// figures are all of them by name, as they are now.
func (g *gauges) figures() []figure {
	list := []figure{
		{"TOTAL_CALL_COUNT", g.ranger.total.Load(), true},
		{"UNAUTHENTICATED_CALLS_COUNT", g.meters["unauthenticated"].count.Load(), true},
		{"UNAUTHORIZED_CALLS_COUNT", g.meters["unauthorized"].count.Load(), true},
		{"GET_KEYS_METADATA_KEYNAMES_COUNT", g.ranger.names.Load(), true},
		{"REENCRYPT_EEK_BATCH_KEYS_COUNT", g.ranger.reencrypted.Load(), true},
	}
	for op, stem := range rangerNames {
		f := g.ranger.of[op]
		list = append(list, figure{stem + "_COUNT", f.calls.Load(), true}, figure{stem + "_ELAPSED_TIME", f.millis.Load(), false})
	}
	slices.SortFunc(list, func(a, b figure) int { return strings.Compare(a.name, b.name) })
	return list
}

// rangerJSON serves /kms/metrics/json: records by name, of which there is one here.
func (c *call) rangerJSON() {
	if !c.reads() || !c.instrumentation() {
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

// rangerPrometheus serves /kms/metrics/prometheus. Names are record and figure in
// lower case, with nothing between them.
func (c *call) rangerPrometheus() {
	if !c.reads() || !c.instrumentation() {
		return
	}
	var b []byte
	for _, f := range c.gauges.figures() {
		kind := "gauge"
		if f.counter {
			kind = "counter"
		}
		name := "kms" + strings.ToLower(f.name)
		b = fmt.Appendf(b, "# TYPE %s %s\n%s{context=\"kms\",hostname=%q} %d\n", name, kind, name, c.gauges.host, f.value)
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", b)
}
