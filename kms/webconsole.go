package kms

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/console"
	"claviger/console/pages"
	"claviger/web"
)

const (
	consoleListenName = "claviger.console.listen"
	// consoleConnections limits the connections to the web console, whose clients are a few browsers.
	consoleConnections = 64
	// consoleEvents is the number of audit events that the web console can show.
	consoleEvents = 1000
)

// consoleListen reads the address of the web console.
func (r *reader) consoleListen() string {
	address := strings.TrimSpace(r.conf.String(consoleListenName))
	if address == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(address)
	if _, badPort := strconv.ParseUint(port, 10, 16); err != nil || badPort != nil {
		r.keep(r.conf.Refuse(consoleListenName, "it must be HOST:PORT, as in 127.0.0.1:9601"))
		return ""
	}
	kind := r.conf.String(authType)
	simple := kind == "simple" || kind == delegationBy+"PseudoDelegationTokenAuthenticationHandler"
	if simple && !isLoopback(host) {
		r.keep(r.conf.Refuse(consoleListenName, fmt.Sprintf("%s is simple and proves no user's name, so the host must "+
			"be 127.0.0.1, ::1 or localhost; open the console on this host, or through ssh -L", authType)))
	}
	return address
}

// isLoopback reports whether a host of an address is loopback.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// serveWebConsole serves the web console, if it has an address, with the certificate of the KMS. end stops it.
func (s *server) serveWebConsole(ctx context.Context, e *endpoint) (end func() error, err error) {
	if s.set.consoleListen == "" {
		return func() error { return nil }, nil
	}
	limits := s.set.web.limits
	limits.Stop = 0 // a page that is cut off is read again
	server := &web.Server{
		Address: s.set.consoleListen, AddressName: consoleListenName,
		Connections: web.NewConnections(web.FixedLimits(consoleConnections), s.log),
		Limits:      limits, Headers: s.set.web.headers, Handler: s.webConsole(e), Log: s.log,
	}
	if e.tls != nil {
		server.TLS = e.tls.Config
	}
	running, err := server.Start(ctx)
	if err != nil {
		return nil, s.conf.RefuseFor(consoleListenName, err, "the web console cannot listen there: %v", err)
	}
	if tcp, ok := running.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && e.tls == nil {
		s.log.Warn("the web console is served to other hosts without TLS, so others in the network can read its "+
			"cookies; set hadoop.kms.ssl.enabled to true", "address", running.Addr())
	}
	s.log.Info("serving the web console", "url", running.URL()+"/")
	return running.Stop, nil
}

// webConsole makes the handler of the web console.
func (s *server) webConsole(e *endpoint) http.Handler {
	administrator := s.administrator()
	return pages.New(pages.Config{
		KMS: s.api, LoopbackOnly: s.auth.simple, Traffic: s.traffic, Log: s.log,
		Details: func(r *http.Request, who claviger.Principal) bool {
			return s.set.web.details(r) || administrator != nil && administrator(who)
		},
		Report: func(ctx context.Context, details bool) console.Report {
			return s.console.Report(ctx, console.Purposes, details)
		},
		ProviderURI: "kms://" + strings.Replace(e.URL(), "://", "@", 1), Ready: s.ring.QueuedOf, Origin: s.origin,
		Migration: s.migrationPage,
		Policy:    s.policy.Policy, Rules: s.policy.Status, RulesFile: ACLFile(s.conf), Groups: s.auth.groups.Of,
		KeyAuthorization: s.set.ring.KeyAuthorization, Events: s.events, Chain: s.trail.state,
		Facts: func(ctx context.Context, details bool) []pages.Group { return s.facts(ctx, e, details) },
	})
}

// observeBoth returns a hook that calls both hooks. The first may be nil.
func observeBoth(first, second func(string, int, int, time.Duration)) func(string, int, int, time.Duration) {
	if first == nil {
		return second
	}
	return func(op string, status, edeks int, took time.Duration) {
		first(op, status, edeks, took)
		second(op, status, edeks, took)
	}
}
