// Package kmsclient is the provider of kms:// URIs: any Hadoop KMS, ours or Java's, on one or several hosts. It speaks
// Hadoop's REST protocol. It logs in by simple authentication, or by Kerberos if the KMS requires it and
// Options.Negotiate is set. Both logins return the hadoop.auth cookie.
//
// The KMS wraps and unwraps EDEKs (provider.EDEKService), even if it would return its material. So its ACLs, its audit
// log and its caches see every use of its keys.
//
// The hosts share the load. If a host cannot be reached, the client tries the next one, as Hadoop's
// LoadBalancingKMSClientProvider does. Unlike that class, the client never repeats a creation, rollover or deletion
// that a host may have executed.
package kmsclient

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// The properties of Hadoop's client that this client reads.
const (
	propTimeout    = "hadoop.security.kms.client.timeout" // seconds
	propMaxRetries = "hadoop.security.kms.client.failover.max.retries"
	propSleepBase  = "hadoop.security.kms.client.failover.sleep.base.millis"
	propSleepMax   = "hadoop.security.kms.client.failover.sleep.max.millis"
)

// Options say how to reach the KMS. A zero value means the named default.
type Options struct {
	// User is our user name at the KMS: user.name of simple authentication. Required.
	User string
	// Negotiate begins a login by Kerberos, if the KMS requires one. If it is nil, calls to such a KMS fail.
	Negotiate Negotiate
	// TLS is the configuration for https; nil trusts the system's roots.
	TLS *tls.Config
	// Timeout bounds one attempt at one host, including the wait for a connection: hadoop.security.kms.client.timeout,
	// 60 s. The call's context may end earlier.
	Timeout time.Duration
	// MaxRetries is hadoop.security.kms.client.failover.max.retries; the default is the number of hosts. Each host is
	// tried at least once.
	MaxRetries int
	// SleepBase and SleepMax are the first and the longest pause after a round of all hosts:
	// hadoop.security.kms.client.failover.sleep.{base,max}.millis, 100 ms and 2 s.
	SleepBase, SleepMax time.Duration
	// MaxConnsPerHost bounds the connections to a host, including idle ones: 64.
	MaxConnsPerHost int
	// Parallel bounds the requests that one Unwrap sends at the same time: 32.
	Parallel int
	// Store returns the name of our own metastore. It is sent to the KMS, so that the KMS can answer that it has the
	// same metastore. If Store is nil or returns "", nothing is sent.
	Store func() string
	// Log gets the failures of hosts, and problems that no call returns. nil means no log.
	Log *slog.Logger
}

// Provider is a remote Hadoop KMS.
type Provider struct {
	uri    string
	opt    Options
	hosts  []*host // shuffled
	next   atomic.Uint32
	kind   atomic.Int32 // of the KMS; see Ranger
	client *http.Client
	large  chan struct{} // one entry for each long answer that is being read

	wantsKerberos atomic.Bool // see WantsKerberos

	ctx  context.Context // cancelled by Close
	stop context.CancelFunc
}

// WantsKerberos reports whether the KMS has requested a login by Kerberos so far.
func (p *Provider) WantsKerberos() bool { return p.wantsKerberos.Load() }

var (
	_ provider.Provider    = (*Provider)(nil)
	_ provider.EDEKService = (*Provider)(nil)
	_ provider.Health      = (*Provider)(nil)
)

// Scheme is the registry's entry for kms://. tlsFor makes the TLS configuration for https URIs, e.g. from
// ssl-client.xml; nil trusts the system's roots. negotiate and store become the fields of Options.
func Scheme(tlsFor func(provider.Env) (*tls.Config, error), negotiate Negotiate, store func() string) provider.Scheme {
	open := func(_ context.Context, uri string, env provider.Env) (provider.Provider, error) {
		opt, err := optionsOf(env)
		if err != nil {
			return nil, err
		}
		opt.Negotiate, opt.Store = negotiate, store
		k, err := provider.ParseKMS(uri)
		if err != nil {
			return nil, err
		}
		if k.Scheme == "https" && tlsFor != nil {
			if opt.TLS, err = tlsFor(env); err != nil {
				return nil, fmt.Errorf("provider URI %q: %w", secret.Value(uri), err)
			}
		}
		return New(uri, opt)
	}
	return provider.Scheme{Name: "kms", Open: open}
}

