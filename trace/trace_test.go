package trace_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"claviger"
	"claviger/trace"
)

// recorder returns a Tracer, and the spans that have ended.
func recorder(t *testing.T, sampler sdk.Sampler) (*trace.Tracer, *tracetest.SpanRecorder) {
	t.Helper()
	r := tracetest.NewSpanRecorder()
	p := sdk.NewTracerProvider(sdk.WithSampler(sampler), sdk.WithSpanProcessor(r))
	return trace.New(p), r
}

// TestOff: without a Tracer nothing is allocated, and each method may be called.
func TestOff(t *testing.T) {
	var none *trace.Tracer
	header := http.Header{"Traceparent": {parent}}
	type key struct{}
	request := context.WithValue(t.Context(), key{}, "x")
	failed := errors.New("failed")
	allocs := testing.AllocsPerRun(100, func() {
		span := none.Request(header)
		ctx := span.In(request)
		ctx, step := trace.Start(ctx, "step")
		_, client := trace.StartClient(ctx, "client")
		trace.Inject(ctx, header)
		step.Step("further").End()
		step.Rename("x")
		step.Number(trace.EDEKs, 1000)
		step.Word(trace.Result, "CKR_OK")
		step.Fail("error")
		err := failed
		step.EndWith(&err)
		client.End()
		trace.Shared("shared", nil).End()
	})
	if allocs != 0 || header.Get("Traceparent") != parent {
		t.Errorf("%v allocations, header %v", allocs, header)
	}
}

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
	parent  = "00-" + traceID + "-" + spanID + "-01"
)

// TestParent: only one valid traceparent makes the caller's span the parent, and no other header does.
func TestParent(t *testing.T) {
	for _, c := range []struct {
		header http.Header
		ok     bool
	}{
		{http.Header{"Traceparent": {parent}}, true},
		{http.Header{"Traceparent": {parent}, "Tracestate": {"x=hunter2"}, "Baggage": {"x=hunter2"}}, true},
		{http.Header{}, false},
		{http.Header{"Traceparent": {parent, parent}}, false},
		{http.Header{"Traceparent": {parent + "-x"}}, false},
		{http.Header{"Traceparent": {"01" + parent[2:] + "-x"}}, false},
		{http.Header{"Traceparent": {"ff" + parent[2:]}}, false},
		{http.Header{"Traceparent": {"00-" + traceID + "-0000000000000000-01"}}, false},
		{http.Header{"Traceparent": {"00-" + traceID + "-zzzzzzzzzzzzzzzz-01"}}, false},
	} {
		tracer, spans := recorder(t, sdk.AlwaysSample())
		tracer.Request(c.header).End()
		got := spans.Ended()[0]
		if ok := got.Parent().SpanID().String() == spanID; ok != c.ok ||
			ok != (got.SpanContext().TraceID().String() == traceID) {
			t.Errorf("%v: parent %v", c.header, got.Parent())
		}
		if got.SpanContext().TraceState().Len() != 0 {
			t.Errorf("%v: tracestate %v", c.header, got.SpanContext().TraceState())
		}
	}
}

// TestInject: a request to another server gets the header of the nearest span, also if the request is not traced, so
// that the other server does not trace it either.
func TestInject(t *testing.T) {
	for flags, sampler := range map[string]sdk.Sampler{"01": sdk.AlwaysSample(), "00": sdk.NeverSample()} {
		tracer, spans := recorder(t, sampler)
		span := tracer.Request(http.Header{"Traceparent": {parent}})
		ctx, step := trace.StartClient(span.In(t.Context()), "client")
		header := http.Header{}
		trace.Inject(ctx, header)
		step.End()
		span.End()
		var own string
		if flags == "01" {
			own = spans.Ended()[0].SpanContext().SpanID().String()
		} else if len(spans.Ended()) != 0 || step != nil {
			t.Errorf("spans of a request that is not traced: %v", spans.Ended())
		} else {
			own = header.Get("Traceparent")[36:52]
		}
		if want := "00-" + traceID + "-" + own + "-" + flags; header.Get("Traceparent") != want || own == spanID {
			t.Errorf("%v, want %s", header, want)
		}
	}
}

// TestShared: a step of three requests, of which one is not traced, is in the trace of the first, and has a link to the
// other, which has a link to the step.
func TestShared(t *testing.T) {
	tracer, spans := recorder(t, sdk.AlwaysSample())
	unsampled, _ := recorder(t, sdk.NeverSample())
	first, second := tracer.Request(nil), tracer.Request(nil)
	trace.Shared("shared", []*trace.Span{nil, unsampled.Request(nil), first, second}).End()
	first.End()
	second.End()
	list := spans.Ended()
	shared, one, two := list[0], list[1], list[2]
	if shared.Parent().SpanID() != one.SpanContext().SpanID() || len(shared.Links()) != 1 || len(one.Links()) != 0 ||
		!shared.Links()[0].SpanContext.Equal(two.SpanContext()) || len(two.Links()) != 1 ||
		!two.Links()[0].SpanContext.Equal(shared.SpanContext()) {
		t.Errorf("%+v", list)
	}
	if trace.Shared("shared", []*trace.Span{nil, unsampled.Request(nil)}) != nil {
		t.Error("a span of requests that are not traced")
	}
}

// TestReasons: a failed span says why in a word, without the text of the error.
func TestReasons(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{claviger.Errorf("op", claviger.KeyDenied, "salaries", "alice may not"), "key denied"},
		{fmt.Errorf("x: %w", claviger.E("op", claviger.Unavailable, "salaries", context.Canceled)), "unavailable"},
		{fmt.Errorf("salaries: %w", context.DeadlineExceeded), "deadline exceeded"},
		{context.Canceled, "canceled"},
		{errors.New("salaries"), "error"},
	} {
		tracer, spans := recorder(t, sdk.AlwaysSample())
		_, step := trace.Start(tracer.Request(nil).In(t.Context()), "step")
		step.EndWith(&c.err)
		status := spans.Ended()[0].Status()
		if failed := status.Code == codes.Error; failed != (c.err != nil) || status.Description != c.want {
			t.Errorf("%v: %+v", c.err, status)
		}
		if events := spans.Ended()[0].Events(); len(events) > 0 {
			t.Errorf("%v: events %v", c.err, events)
		}
	}
}

// TestNames: spans are named as they are at their ends, and are children of the span of the context.
func TestNames(t *testing.T) {
	tracer, spans := recorder(t, sdk.AlwaysSample())
	request := tracer.Request(nil)
	ctx, outer := trace.Start(request.In(t.Context()), "outer")
	_, inner := trace.Start(ctx, "inner")
	inner.End()
	outer.End()
	request.Rename("decrypt_eek")
	request.End()
	var names []string
	for _, s := range spans.Ended() {
		names = append(names, s.Name())
	}
	list := spans.Ended()
	if !slices.Equal(names, []string{"inner", "outer", "decrypt_eek"}) ||
		list[0].Parent().SpanID() != list[1].SpanContext().SpanID() ||
		list[1].Parent().SpanID() != list[2].SpanContext().SpanID() {
		t.Errorf("%v", names)
	}
}
