// Package trace follows a request through the rooms of a KMS: each step of a traced request is a span of an
// OpenTelemetry trace. Package trace/otlp sends the spans to a collector.
//
// A nil *Tracer and a nil *Span trace nothing. Each method may be called on nil, and such a call costs one comparison.
// Without a Tracer, Start looks for a span in the context, finds none, and allocates nothing.
//
// Some people can read traces, but not the audit log. So a span holds no name of a key or user, and no text of an
// error: only names of steps, the kinds of errors, the numbers and words of the attributes below, and the id of the
// request in the log and in the audit log. docs/monitoring.md lists the spans.
package trace

import (
	"context"
	"errors"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"

	"claviger"
)

// Attribute is the name of an attribute. A value is a number, or one of a few words that are written in this program or
// its configuration. RequestID is the exception.
type Attribute string

// The attributes.
const (
	RequestID     Attribute = "kms.request.id"            // as in the log and in the audit log
	Status        Attribute = "http.response.status_code" // of an answer
	EDEKs         Attribute = "kms.edeks"                 // of a request
	Class         Attribute = "kms.class"                 // of the slots that a request waits for
	Provider      Attribute = "kms.provider"              // the scheme of the provider's URI
	Callers       Attribute = "hsm.callers"               // requests that share a call to the HSM
	Blocks        Attribute = "hsm.blocks"                // of 16 bytes in a call to the HSM
	Result        Attribute = "hsm.result"                // of a call to the HSM, as in CKR_OK
	ServerAddress Attribute = "server.address"            // host of another KMS
	ServerPort    Attribute = "server.port"               // port of another KMS
)

// Tracer begins the traces of requests.
type Tracer struct{ tracer oteltrace.Tracer }

// scope names this program as the source of the spans.
const scope = "claviger"

// New returns a Tracer that makes its spans by a provider of OpenTelemetry.
func New(p oteltrace.TracerProvider) *Tracer { return &Tracer{p.Tracer(scope)} }

// traceParent is the header with the caller's span, in the form of W3C Trace Context.
const traceParent = "traceparent"

// parentLength is the length of a traceparent of version 00.
const parentLength = 55

// parent is the carrier of one traceparent header. It carries nothing else: a tracestate may hold any text.
type parent string

// Get is part of propagation.TextMapCarrier.
func (p *parent) Get(key string) string {
	if key == traceParent {
		return string(*p)
	}
	return ""
}

// Set is part of propagation.TextMapCarrier.
func (p *parent) Set(key, value string) {
	if key == traceParent {
		*p = parent(value)
	}
}

// Keys is part of propagation.TextMapCarrier.
func (*parent) Keys() []string { return []string{traceParent} }

// Request begins the span of a request. If the request has one valid traceparent header, the caller's span becomes the
// parent. If the sampler leaves the request out, the result is not nil either, so that Inject passes this decision on.
func (t *Tracer) Request(header http.Header) *Span {
	if t == nil {
		return nil
	}
	ctx := context.Background()
	if values := header["Traceparent"]; len(values) == 1 && len(values[0]) == parentLength {
		of := parent(values[0])
		ctx = propagation.TraceContext{}.Extract(ctx, &of)
	}
	return t.start(ctx, "request", oteltrace.WithSpanKind(oteltrace.SpanKindServer))
}

func (t *Tracer) start(ctx context.Context, name string, o ...oteltrace.SpanStartOption) *Span {
	_, span := t.tracer.Start(ctx, name, o...)
	return &Span{span: span, tracer: t, records: span.IsRecording()}
}

// Span is a step of a request. Many goroutines may use it at the same time.
type Span struct {
	span    oteltrace.Span
	tracer  *Tracer
	records bool // false if the sampler left the request out
}

type spanKey struct{}

// In returns a context in which s is the span.
func (s *Span) In(ctx context.Context) context.Context {
	if s == nil {
		return ctx
	}
	return context.WithValue(ctx, spanKey{}, s)
}

// Of returns the span of a context, or nil.
func Of(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// Start begins a step below the span of ctx. The result is nil, and ctx stays as it is, if ctx has no span that is
// recorded.
func Start(ctx context.Context, name string) (context.Context, *Span) {
	s := Of(ctx).Step(name)
	return s.In(ctx), s
}

// StartClient is Start for a request to another server. Inject gives the request its header.
func StartClient(ctx context.Context, name string) (context.Context, *Span) {
	s := Of(ctx)
	if s == nil || !s.records {
		return ctx, nil
	}
	s = s.step(name, oteltrace.WithSpanKind(oteltrace.SpanKindClient))
	return s.In(ctx), s
}

// Step begins a step below s.
func (s *Span) Step(name string) *Span {
	if s == nil || !s.records {
		return nil
	}
	return s.step(name)
}

func (s *Span) step(name string, o ...oteltrace.SpanStartOption) *Span {
	return s.tracer.start(oteltrace.ContextWithSpan(context.Background(), s.span), name, o...)
}

// Shared begins a step that serves several spans. It is a child of the first span that is recorded, and has links to
// the others. Each of these gets a link to the step. The result is nil if none is recorded.
func Shared(name string, spans []*Span) *Span {
	var of *Span
	var links []oteltrace.Link
	for _, s := range spans {
		switch {
		case s == nil || !s.records:
		case of == nil:
			of = s
		default:
			links = append(links, oteltrace.Link{SpanContext: s.span.SpanContext()})
		}
	}
	if of == nil {
		return nil
	}
	shared := of.step(name, oteltrace.WithLinks(links...))
	for _, s := range spans {
		if s != nil && s.records && s != of {
			s.span.AddLink(oteltrace.Link{SpanContext: shared.span.SpanContext()})
		}
	}
	return shared
}

// Inject adds the traceparent header of ctx's span to a request.
func Inject(ctx context.Context, header http.Header) {
	s := Of(ctx)
	if s == nil {
		return
	}
	var own parent
	propagation.TraceContext{}.Inject(oteltrace.ContextWithSpan(context.Background(), s.span), &own)
	if own != "" {
		header.Set(traceParent, string(own))
	}
}

// Rename replaces the name of s.
func (s *Span) Rename(name string) {
	if s != nil && s.records {
		s.span.SetName(name)
	}
}

// Number sets an attribute.
func (s *Span) Number(a Attribute, n int) {
	if s != nil && s.records {
		s.span.SetAttributes(attribute.Int(string(a), n))
	}
}

// Word sets an attribute.
func (s *Span) Word(a Attribute, word string) {
	if s != nil && s.records {
		s.span.SetAttributes(attribute.String(string(a), word))
	}
}

// Fail marks s as failed, for a reason that is a word such as the name of a kind of error.
func (s *Span) Fail(reason string) {
	if s != nil && s.records {
		s.span.SetStatus(codes.Error, reason)
	}
}

// End ends s.
func (s *Span) End() {
	if s != nil {
		s.span.End()
	}
}

// EndWith ends s, and marks s as failed if *err is not nil. Defer the call with a pointer to the error of a function.
func (s *Span) EndWith(err *error) {
	if s == nil {
		return
	}
	if *err != nil {
		s.Fail(reason(*err))
	}
	s.span.End()
}

// reason returns a word for an error. The text of an error may name keys, users and hosts.
func reason(err error) string {
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		return e.Kind.String()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline exceeded"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "error"
}
