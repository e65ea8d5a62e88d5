// Package namenode fetches the newest fsimage of an HDFS over HTTP, as `hdfs dfsadmin -fetchImage` does, and reads the
// state, the configuration and the counters of running NameNodes (States).
//
// Any NameNode serves its newest image, also a standby: GET /imagetransfer?getimage=1&txid=latest at
// dfs.namenode.http(s)-address. The headers of the answer have the image's length, its MD5 digest, and its name with
// the number of its last transaction. A part of an image cannot be requested: if a transfer breaks off, the next one
// begins with the first byte.
//
// The sources are ImageServlet.java and TransferFsImage.java of Hadoop 3.4.2.
package namenode

import (
	"context"
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"claviger/secret"
)

// Negotiation is one login by Kerberos: a GSS-API context with SPNEGO. One goroutine uses it.
type Negotiation interface {
	// Step takes the server's token, nil at first, and returns the client's next token. done is true once the server
	// has proved its name.
	Step(in []byte) (out []byte, done bool, err error)
	Close() error
}

// Config says how NameNodes are reached. The zero value is a cluster without Kerberos.
type Config struct {
	TLS *tls.Config // for https; nil trusts the system's roots
	// Negotiate begins a login at a host. nil: there is no login.
	Negotiate func(host string) (Negotiation, error)
	// Stall is the time without data after which a transfer is broken off; 0 is a minute.
	Stall time.Duration
	// Tries is the largest number of transfers of an image, if each one breaks off; 0 is 3.
	Tries int
}

// Client talks to the NameNodes of one HDFS.
type Client struct {
	conf Config
	urls []string
	http *http.Client
}

// Image is the newest image of a NameNode.
type Image struct {
	URL         string // of the NameNode
	Transaction uint64
	Size        int64
	Digest      string // MD5, hexadecimal

	client *Client
}

// New returns a client of the NameNodes at URLs such as https://HOST:9871.
func New(urls []string, conf Config) (*Client, error) {
	c := &Client{conf: conf}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
			strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("%q is no address of a NameNode: use http://HOST:9870 or https://HOST:9871, as "+
				"dfs.namenode.http-address or dfs.namenode.https-address names it", secret.Value(text))
		}
		c.urls = append(c.urls, u.Scheme+"://"+u.Host)
	}
	if len(c.urls) == 0 {
		return nil, errors.New("no NameNode is named")
	}
	if c.conf.Stall == 0 {
		c.conf.Stall = time.Minute
	}
	if c.conf.Tries == 0 {
		c.conf.Tries = 3
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig:     conf.TLS.Clone(),
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: c.conf.Stall,
			MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Newest returns the newest image of all NameNodes that answer. If none answers, the error has the reason of each.
func (c *Client) Newest(ctx context.Context) (*Image, error) {
	var best *Image
	var failures []error
	for _, base := range c.urls {
		m, err := c.head(ctx, base)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", base, err))
			continue
		}
		if best == nil || m.Transaction > best.Transaction {
			best = m
		}
	}
	if best == nil {
		return nil, errors.Join(failures...)
	}
	return best, nil
}

func (c *Client) head(ctx context.Context, base string) (*Image, error) {
	resp, err := c.do(ctx, http.MethodHead, base, imagePage("latest"))
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close() // the answer to a HEAD has no body
	return c.image(base, resp)
}

// imagePrefix begins the name of an image. The transaction follows, in 19 digits.
const imagePrefix = "fsimage_"

// image reads the headers that describe an image.
func (c *Client) image(base string, resp *http.Response) (*Image, error) {
	name := resp.Header.Get("X-Image-Edits-Name")
	digits, ok := strings.CutPrefix(name, imagePrefix)
	txid, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil {
		return nil, fmt.Errorf("the answer names no image (X-Image-Edits-Name: %.60q): is this a NameNode?", name)
	}
	if resp.ContentLength <= 0 {
		return nil, errors.New("the answer has no Content-Length: a proxy before the NameNode may have removed it")
	}
	digest := resp.Header.Get("X-MD5-Digest")
	if digest == "" {
		return nil, errors.New("the answer has no X-MD5-Digest, so a damaged image would not be found: the NameNode " +
			"has lost the file .md5 beside its image, or a proxy has removed the header; save the namespace again " +
			"(hdfs dfsadmin -saveNamespace, in safe mode), or ask the NameNode without the proxy")
	}
	if b, err := hex.DecodeString(digest); err != nil || len(b) != md5.Size {
		return nil, fmt.Errorf("the answer's X-MD5-Digest is no MD5 digest: %.60q", digest)
	}
	return &Image{base, txid, resp.ContentLength, strings.ToLower(digest), c}, nil
}

// imagePage is the page of the image of a transaction.
func imagePage(txid string) string { return "/imagetransfer?getimage=1&txid=" + txid }

