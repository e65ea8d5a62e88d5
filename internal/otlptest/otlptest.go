// Package otlptest is a collector of OpenTelemetry for tests. It takes spans by OTLP over HTTP, and keeps them.
package otlptest

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span that the collector got.
type Span struct {
	Name              string
	Trace, ID, Parent string // hexadecimal; Parent may be ""
	Kind              tracepb.Span_SpanKind
	Begin, End        time.Time
	Attributes        map[string]string
	Links             []string // IDs of other spans
	Failed            bool
	Reason            string            // of a failed span
	Resource          map[string]string // attributes of the program
}

// Collector is a server. Its zero value is not ready; use New.
type Collector struct {
	URL string // without a path

	answer answer

	mu    sync.Mutex
	spans []Span
	raw   bytes.Buffer
	posts int
}

// answer is the answer of a Collector.
type answer struct {
	mu     sync.Mutex
	status int
	body   []byte
	hang   bool
}

// New starts a Collector, which ends with the test.
func New(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{answer: answer{status: http.StatusOK}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	c.URL = server.URL
	return c
}

// Answer sets the status and the body of all answers from now on.
func (c *Collector) Answer(status int, body []byte) {
	c.answer.mu.Lock()
	defer c.answer.mu.Unlock()
	c.answer.status, c.answer.body = status, body
}

// Hang lets each request hang until its client gives up, from now on.
func (c *Collector) Hang() {
	c.answer.mu.Lock()
	defer c.answer.mu.Unlock()
	c.answer.hang = true
}

// ServeHTTP takes one batch.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var batch tracepb.TracesData // the same on the wire as ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &batch)
	}
	if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "not a batch of spans", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.posts++
	c.mu.Unlock()
	c.answer.mu.Lock()
	status, answer, hang := c.answer.status, c.answer.body, c.answer.hang
	c.answer.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if status == http.StatusOK {
		c.keep(&batch, body)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

// keep keeps the spans of a batch.
func (c *Collector) keep(batch *tracepb.TracesData, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(body)
	for _, of := range batch.GetResourceSpans() {
		for _, scope := range of.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				span := Span{Name: s.GetName(), Trace: hex.EncodeToString(s.GetTraceId()),
					ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Kind: s.GetKind(), Attributes: texts(s.GetAttributes()),
					Begin:  time.Unix(0, int64(s.GetStartTimeUnixNano())), //nolint:gosec // a time of today
					End:    time.Unix(0, int64(s.GetEndTimeUnixNano())),   //nolint:gosec // a time of today
					Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
					Reason: s.GetStatus().GetMessage(), Resource: texts(of.GetResource().GetAttributes())}
				for _, l := range s.GetLinks() {
					span.Links = append(span.Links, hex.EncodeToString(l.GetSpanId()))
				}
				c.spans = append(c.spans, span)
			}
		}
	}
}

func texts(list []*commonpb.KeyValue) map[string]string {
	m := make(map[string]string)
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			m[kv.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[kv.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		default:
			m[kv.GetKey()] = kv.GetValue().String()
		}
	}
	return m
}

// Spans returns the spans so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Raw returns all bytes of the batches so far.
func (c *Collector) Raw() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.raw.Bytes())
}

// Posts returns how many batches came, also those that were not kept.
func (c *Collector) Posts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.posts
}

// Named returns the spans with that name.
func Named(spans []Span, name string) []Span {
	return slices.DeleteFunc(slices.Clone(spans), func(s Span) bool { return s.Name != name })
}

// Path returns the names from a span up to the first whose parent is not among spans, as in "a < b < c".
func Path(spans []Span, s Span) string {
	path := s.Name
	for i := 0; i >= 0 && s.Parent != ""; {
		if i = slices.IndexFunc(spans, func(p Span) bool { return p.ID == s.Parent }); i >= 0 {
			s = spans[i]
			path += " < " + s.Name
		}
	}
	return path
}
