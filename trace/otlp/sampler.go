package otlp

import (
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/time/rate"
)

// callersRate is how many requests a second are traced because their callers trace them. Anybody can send a traceparent
// header, before any login.
const callersRate = 100

// newSampler returns the sampler: a request is traced if its caller traces it, up to callersRate. A ratio of the other
// requests is traced, except those of which the caller says that they are not traced.
func newSampler(ratio float64) sdk.Sampler {
	own := sdk.TraceIDRatioBased(ratio)
	return sdk.ParentBased(own, sdk.WithRemoteParentSampled(
		&callers{limit: rate.NewLimiter(callersRate, callersRate), then: own}))
}

// callers samples requests that their callers trace.
type callers struct {
	limit *rate.Limiter
	then  sdk.Sampler // beyond the limit
}

// ShouldSample is part of sdk.Sampler.
func (c *callers) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	if c.limit.Allow() {
		return sdk.SamplingResult{Decision: sdk.RecordAndSample}
	}
	return c.then.ShouldSample(p)
}

// Description is part of sdk.Sampler.
func (*callers) Description() string { return "callers" }