// optionsOf reads the properties of Hadoop's client.
func optionsOf(env provider.Env) (Options, error) {
	opt := Options{User: env.User, Log: env.Log}
	var timeout, base, longest int
	for _, p := range []struct {
		name string
		to   *int
		max  int
	}{
		{propTimeout, &timeout, 24 * 3600}, {propMaxRetries, &opt.MaxRetries, 1000},
		{propSleepBase, &base, 3_600_000}, {propSleepMax, &longest, 3_600_000},
	} {
		var err error
		if *p.to, err = env.Int(p.name, *p.to, 0, p.max); err != nil {
			return opt, err
		}
	}
	opt.Timeout = time.Duration(timeout) * time.Second
	opt.SleepBase = time.Duration(base) * time.Millisecond
	opt.SleepMax = time.Duration(longest) * time.Millisecond
	return opt, nil
}

// New makes a client of the KMS that uri names. It sends no request: a KMS that is down now may be up when it is
// needed.
func New(uri string, opt Options) (*Provider, error) {
	k, err := provider.ParseKMS(uri)
	if err != nil {
		return nil, err
	}
	if opt.User == "" {
		return nil, fmt.Errorf("provider URI %q: no user name for the login at that KMS", secret.Value(uri))
	}
	orDefault(&opt.Timeout, 60*time.Second)
	orDefault(&opt.SleepBase, 100*time.Millisecond)
	orDefault(&opt.SleepMax, 2*time.Second)
	orDefault(&opt.MaxRetries, len(k.Hosts))
	orDefault(&opt.MaxConnsPerHost, 64)
	orDefault(&opt.Parallel, 32)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{uri: uri, opt: opt, large: make(chan struct{}, maxLarge)}
	for _, base := range k.BaseURLs() {
		p.hosts = append(p.hosts, &host{base: base, login: make(chan struct{}, 1)})
	}
	//nolint:gosec // random only to spread the load
	rand.Shuffle(len(p.hosts), func(i, j int) { p.hosts[i], p.hosts[j] = p.hosts[j], p.hosts[i] })
	// Use HTTP/1.1 only, as every KMS client does: a Transport with its own TLS configuration and dialer offers no
	// HTTP/2.
	p.client = &http.Client{
		Transport: namedTransport{opt.Store, &http.Transport{
			DialContext: (&net.Dialer{Timeout: min(opt.Timeout, 10*time.Second),
				KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        opt.TLS.Clone(),
			TLSHandshakeTimeout:    min(opt.Timeout, 10*time.Second),
			MaxConnsPerHost:        opt.MaxConnsPerHost,
			MaxIdleConnsPerHost:    opt.MaxConnsPerHost,
			IdleConnTimeout:        50 * time.Second, // less than the KMS's 60 s (hadoop.http.idle_timeout.ms)
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// orDefault sets *v to d if it is zero.
func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// URI returns the URI with which the provider was opened.
func (p *Provider) URI() string { return p.uri }

// Close cancels running calls, and closes the connections.
func (p *Provider) Close() error {
	p.stop()
	p.client.CloseIdleConnections()
	return nil
}

// CheckHost asks the host with this base URL for the names of its keys. Kind Denied if the host does not admit us.
func (p *Provider) CheckHost(ctx context.Context, base string) error {
	const op = "kmsclient.CheckHost"
	i := slices.IndexFunc(p.hosts, func(h *host) bool { return h.base == base })
	if i < 0 {
		return claviger.Errorf(op, claviger.Invalid, "", "%s is no host of %s", base, p.uri)
	}
	_, f := p.attempt(ctx, p.hosts[i], request{op: op, method: http.MethodGet, path: "/v1/keys/names", safe: true,
		status: http.StatusOK, limit: maxBody})
	return f.orNil()
}

// Check sends an authenticated OPTIONS request. The request needs no right at the KMS, and uses none of its keys. Check
// succeeds if one host answers.
func (p *Provider) Check(ctx context.Context) error {
	_, err := p.do(ctx, request{op: "kmsclient.Check", method: http.MethodOptions, path: "/v1/keys/names", safe: true,
		status: http.StatusOK, noBody: true})
	return err
}
