// Package kmsclient is the provider of kms:// URIs: any Hadoop KMS, ours or
// Java's, on one host or several, as a provider. It speaks Hadoop's REST
// protocol, and logs in by its simple authentication or, where the KMS wants it
// and Options.Negotiate is there, by Kerberos; both give the hadoop.auth cookie.
//
// It lets the far KMS wrap and unwrap (provider.EDEKService), also where that
// one would show its material: then its ACLs, its audit log and its caches see
// every use of its keys.
//
// Hosts share the load. A host that cannot be reached is passed over, as by
// Hadoop's LoadBalancingKMSClientProvider; unlike that, a creation, rollover or
// deletion is never sent again once a host may have acted on it.
package kmsclient

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"claviger/provider"
	"claviger/secret"
)

// The properties of Hadoop's client that are respected.
const (
	propTimeout    = "hadoop.security.kms.client.timeout" // seconds
	propMaxRetries = "hadoop.security.kms.client.failover.max.retries"
	propSleepBase  = "hadoop.security.kms.client.failover.sleep.base.millis"
	propSleepMax   = "hadoop.security.kms.client.failover.sleep.max.millis"
)

// Options say how to reach the far KMS. Zero values take the defaults named.
type Options struct {
	// User is who we are there: user.name of simple authentication. Required.
	User string
	// Negotiate begins a login by Kerberos at a KMS that asks for it; nil: such a
	// KMS is refused.
	Negotiate Negotiate
	// TLS is used for https; nil trusts the system's roots.
	TLS *tls.Config
	// Timeout of one attempt at one host, the wait for a connection included:
	// hadoop.security.kms.client.timeout, 60 s. The call's context may be shorter.
	Timeout time.Duration
	// MaxRetries: hadoop.security.kms.client.failover.max.retries, as many as
	// there are hosts. Each host is tried once in any case.
	MaxRetries int
	// SleepBase and SleepMax of the pause after each round of all hosts:
	// hadoop.security.kms.client.failover.sleep.{base,max}.millis, 100 ms and 2 s.
	SleepBase, SleepMax time.Duration
	// MaxConnsPerHost bounds connections, idle ones too: 64.
	MaxConnsPerHost int
	// Parallel bounds the requests of one Unwrap under way at once: 32.
	Parallel int
	// Store names our own metastore to the KMS, so that one that has it too can say so; nil,
	// or "", tells nothing.
	Store func() string
	// Log is told of hosts that fail and of what cannot be returned; nil: nothing.
	Log *slog.Logger
}

// Provider is a Hadoop KMS elsewhere.
type Provider struct {
	uri    string
	opt    Options
	hosts  []*host // shuffled
	next   atomic.Uint32
	kind   atomic.Int32 // what KMS it is; see Ranger
	client *http.Client
	large  chan struct{} // places of long answers that are read
	asked  atomic.Bool   // see WantsKerberos

	ctx  context.Context // ends with Close
	stop context.CancelFunc
}

// WantsKerberos tells whether the KMS has asked for a login by Kerberos so far.
func (p *Provider) WantsKerberos() bool { return p.asked.Load() }

var (
	_ provider.Provider    = (*Provider)(nil)
	_ provider.EDEKService = (*Provider)(nil)
	_ provider.Health      = (*Provider)(nil)
)

// Scheme is the registry's line for kms://. tlsFor makes the TLS configuration
// of https URIs (from ssl-client.xml, say); nil trusts the system's roots.
// negotiate and store are those of Options.
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
	var seconds, base, most int
	for _, p := range []struct {
		name string
		to   *int
		max  int
	}{
		{propTimeout, &seconds, 24 * 3600}, {propMaxRetries, &opt.MaxRetries, 1000},
		{propSleepBase, &base, 3_600_000}, {propSleepMax, &most, 3_600_000},
	} {
		var err error
		if *p.to, err = env.Int(p.name, *p.to, 0, p.max); err != nil {
			return opt, err
		}
	}
	opt.Timeout = time.Duration(seconds) * time.Second
	opt.SleepBase = time.Duration(base) * time.Millisecond
	opt.SleepMax = time.Duration(most) * time.Millisecond
	return opt, nil
}

// New opens the KMS that uri names. It asks nothing of it yet: a KMS that is
// away now may be there when it is needed.
func New(uri string, opt Options) (*Provider, error) {
	k, err := provider.ParseKMS(uri)
	if err != nil {
		return nil, err
	}
	if opt.User == "" {
		return nil, fmt.Errorf("provider URI %q: no user name to go by at that KMS", secret.Value(uri))
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
	p := &Provider{uri: uri, opt: opt, large: make(chan struct{}, largeAtOnce)}
	for _, base := range k.BaseURLs() {
		p.hosts = append(p.hosts, &host{base: base, login: make(chan struct{}, 1)})
	}
	//nolint:gosec // it spreads load, no more
	rand.Shuffle(len(p.hosts), func(i, j int) { p.hosts[i], p.hosts[j] = p.hosts[j], p.hosts[i] })
	// HTTP/1.1 only, as every KMS client: a Transport with its own TLS
	// configuration and dialer does not offer HTTP/2.
	p.client = &http.Client{
		Transport: named{opt.Store, &http.Transport{
			DialContext: (&net.Dialer{Timeout: min(opt.Timeout, 10*time.Second),
				KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        opt.TLS.Clone(),
			TLSHandshakeTimeout:    min(opt.Timeout, 10*time.Second),
			MaxConnsPerHost:        opt.MaxConnsPerHost,
			MaxIdleConnsPerHost:    opt.MaxConnsPerHost,
			IdleConnTimeout:        50 * time.Second, // below the KMS's own 60 s (hadoop.http.idle_timeout.ms)
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// URI is the URI that the provider was opened with.
func (p *Provider) URI() string { return p.uri }

// Close ends calls under way and closes the connections.
func (p *Provider) Close() error {
	p.stop()
	p.client.CloseIdleConnections()
	return nil
}

// Check asks for the far KMS's options, authenticated: that costs no right
// there, and touches none of its keys. It is well where one host is.
func (p *Provider) Check(ctx context.Context) error {
	_, err := p.do(ctx, request{op: "kmsclient.Check", method: http.MethodOptions, path: "/v1/keys/names", safe: true,
		status: http.StatusOK, noBody: true})
	return err
}
