package kmsclient_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"claviger/provider/kmsclient"
	"claviger/trace"
)

// TestTraced: each attempt at a host is a step of the traced request, with the host's address, and its traceparent
// header goes to the host. A request that is not traced sends no such header.
func TestTraced(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	var parents []string
	broken := true
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet { // a login
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		parents = append(parents, r.Header.Get("Traceparent"))
		if broken {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		was := broken
		broken = false
		return was
	}
	s := serve(t, f)
	p := open(t, uriOf(s), kmsclient.Options{User: "we", MaxRetries: 1})
	spans := tracetest.NewSpanRecorder()
	request := trace.New(sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))).Request(nil)
	if _, err := p.Keys(request.In(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Keys(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	list := spans.Ended()
	if len(list) != 2 || len(parents) != 3 || parents[2] != "" {
		t.Fatalf("%d spans, the headers %q", len(list), parents)
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"error", ""} {
		span := list[i]
		if span.Name() != "kmsclient.Keys" || span.Status().Description != want ||
			!strings.Contains(parents[i], "-"+span.SpanContext().SpanID().String()+"-01") {
			t.Errorf("%+v, header %s", span, parents[i])
		}
		attributes := attribute.NewSet(span.Attributes()...)
		port, _ := attributes.Value("server.port")
		address, _ := attributes.Value("server.address")
		if address.AsString()+":"+port.String() != u.Host {
			t.Errorf("%v, want %s", span.Attributes(), u.Host)
		}
	}
}
