package pkcs11

import (
	"slices"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"claviger/trace"
)

// TestSharedCallIsTraced: an encryption that two traced requests and one other share is one step of the first, with a
// link to the second, whose step has a link to it.
func TestSharedCallIsTraced(t *testing.T) {
	tok, m := open(t)
	id, label := []byte{1, 2, 3}, "k@1"
	if err := tok.GenerateKey(t.Context(), id, label, 128); err != nil {
		t.Fatal(err)
	}
	spans := tracetest.NewSpanRecorder()
	tracer := trace.New(sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)))
	var done sync.WaitGroup
	encrypt := func(of *trace.Span) {
		done.Go(func() {
			err := tok.EncryptBlocks(of.In(t.Context()), id, label, nil, make([]byte, blockSize))
			if err != nil {
				t.Error(err)
			}
			of.End()
		})
	}
	release := m.Hang("Encrypt")
	for i := range tok.inFlight { // the next callers wait for the end of these
		encrypt(nil)
		until(t, func() bool { used, _ := tok.Sessions(); return used > i })
	}
	g := tok.gathererOf(keyName{string(id), label}, nil)
	for i, of := range []*trace.Span{nil, tracer.Request(nil), tracer.Request(nil)} {
		encrypt(of)
		until(t, func() bool { return g.waiting() == i+1 })
	}
	release()
	done.Wait()

	named := func(name string) []sdk.ReadOnlySpan {
		return slices.DeleteFunc(slices.Clone(spans.Ended()), func(s sdk.ReadOnlySpan) bool { return s.Name() != name })
	}
	calls, waits := named("C_Encrypt"), named("pkcs11.EncryptBlocks")
	if len(calls) != 1 || len(waits) != 2 {
		t.Fatalf("%d calls, %d waits: %v", len(calls), len(waits), spans.Ended())
	}
	call, first, second := calls[0], waits[0], waits[1]
	if call.Parent().SpanID() == second.SpanContext().SpanID() {
		first, second = second, first
	}
	if call.Parent().SpanID() != first.SpanContext().SpanID() || len(call.Links()) != 1 || len(first.Links()) != 0 ||
		call.Links()[0].SpanContext.SpanID() != second.SpanContext().SpanID() || len(second.Links()) != 1 ||
		second.Links()[0].SpanContext.SpanID() != call.SpanContext().SpanID() {
		t.Errorf("%v", spans.Ended())
	}
	wantAttributes(t, call, attribute.Int("hsm.callers", 3), attribute.Int("hsm.blocks", 3),
		attribute.String("hsm.result", "CKR_OK"))
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 10 s")
		}
	}
}

func wantAttributes(t *testing.T, s sdk.ReadOnlySpan, want ...attribute.KeyValue) {
	t.Helper()
	for _, kv := range want {
		if !slices.Contains(s.Attributes(), kv) {
			t.Errorf("%s: %v, want %v", s.Name(), s.Attributes(), kv)
		}
	}
}

// TestFailedCallIsTraced: the step of a failed encryption has the result of the library. Other operations on the token
// are steps too.
func TestFailedCallIsTraced(t *testing.T) {
	tok, m := open(t)
	spans := tracetest.NewSpanRecorder()
	request := trace.New(sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))).Request(nil)
	ctx := request.In(t.Context())
	id, label := []byte{1, 2, 3}, "k@1"
	if err := tok.GenerateKey(ctx, id, label, 128); err != nil {
		t.Fatal(err)
	}
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_INVALID))
	if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, blockSize)); err == nil {
		t.Fatal("no error")
	}
	var names []string
	for _, s := range spans.Ended() {
		names = append(names, s.Name()+": "+s.Status().Description)
		if s.Name() == "C_Encrypt" {
			wantAttributes(t, s, attribute.String("hsm.result", "CKR_DATA_INVALID"))
		}
	}
	want := []string{"pkcs11.GenerateKey: ", "C_Encrypt: CKR_DATA_INVALID", "pkcs11.EncryptBlocks: unavailable"}
	if !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// TestUntracedCall: a request that is not traced costs no more allocations than before there were traces.
func TestUntracedCall(t *testing.T) {
	batch := []part{{w: &waiter{}}, {w: &waiter{}}}
	if n := testing.AllocsPerRun(100, func() { endSpan(spanOf(batch), len(batch), 2, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
