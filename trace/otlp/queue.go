package otlp

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
)

// logInterval is the least time between two log lines about lost spans.
const logInterval = time.Minute

// Figures count spans.
type Figures struct {
	Sent    int64 // accepted by the collector
	Lost    int64 // dropped because the queue was full, or not accepted by the collector
	Waiting int64 // in the queue, or being sent
}

// queue counts spans, because a batch processor of the SDK drops spans and does not count them. queue is the processor
// in front of the batch processor, and the exporter behind it.
type queue struct {
	batches   sdk.SpanProcessor // has room for queueSize spans, so it never drops one
	exporter  sdk.SpanExporter
	collector string
	log       *slog.Logger

	sent, lost, waiting atomic.Int64
	closed              atomic.Bool
	done                chan struct{} // closed when the last batch was sent or lost

	mu        sync.Mutex
	logged    time.Time // the time of the last line about lost spans
	lostAtLog int64
	err       error // the last error since logged
}

func (q *queue) figures() Figures {
	return Figures{Sent: q.sent.Load(), Lost: q.lost.Load(), Waiting: q.waiting.Load()}
}

// OnStart is part of sdk.SpanProcessor.
func (*queue) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd queues a span, and never waits.
func (q *queue) OnEnd(s sdk.ReadOnlySpan) {
	if q.waiting.Add(1) > queueSize || q.closed.Load() {
		q.waiting.Add(-1)
		q.lost.Add(1)
		return
	}
	q.batches.OnEnd(s)
}

// ForceFlush is part of sdk.SpanProcessor.
func (q *queue) ForceFlush(ctx context.Context) error { return q.batches.ForceFlush(ctx) }

// Shutdown is part of both sdk.SpanProcessor and sdk.SpanExporter. The provider calls it first, and the batch processor
// calls it at its end.
func (q *queue) Shutdown(ctx context.Context) error {
	if !q.closed.Swap(true) {
		return q.batches.Shutdown(ctx)
	}
	defer close(q.done)
	return q.exporter.Shutdown(ctx)
}

// ExportSpans sends a batch. It returns no error: the batch processor would print it.
func (q *queue) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := q.exporter.ExportSpans(ctx, spans)
	n := int64(len(spans))
	if err != nil {
		q.lost.Add(n)
	} else {
		q.sent.Add(n)
	}
	q.waiting.Add(-n)
	q.logLost(err, false)
	return nil
}

// reject counts spans of a batch that the collector took only in part.
func (q *queue) reject(n int64) {
	q.lost.Add(n)
	q.sent.Add(-n)
}

// logLost logs the spans that were lost since the last line: once in logInterval, and at the end, when now is true. err
// is the error of the last batch.
func (q *queue) logLost(err error, now bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.err = err
	}
	lost := q.lost.Load() - q.lostAtLog
	if lost == 0 || !now && (q.closed.Load() || time.Since(q.logged) < logInterval) {
		return
	}
	args := []any{"spans", lost, "collector", q.collector}
	if q.err != nil {
		args = append(args, "err", q.err)
	}
	q.log.Warn("spans of traces were lost: the collector did not take them in time; requests are served as before",
		args...)
	q.logged, q.lostAtLog, q.err = time.Now(), q.lostAtLog+lost, nil
}
