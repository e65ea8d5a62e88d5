package otlp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	contentType = "application/x-protobuf"
	// maxAnswer bounds an answer of the collector; maxText bounds the part of it in an error.
	maxAnswer, maxText = 16 << 10, 200
	// firstPause and maxPause are the pauses between two attempts to send a batch.
	firstPause, maxPause = 250 * time.Millisecond, 2 * time.Second
)

// client sends batches of spans. It implements otlptrace.Client.
type client struct {
	url      string
	http     *http.Client
	rejected func(spans int64) // called for spans of a batch that the collector took only in part

	ctx context.Context //nolint:containedctx // of all requests; end cancels it
	end context.CancelFunc
}

func newClient(endpoint *url.URL, trust *tls.Config) *client {
	ctx, end := context.WithCancel(context.Background())
	return &client{url: endpoint.String(), ctx: ctx, end: end, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true, MaxIdleConns: 1,
			IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: maxAnswer},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Start is part of otlptrace.Client.
func (*client) Start(context.Context) error { return nil }

// Stop is part of otlptrace.Client.
func (c *client) Stop(context.Context) error {
	c.end()
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces sends a batch. Until ctx ends it repeats a request that the collector did not answer, or could not serve
// at that moment.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// On the wire, TracesData is the ExportTraceServiceRequest of the protocol, whose package imports gRPC.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.Multiplier = firstPause, maxPause, 2
	var last error
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := c.send(ctx, body)
		if err != nil && (last == nil || ctx.Err() == nil) {
			last = err
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause))
	if err != nil {
		return last // err may only say that ctx has ended
	}
	return nil
}

// send makes one request.
func (c *client) send(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return backoff.Permanent(err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", "claviger")
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the log line has the URL
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		if n := rejectedSpans(answer); resp.Header.Get("Content-Type") == contentType && n > 0 {
			c.rejected(n)
		}
		return nil
	}
	err = fmt.Errorf("the collector answered %s: %q", resp.Status, answer[:min(len(answer), maxText)])
	switch resp.StatusCode { // as the OTLP specification says
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if seconds, bad := strconv.Atoi(resp.Header.Get("Retry-After")); bad == nil && seconds > 0 {
			return fmt.Errorf("%w: %w", err, backoff.RetryAfter(seconds))
		}
		return err
	}
	return backoff.Permanent(err)
}

// rejectedSpans returns the field partial_success.rejected_spans of an ExportTraceServiceResponse; 0 if there is none.
func rejectedSpans(answer []byte) int64 {
	partial, _ := field(answer, 1)
	_, rejected := field(partial, 1)
	return int64(min(rejected, batchSize)) //nolint:gosec // at most batchSize
}

// field returns the last field of that number in a message: bytes or a varint. Other types count as absent.
func field(message []byte, number protowire.Number) (content []byte, varint uint64) {
	for len(message) > 0 {
		got, kind, n := protowire.ConsumeField(message)
		if n < 0 {
			return content, varint
		}
		tag := protowire.SizeTag(got)
		switch value := message[tag:n]; {
		case got != number:
		case kind == protowire.BytesType:
			content, _ = protowire.ConsumeBytes(value)
		case kind == protowire.VarintType:
			varint, _ = protowire.ConsumeVarint(value)
		}
		message = message[n:]
	}
	return content, varint
}
