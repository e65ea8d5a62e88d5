package kmsapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"claviger/kmsapi"
	"claviger/provider/memory"
	"claviger/trace"
)

// TestTraced: each request has a span with the name of its operation and its status, and spans of its steps. Only a
// status from 500 on is a failure.
func TestTraced(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	keys := memory.New(memory.Config{SequentialIDs: true})
	addr := start(t, stack{Primary: keys, KeyAuthorization: false,
		Tracer: trace.New(sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)))})
	send(t, addr, "POST", "/kms/v1/keys", `{"name":"k"}`)
	made := oneEDEK(t, addr)
	body := fmt.Sprintf(`{"name":"k","iv":%q,"material":%q}`, made.IV, made.Inner.Material)
	path := "/kms/v1/keyversion/" + made.Version + "/_eek?eek_op="
	send(t, addr, "POST", path+"decrypt", body) // reads the version into the cache
	for len(spans.Started()) != len(spans.Ended()) {
		time.Sleep(time.Millisecond) // until the last of these requests has ended
	}
	const start, work = "authentication", " admission keyring."
	for _, c := range []struct{ method, target, body, want string }{
		{"POST", path + "decrypt", body, start + " body" + work + "Decrypt/provider.Unwrap decrypt_eek 200"},
		{"POST", path + "reencrypt", body,
			start + " body" + work + "Reencrypt/provider.Reencrypt reencrypt_eek 200"},
		{"GET", "/kms/v1/key/k/_versions", "", start + work + "Versions/provider.Versions get_key_versions 200"},
		{"GET", "/kms/v1/keys/names", "", start + work + "Names/provider.Keys get_keys 200"},
		{"POST", "/kms/v1/key/k", "{}", start + " body" + work + "Roll/provider.Roll roll_new_version 200"},
		{"DELETE", "/kms/v1/key/none", "", start + work + "Delete:key_not_found delete_key 500 failed"},
		{"POST", "/kms/v1/keys", "x", start + " body admission create_key 500 failed"},
		{"GET", "/kms/v1/nowhere", "", start + " unknown 404"},
		{"GET", "/kms/v1/keys/names%00", "", "unknown 400"},
	} {
		spans.Reset()
		send(t, addr, c.method, c.target, c.body)
		if got := describe(t, spans); got != c.want {
			t.Errorf("%s %s:\n%s, want\n%s", c.method, c.target, got, c.want)
		}
	}
}

// describe waits for the end of a request's span. It returns the names of its steps, in the order of their beginnings,
// with their failures; and the name and status of the request. A step of a step is behind its slash.
func describe(t *testing.T, spans *tracetest.SpanRecorder) string {
	t.Helper()
	isRequest := func(s sdk.ReadOnlySpan) bool { return !s.Parent().IsValid() }
	for end := time.Now().Add(10 * time.Second); !slices.ContainsFunc(spans.Ended(), isRequest); {
		if time.Now().After(end) {
			t.Fatal("the span of the request did not end")
		}
		time.Sleep(time.Millisecond)
	}
	list := slices.Clone(spans.Ended())
	slices.SortFunc(list, func(a, b sdk.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	var words []string
	for _, s := range list[1:] {
		name := s.Name()
		if s.Status().Code == codes.Error {
			name += ":" + strings.ReplaceAll(s.Status().Description, " ", "_")
		}
		if s.Parent().SpanID() == list[0].SpanContext().SpanID() {
			words = append(words, name)
		} else if !strings.HasPrefix(name, "provider.Metadata") && !strings.HasPrefix(name, "provider.Current") {
			words[len(words)-1] += "/" + name
		}
	}
	words = append(words, list[0].Name())
	for _, kv := range list[0].Attributes() {
		if string(kv.Key) == string(trace.Status) {
			words = append(words, kv.Value.String())
		}
	}
	if list[0].Status().Code == codes.Error {
		words = append(words, "failed")
	}
	return strings.Join(words, " ")
}

// TestTracedRefusals: an anonymous request, and one that gets no slot, have a step that says so.
func TestTracedRefusals(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	keys := &slow{memory.New(memory.Config{SequentialIDs: true}), make(chan struct{}), make(chan struct{})}
	addr := start(t, stack{Primary: keys, Tracer: trace.New(sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))),
		Admission: kmsapi.Admission{Decrypts: 1, Generates: 1, Batches: 1, Management: 1, Reads: 1, Wait: 1}})
	send(t, addr, "POST", "/kms/v1/keys", `{"name":"k"}`)
	done := make(chan struct{})
	go func() { defer close(done); send(t, addr, "GET", generate, "") }()
	<-keys.hanging
	spans.Reset()
	send(t, addr, "GET", generate, "")
	if got, want := describe(t, spans), "authentication admission:error generate_eek 503 failed"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	close(keys.release)
	<-done
}
