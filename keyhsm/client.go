package keyhsm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"claviger"
)

// ClientConfig says where a Key HSM is, and how it is spoken to.
type ClientConfig struct {
	URL string // https://host:9090; without a port, Port
	// Certificate is what the client shows; the server must have been told to trust
	// it. It is asked for at each handshake, so it may change.
	Certificate func() (*tls.Certificate, error)
	// Servers holds the certificate of the server, or of who issued it.
	Servers *x509.CertPool
	// ServerName is the name that the server's certificate must be good for; "" is
	// the host of URL.
	ServerName string
	// Timeout bounds one request; 0 is 30 s, which is longer than the server gives
	// the HSM.
	Timeout time.Duration
	// MaxConnections bounds the connections, and the requests under way; 0 is 8.
	MaxConnections int
}

// Client asks a Server. Its methods may be called from many goroutines. Errors
// are *claviger.Error, of kind Unavailable where the Key HSM, or the HSM behind
// it, is away or does not answer in time: nothing was changed, and it may be tried
// again.
type Client struct {
	base      string
	http      *http.Client
	transport *http.Transport
	timeout   time.Duration
}

// NewClient makes a client. It connects at the first request.
func NewClient(c ClientConfig) (*Client, error) {
	const op = "keyhsm.NewClient"
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%q is no address of a Key HSM; it must be like https://host:%d", c.URL, Port)
	}
	if c.Certificate == nil || c.Servers == nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "Key HSM is spoken to with certificates on both sides, and one is not given")
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), fmt.Sprint(Port))
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 8
	}
	t := &http.Transport{
		Proxy:       nil, // deposits go to this host, whatever the environment says
		DialContext: (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: c.Servers, ServerName: c.ServerName,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate() },
		},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxConnsPerHost:        c.MaxConnections,
		MaxIdleConns:           c.MaxConnections,
		MaxIdleConnsPerHost:    c.MaxConnections,
		IdleConnTimeout:        Limits.Idle / 2, // before the server closes them
		MaxResponseHeaderBytes: int64(Limits.HeadBytes),
		DisableCompression:     true,
	}
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &Client{base: "https://" + u.Host, http: client, transport: t, timeout: c.Timeout}, nil
}

// Close closes idle connections.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// Wrap has a deposit wrapped for its uuid: what is to be kept in its place.
func (c *Client) Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error) {
	const op = "keyhsm.Client.Wrap"
	if err := checkUUID(op, uuid); err != nil {
		return nil, err
	}
	if len(content) > MaxContent {
		return nil, claviger.Errorf(op, claviger.Invalid, uuid, "the deposit has %d bytes; at most %d are possible", len(content), MaxContent)
	}
	var a wrapAnswer
	if err := c.ask(ctx, op, http.MethodPost, "/v1/wrap", wrapRequest{uuid, content}, &a); err != nil {
		return nil, err
	}
	if _, err := ParseEnvelope(a.Wrapped); err != nil { // it would be kept, and never be read
		return nil, claviger.Errorf(op, claviger.Internal, uuid, "Key HSM's answer is %w", err)
	}
	return a.Wrapped, nil
}

// Unwrap returns the deposit that was wrapped for uuid. Kind Invalid where it is
// damaged or another's, or, with ErrKeyGone, where its HSM key is gone.
func (c *Client) Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error) {
	const op = "keyhsm.Client.Unwrap"
	if err := checkUUID(op, uuid); err != nil {
		return nil, err
	}
	if _, err := ParseEnvelope(wrapped); err != nil {
		return nil, err
	}
	var a unwrapAnswer
	if err := c.ask(ctx, op, http.MethodPost, "/v1/unwrap", unwrapRequest{uuid, wrapped}, &a); err != nil {
		return nil, err
	}
	return a.Content, nil
}

// Status asks how the Key HSM is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := c.ask(ctx, "keyhsm.Client.Status", http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// ask makes one request. A failure is not tried again here: a trustee knows
// better whether its own client still waits.
func (c *Client) ask(ctx context.Context, op, method, path string, question, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var body io.Reader
	if question != nil {
		data, err := json.Marshal(question)
		if err != nil {
			return claviger.E(op, claviger.Internal, "", err)
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return claviger.E(op, claviger.Internal, "", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
		// Either may be done twice, so net/http may repeat one on another connection
		// where the server had closed this. nil: the header is not sent.
		r.Header["Idempotency-Key"] = nil
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return c.unreachable(op, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return c.unreachable(op, err)
	case int64(len(data)) > maxBody:
		return claviger.Errorf(op, claviger.Internal, "", "Key HSM at %s answers with more than %d bytes", c.base, maxBody)
	case resp.StatusCode != http.StatusOK:
		return readError(op, resp.StatusCode, data)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return claviger.Errorf(op, claviger.Internal, "", "Key HSM at %s answers with what is not its protocol: %w", c.base, err)
	}
	return nil
}

// unreachable says why there was no answer.
func (c *Client) unreachable(op string, err error) error {
	var remote *net.OpError
	var asked *url.Error
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert, as crypto/tls tells it
		// net/http puts names of its own between the two, as the moment has it.
		if errors.As(err, &asked) {
			err = &url.Error{Op: asked.Op, URL: asked.URL, Err: remote}
		}
		return claviger.Errorf(op, claviger.Denied, "", "Key HSM at %s refuses this certificate: %w; its log tells why, cure there: claviger keyhsm trust FILE, then claviger keyhsm reload", c.base, err)
	case errors.As(err, &cert):
		if expired := (x509.CertificateInvalidError{}); errors.As(err, &expired) {
			return claviger.Errorf(op, claviger.Unavailable, "", "the certificate of Key HSM at %s is not taken: %w; %s", c.base, err,
				claviger.CertificateCure(err, "--keyhsm-cert"))
		}
		return claviger.Errorf(op, claviger.Unavailable, "", "the certificate of Key HSM at %s is not the one expected: %w; give the file of its certificate, or of who issued it", c.base, err)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "Key HSM at %s does not answer: %w", c.base, err)
}
