// Package otlp sends the spans of package trace to a collector of OpenTelemetry, by OTLP over HTTP. It samples the
// requests, and makes the spans by OpenTelemetry's SDK.
//
// The collector may be slow, hang or be away: requests never wait for it. Spans wait in a queue with a limit. Spans
// that find it full, and spans that the collector does not take, are lost, counted and logged.
//
// The SDK's own exporter for HTTP is not used: it links gRPC with 100 packages, and reads URLs, headers and files from
// the environment.
package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"claviger/trace"
)

const (
	// queueSize is the number of spans that may wait. A span takes about 2 kB.
	queueSize = 4096
	// batchSize is the largest number of spans in one request to the collector.
	batchSize = 512
	// batchDelay is how long a span waits for others at most.
	batchDelay = 2 * time.Second
	// exportTimeout limits the time for a batch, with all retries.
	exportTimeout = 10 * time.Second
	// flushTimeout limits the time in which Close sends the spans that wait.
	flushTimeout = 2 * time.Second
)

// limits bound a span.
var limits = sdk.SpanLimits{AttributeValueLengthLimit: 128, AttributeCountLimit: 16, LinkCountLimit: 128}

// Config says where spans go, and of which requests.
type Config struct {
	Endpoint *url.URL    // of ParseEndpoint
	Ratio    float64     // the part of requests without a caller's trace that is traced: 0 to 1
	TLS      *tls.Config // for https; nil means the roots of the system
	Version  string      // of this program
	Host     string      // name of this host
	Log      *slog.Logger
}

// defaultPath is the path of an endpoint without a path, as the OTLP specification says.
const defaultPath = "/v1/traces"

// ParseEndpoint parses the URL of a collector. The URL has no user, because a password does not belong into a property.
func ParseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("it must be the http or https URL of a collector, without a user and a query, as in " +
			"http://127.0.0.1:4318")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = defaultPath
	}
	return u, nil
}

// Exporter samples requests, and sends their spans. Close it.
type Exporter struct {
	provider *sdk.TracerProvider
	queue    *queue
	client   *client
}

// Open makes an Exporter. It does not connect to the collector.
func Open(cfg Config) (*Exporter, error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		cfg.Log.Warn("the library that makes traces reports an error", "err", err)
	}))
	c := newClient(cfg.Endpoint, cfg.TLS)
	exporter, err := otlptrace.New(context.Background(), c)
	if err != nil {
		return nil, err
	}
	q := &queue{exporter: exporter, collector: cfg.Endpoint.String(), log: cfg.Log,
		done: make(chan struct{})}
	c.rejected = q.reject
	q.batches = sdk.NewBatchSpanProcessor(q, sdk.WithMaxQueueSize(queueSize), sdk.WithMaxExportBatchSize(batchSize),
		sdk.WithBatchTimeout(batchDelay), sdk.WithExportTimeout(exportTimeout))
	return &Exporter{queue: q, client: c, provider: sdk.NewTracerProvider(
		sdk.WithSpanProcessor(q), sdk.WithSampler(newSampler(cfg.Ratio)), sdk.WithRawSpanLimits(limits),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "claviger"),
			attribute.String("service.version", cfg.Version), attribute.String("host.name", cfg.Host))),
	)}, nil
}

// Tracer returns the Tracer whose spans are sent.
func (e *Exporter) Tracer() *trace.Tracer { return trace.New(e.provider) }

// Figures returns how many spans were sent, were lost, and wait.
func (e *Exporter) Figures() Figures { return e.queue.figures() }

// Close sends the spans that wait, for up to flushTimeout. The others are lost.
func (e *Exporter) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	_ = e.provider.Shutdown(ctx) // a collector that does not answer is no fault of the server's end
	e.client.end()               // no batch waits any longer
	<-e.queue.done
	e.queue.lost.Add(e.queue.waiting.Swap(0))
	e.queue.logLost(nil, true)
	return nil
}
