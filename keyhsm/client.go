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

// ClientConfig is the address of a Key HSM and how to connect to it.
type ClientConfig struct {
	URL string // like https://host:9090; without a port, Port is used
	// Certificate returns the certificate that the client shows, and that the server must trust.
	// It is called at each handshake, so the certificate may change.
	Certificate func() (*tls.Certificate, error)
	// Servers holds the certificate of the server, or of its issuer.
	Servers *x509.CertPool
	// ServerName is the name in the server's certificate; "" is the host of URL.
	ServerName string
	// Timeout bounds one request. 0 is 30 s, which is longer than the server waits for the HSM.
	Timeout time.Duration
	// MaxConnections bounds the connections, and so the requests at one time; 0 is 8.
	MaxConnections int
}

// Client sends requests to a Server. Its methods may be called from many goroutines. Its errors
// are *claviger.Error. Kind Unavailable means that the Key HSM, or the HSM behind it, cannot be
// reached or does not answer in time; nothing was changed, and the call may be repeated.
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
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" ||
		u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return nil, claviger.Errorf(op, claviger.Invalid, "",
			"%q is not an address of a Key HSM; it must be like https://host:%d", c.URL, Port)
	}
	if c.Certificate == nil || c.Servers == nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "",
			"a Key HSM needs certificates on both sides, but one is missing")
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
		Proxy:       nil, // deposits never go through a proxy of the environment
		DialContext: (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: c.Servers, ServerName: c.ServerName,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return c.Certificate()
			},
		},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxConnsPerHost:        c.MaxConnections,
		MaxIdleConns:           c.MaxConnections,
		MaxIdleConnsPerHost:    c.MaxConnections,
		IdleConnTimeout:        Limits.Idle / 2, // before the server closes them
		MaxResponseHeaderBytes: int64(Limits.HeadBytes),
		DisableCompression:     true,
	}
	return &Client{
		base: "https://" + u.Host, transport: t, timeout: c.Timeout,
		http: &http.Client{Transport: t,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// Close closes idle connections.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// Wrap returns a deposit as the Key HSM has wrapped it for its uuid.
func (c *Client) Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error) {
	const op = "keyhsm.Client.Wrap"
	if err := checkUUID(op, uuid); err != nil {
		return nil, err
	}
	if len(content) > MaxContent {
		return nil, claviger.Errorf(op, claviger.Invalid, uuid, "the deposit has %d bytes; at most %d are possible",
			len(content), MaxContent)
	}
	var a wrapAnswer
	if err := c.request(ctx, op, http.MethodPost, "/v1/wrap", wrapRequest{uuid, content}, &a); err != nil {
		return nil, err
	}
	if _, err := ParseEnvelope(a.Wrapped); err != nil { // the trustee would store a deposit that it cannot read
		return nil, claviger.Errorf(op, claviger.Internal, uuid, "Key HSM's answer is %w", err)
	}
	return a.Wrapped, nil
}

// Unwrap returns the deposit that was wrapped for uuid. The error is of kind Invalid if wrapped
// is damaged or belongs to another uuid, and also, with ErrKeyGone, if its HSM key is gone.
func (c *Client) Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error) {
	const op = "keyhsm.Client.Unwrap"
	if err := checkUUID(op, uuid); err != nil {
		return nil, err
	}
	if _, err := ParseEnvelope(wrapped); err != nil {
		return nil, err
	}
	var a unwrapAnswer
	if err := c.request(ctx, op, http.MethodPost, "/v1/unwrap", unwrapRequest{uuid, wrapped}, &a); err != nil {
		return nil, err
	}
	return a.Content, nil
}

// Status requests the status of the Key HSM.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := c.request(ctx, "keyhsm.Client.Status", http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// request makes one request with the JSON body in, unless in is nil, and reads the answer into
// out. It does not repeat a failed request, since only the trustee knows whether its own client
// still waits.
func (c *Client) request(ctx context.Context, op, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
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
		// Wrapping or unwrapping twice does no harm. So net/http may repeat the request on another
		// connection if the server has closed this one. A nil header is not sent.
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
		return claviger.Errorf(op, claviger.Internal, "", "the answer of the Key HSM at %s has more than %d bytes",
			c.base, maxBody)
	case resp.StatusCode != http.StatusOK:
		return readError(op, resp.StatusCode, data)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return claviger.Errorf(op, claviger.Internal, "", "the answer of the Key HSM at %s is not of its protocol: %w",
			c.base, err)
	}
	return nil
}

// unreachable makes an error of a request without an answer.
func (c *Client) unreachable(op string, err error) error {
	var remote *net.OpError
	var request *url.Error
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &remote) && remote.Op == "remote error": // crypto/tls's form of a TLS alert
		// net/http adds text between the two errors, and the text depends on the moment of the alert.
		if errors.As(err, &request) {
			err = &url.Error{Op: request.Op, URL: request.URL, Err: remote}
		}
		return claviger.Errorf(op, claviger.Denied, "",
			"Key HSM at %s refuses this certificate: %w; its log says why; "+
				"cure there: claviger keyhsm trust FILE, then claviger keyhsm reload", c.base, err)
	case errors.As(err, &cert):
		if expired := (x509.CertificateInvalidError{}); errors.As(err, &expired) {
			return claviger.Errorf(op, claviger.Unavailable, "",
				"the certificate of Key HSM at %s is not valid: %w; %s",
				c.base, err, claviger.CertificateCure(err, "--keyhsm-cert"))
		}
		return claviger.Errorf(op, claviger.Unavailable, "",
			"the certificate of Key HSM at %s is not the one expected: %w; "+
				"give the file of its certificate, or of the certificate of its issuer", c.base, err)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "Key HSM at %s does not answer: %w", c.base, err)
}
