package trace_test

import (
	"context"
	"fmt"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"claviger"
	"claviger/trace"
)

// A function that takes a context is a step of the request that calls it.
func Example() {
	spans := tracetest.NewSpanRecorder()
	tracer := trace.New(sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)))
	unwrap := func(ctx context.Context) (err error) {
		_, span := trace.Start(ctx, "provider.Unwrap")
		defer span.EndWith(&err)
		return claviger.E("provider.Unwrap", claviger.Unavailable, "finance@3", nil)
	}

	request := tracer.Request(nil)
	_ = unwrap(request.In(context.Background()))
	request.Rename("decrypt_eek")
	request.End()
	for _, s := range spans.Ended() {
		fmt.Println(s.Name(), s.Status().Description)
	}
	// Output:
	// provider.Unwrap unavailable
	// decrypt_eek
}