// do sends a request, with a login by Kerberos if the NameNode requires one. It returns an answer with status 200.
func (c *Client) do(ctx context.Context, method, base, page string) (*http.Response, error) {
	resp, err := c.send(ctx, method, base, page, "")
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && offersNegotiate(resp) {
		_ = resp.Body.Close()
		if resp, err = c.negotiate(ctx, method, base, page); err != nil {
			return nil, fmt.Errorf("logging in by Kerberos: %w", err)
		}
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

func (c *Client) send(ctx context.Context, method, base, page, token string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, base+page, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, */*") // of the pages that States reads; an image has one format
	if token != "" {
		req.Header.Set("Authorization", "Negotiate "+token)
	}
	resp, err := c.http.Do(req)
	if e := new(url.Error); errors.As(err, &e) {
		err = e.Err // the URL is in the caller's message
	}
	if err != nil {
		return nil, &brokenError{err}
	}
	return resp, nil
}

// refusal explains an answer that is not what was requested. Hadoop puts the reason, with a stack trace, into the
// status line.
func refusal(resp *http.Response) error {
	reason, _, _ := strings.Cut(resp.Status, "\n")
	reason = fmt.Sprintf("%.200q", strings.TrimSpace(reason))
	image := strings.HasPrefix(resp.Request.URL.Path, "/imagetransfer")
	switch {
	case resp.StatusCode == http.StatusForbidden && !image:
		return fmt.Errorf("the NameNode refuses the page %s (%s): with hadoop.security.instrumentation.requires.admin "+
			"only the users in dfs.cluster.administrators may read the page; log in as one of them",
			resp.Request.URL.Path, reason)
	case resp.StatusCode == http.StatusForbidden:
		return fmt.Errorf("the NameNode refuses the image (%s): with Kerberos, only the NameNodes' own "+
			"principals and the users in dfs.cluster.administrators may fetch an image; log in as one of them. A "+
			"NameNode that has just started refuses too", reason)
	case resp.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("the NameNode requires a login that is not by Kerberos (%s)", reason)
	case resp.StatusCode == http.StatusGone && image:
		return fmt.Errorf("the NameNode has no such image, or cannot read it (%s); its log says more", reason)
	}
	return fmt.Errorf("the NameNode answered with %s", reason)
}

func offersNegotiate(resp *http.Response) bool {
	_, ok := challenge(resp)
	return ok
}

// challenge returns the token of the header WWW-Authenticate: Negotiate.
func challenge(resp *http.Response) (token string, ok bool) {
	for _, v := range resp.Header.Values("WWW-Authenticate") {
		if rest, found := strings.CutPrefix(v, "Negotiate"); found && (rest == "" || rest[0] == ' ') {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// negotiate sends a request with a token that proves the user's name, and checks the NameNode's token.
func (c *Client) negotiate(ctx context.Context, method, base, page string) (*http.Response, error) {
	if c.conf.Negotiate == nil {
		return nil, errors.New("no login is configured")
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	n, err := c.conf.Negotiate(strings.ToLower(u.Hostname()))
	if err != nil {
		return nil, err
	}
	defer n.Close() //nolint:errcheck // it only frees memory
	out, _, err := n.Step(nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.send(ctx, method, base, page, base64.StdEncoding.EncodeToString(out))
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	text, _ := challenge(resp)
	proof, err := base64.StdEncoding.DecodeString(text)
	if err == nil && len(proof) > 0 {
		var done bool
		if _, done, err = n.Step(proof); done && err == nil {
			return resp, nil
		}
	}
	_ = resp.Body.Close()
	return nil, errors.Join(errors.New("the NameNode did not prove that it is the host of its URL"), err)
}

// Fetch fetches the image, and checks its length and digest. For each transfer it calls write with a function content,
// which writes the image into a writer. write must call content with an empty writer, and return the error of content.
// progress gets the number of bytes so far; it may be nil.
func (m *Image) Fetch(ctx context.Context, write func(content func(io.Writer) error) error, progress func(done int64),
) error {
	var err error
	for range m.client.conf.Tries {
		err = write(func(w io.Writer) error { return m.transfer(ctx, w, progress) })
		if err == nil || ctx.Err() != nil || !errors.As(err, new(*brokenError)) {
			return err
		}
	}
	return fmt.Errorf("%w (tried %d times)", err, m.client.conf.Tries)
}

// brokenError is a transfer that broke off. The next one may succeed.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// transfer fetches the image once, and writes it to w. It fails if no data arrives for the time Config.Stall.
func (m *Image) transfer(ctx context.Context, w io.Writer, progress func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := m.client.do(ctx, http.MethodGet, m.URL,
		imagePage(strconv.FormatUint(m.Transaction, 10)))
	if err != nil {
		return fmt.Errorf("%s: %w", m.URL, err)
	}
	defer resp.Body.Close()
	got, err := m.client.image(m.URL, resp)
	if err != nil {
		return fmt.Errorf("%s: %w", m.URL, err)
	}
	stalled := time.AfterFunc(m.client.conf.Stall, cancel)
	defer stalled.Stop()
	sum, done := md5.New(), int64(0) //nolint:gosec // Hadoop's digest of images
	for b := make([]byte, 256<<10); ; {
		n, err := resp.Body.Read(b)
		stalled.Reset(m.client.conf.Stall)
		sum.Write(b[:n])
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		if done += int64(n); progress != nil {
			progress(done)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &brokenError{fmt.Errorf("%s: the transfer broke off after %d of %d bytes: %w", m.URL, done, got.Size,
				err)}
		}
	}
	if is := hex.EncodeToString(sum.Sum(nil)); is != got.Digest {
		return &brokenError{fmt.Errorf("%s: the image was damaged on its way, or at the NameNode: its MD5 digest is "+
			"%s, and the NameNode says %s", m.URL, is, got.Digest)}
	}
	return nil
}
