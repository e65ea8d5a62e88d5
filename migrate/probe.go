package migrate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"claviger"
)

// SourceKMS describes a source that is a KMS, for probes. With TrusteePath, it describes Key Trustee Servers.
type SourceKMS struct {
	// Bases are the base URLs of the source's hosts: "https://kms-1.example.com:16000/kms".
	Bases []string
	// TLS is the configuration of the connections to the source; nil is the system's trust.
	TLS *tls.Config
	// Timeout bounds the probe of each host; 0 is 5 seconds.
	Timeout time.Duration
	// Property names the hosts, for messages; "" is the property of the source of a migration.
	Property string
	// TrusteePath is the path that is requested from Key Trustee Servers; "" for KMSs. IsTrustee reports whether the
	// first bytes of an answer are those of a Key Trustee Server.
	TrusteePath string
	IsTrustee   func(answer string) bool
	// RequestNames requests the names of the keys from the host with this base URL, with our own login. The error is
	// of kind Denied if the host refuses the login. If RequestNames is nil, only a page that needs no login is
	// requested. A KMS without its keystore also answers that request.
	RequestNames func(ctx context.Context, base string) error
}

// property returns the property that names the hosts.
func (s *SourceKMS) property() string {
	if s.Property == "" {
		return propSource
	}
	return s.Property
}

// HostFacts are the facts about one host of the source.
type HostFacts struct {
	Base  string
	Host  string
	Addrs []netip.Addr
	Began time.Time
	Took  time.Duration
	Date  time.Time // from the header of an answer; zero if no answer had a date
	// DateBegan and DateTook are the start and the duration of the request that gave Date.
	DateBegan time.Time
	DateTook  time.Duration
	Server    string // the Server header
	Err       error  // why the host is not usable
	Cure      string // what to do about Err
}

// Probe requests, from each host, a page that needs no right, and classifies the answer. It follows no redirect
// and sends no identity. From hosts that answer properly,
// Probe then also requests the names of the keys, by RequestNames.
func (s *SourceKMS) Probe(ctx context.Context) []HostFacts {
	var all []HostFacts
	for _, base := range s.Bases {
		all = append(all, s.probe(ctx, strings.TrimSuffix(base, "/")))
	}
	return all
}

func (s *SourceKMS) probe(ctx context.Context, base string) HostFacts {
	timeout := s.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	f := HostFacts{Base: base, Host: hostOf(base), Began: time.Now()}
	var resolver net.Resolver
	addrs, err := resolver.LookupNetIP(ctx, "ip", f.Host)
	if err != nil {
		f.Err, f.Cure = err, fmt.Sprintf("correct the host name %q in %s, or the name service", f.Host, s.property())
		return f
	}
	for _, a := range addrs {
		f.Addrs = append(f.Addrs, a.Unmap())
	}
	f.Began = time.Now()
	page := s.TrusteePath
	if page == "" { // a KMS refuses this page, the list of key names, to callers without an identity
		page = "/v1/keys/names"
	}
	resp, body, err := get(ctx, base, page, s.TLS) //nolint:bodyclose // get has read and closed it
	f.Took = time.Since(f.Began)
	if scheme, _, _ := strings.Cut(base, ":"); err != nil || scheme == "http" &&
		resp.StatusCode == http.StatusBadRequest {
		s.explain(ctx, &f, scheme, err)
		return f
	}
	f.Server = resp.Header.Get("Server")
	if !f.storeDate(resp, f.Began, f.Took) && resp.StatusCode < 500 {
		// Hadoop's KMS sends no date with that refusal, but sends one with this page.
		began := time.Now()
		resp, _, err := get(ctx, base, "/v1/?op=GETDELEGATIONTOKEN", s.TLS) //nolint:bodyclose // as above
		if err == nil {
			f.storeDate(resp, began, time.Since(began))
		}
	}
	f.Cure, f.Err = s.fault(resp, strings.TrimSpace(body))
	if f.Err == nil && s.RequestNames != nil {
		if err := s.RequestNames(ctx, base); err != nil && !claviger.Is(err, claviger.Denied) {
			f.Err = fmt.Errorf("it answers, and does not list its keys: %s",
				strings.TrimPrefix(claviger.Reason(err), "KMS "+base+": "))
			f.Cure = "see the log of the KMS there"
		}
	}
	return f
}

// fault returns what is wrong with the answer of a host, and the cure.
func (s *SourceKMS) fault(resp *http.Response, body string) (cure string, err error) {
	text := "HTTP status " + resp.Status
	if body != "" {
		text += ": " + claviger.Printable(body)
	}
	status := errors.New(text)
	switch code := resp.StatusCode; {
	case s.TrusteePath != "" && (code != http.StatusOK || !s.IsTrustee(body)):
		return fmt.Sprintf("name a Key Trustee Server in %s, and its port", s.property()), status
	case s.TrusteePath != "":
		return "", nil
	case code == http.StatusNotFound:
		return fmt.Sprintf("correct the path in %s: a KMS is usually at /kms", s.property()), status
	case code >= 500:
		return "see the log of the KMS there", status
	case code >= 300 && code < 400:
		return fmt.Sprintf("name the KMS itself in %s", s.property()), fmt.Errorf("HTTP status %s: a redirect to %s",
			resp.Status, claviger.Printable(resp.Header.Get("Location")))
	}
	// Without an identity a KMS answers 401, or 403 or a list of names if it allows anonymous access. Any other answer
	// comes from another service, another path, or a KMS that cannot work.
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "", nil
	case http.StatusOK:
		if strings.HasPrefix(body, "[") {
			return "", nil
		}
	}
	return fmt.Sprintf("this is not the answer of a KMS: correct host, port and path in %s", s.property()), status
}

// explain finds out why a host did not answer properly. It tries the other scheme.
func (s *SourceKMS) explain(ctx context.Context, f *HostFacts, scheme string, err error) {
	f.Err = err
	switch scheme {
	case "http":
		// This connection only shows whether the port speaks TLS. The peer's identity does not matter, and
		// nothing is sent.
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // see above
		conn, tlsErr := d.DialContext(ctx, "tcp", hostPort(f.Base))
		if tlsErr == nil {
			_ = conn.Close()
			f.Err = errors.New("the port speaks https, but the URI has http")
			f.Cure = fmt.Sprintf("write https in %s: kms://https@%s", s.property(), afterScheme(f.Base))
			return
		}
		if f.Err == nil {
			f.Err = errors.New("HTTP status 400")
		}
	case "https":
		var header tls.RecordHeaderError
		cure := claviger.CertificateCure(err, "our truststore (ssl-client.xml, ssl.client.truststore.location)")
		switch {
		case cure != "":
			f.Cure = cure
			return
		case errors.As(err, &header), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
			f.Err = errors.New("the port speaks http, but the URI has https")
			f.Cure = fmt.Sprintf("write http in %s: kms://http@%s; better: turn on TLS at the source",
				s.property(), afterScheme(f.Base))
			if s.TrusteePath != "" {
				f.Cure = fmt.Sprintf("name the port of the Key Trustee Server in %s", s.property())
			}
			return
		}
	}
	what := "KMS"
	if s.TrusteePath != "" {
		what = "Key Trustee Server"
	}
	f.Cure = fmt.Sprintf("check that the %s runs, and that %s can be reached from here", what, hostPort(f.Base))
}

// storeDate stores the date of an answer, and reports whether the answer has one.
func (f *HostFacts) storeDate(resp *http.Response, began time.Time, took time.Duration) bool {
	d, err := http.ParseTime(resp.Header.Get("Date"))
	if err == nil {
		f.Date, f.DateBegan, f.DateTook = d, began, took
	}
	return err == nil
}

// get requests a page of the KMS without an identity.
func get(ctx context.Context, base, page string, config *tls.Config) (*http.Response, string, error) {
	t := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+page, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		var u *url.Error // has method and URL, which the report names already
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 200))
	if err != nil {
		return nil, "", err
	}
	return resp, string(body), nil
}

func hostPort(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base
	}
	if u.Port() != "" {
		return u.Host
	}
	port := "80"
	if u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func afterScheme(base string) string {
	_, rest, _ := strings.Cut(base, "://")
	return rest
}
