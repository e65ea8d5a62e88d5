package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"claviger/hadoopconf"
	"claviger/web"
)

// webSettings are the settings of the HTTP server and of its console.
type webSettings struct {
	limits      web.Limits
	connections web.ConnectionLimits
	headers     map[string]string
	// details returns whether the console shows names of keys, hosts and files to a peer.
	details func(*http.Request) bool
}

const (
	headerPrefix       = "hadoop.http.header."
	shutdownName       = "claviger.shutdown.timeout"
	maxConnectionsName = "claviger.http.max.connections"
	perAddressName     = "claviger.http.max.connections.per.address"
	unlimitedName      = "claviger.http.unlimited.addresses"
	detailsName        = "claviger.console.details"
)

// headerName matches the header names that Hadoop's HttpServer2 accepts.
var headerName = regexp.MustCompile(`^[a-zA-Z\-_]+$`)

func (r *reader) web() webSettings {
	w := webSettings{
		limits: web.Limits{
			HeadBytes: int(r.int("hadoop.http.max.request.header.size", 1024, 1<<20)),
			Head:      r.duration("claviger.http.head.timeout", time.Second),
			Request:   r.duration("claviger.http.request.timeout", time.Second),
			Answer:    r.duration("claviger.http.answer.timeout", time.Second),
			Idle:      r.duration("hadoop.http.idle_timeout.ms", time.Millisecond),
			Stop:      r.duration(shutdownName, time.Second),
			StopName:  shutdownName,
		},
		connections: r.connections(),
		headers:     map[string]string{},
	}
	for _, name := range []string{"claviger.http.head.timeout", "claviger.http.request.timeout",
		"claviger.http.answer.timeout", "hadoop.http.idle_timeout.ms"} {
		// net/http takes 0 as "no limit".
		if d, err := r.conf.Duration(name, time.Second); err == nil && d == 0 {
			r.keep(r.conf.Refuse(name, "it must be more than 0, or clients could keep their connections for ever"))
		}
	}
	list, _ := r.conf.Get(detailsName)
	details, err := web.ParseAddresses(list)
	if err != nil {
		r.keep(r.conf.Refuse(detailsName, err.Error()))
	}
	w.details = web.PeersOf(details)
	for name, value := range r.conf.WithPrefix(headerPrefix) {
		value = strings.TrimSpace(value)
		switch {
		case !headerName.MatchString(name):
			r.keep(fmt.Errorf("property %s%s: a header's name has only letters, '-' and '_'", headerPrefix, name))
		case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f }):
			r.keep(r.conf.Refuse(headerPrefix+name, "it must have no control characters, line ends among them"))
		default:
			w.headers[name] = value
		}
	}
	return w
}

// connections reads the limits of connections.
func (r *reader) connections() web.ConnectionLimits {
	l := web.ConnectionLimits{Total: r.int(maxConnectionsName, 1, 1<<20), TotalName: maxConnectionsName,
		PerAddressName: perAddressName, UnlimitedName: unlimitedName}
	value, _ := r.conf.Get(perAddressName)
	var perAddress int64
	set := strings.TrimSpace(value) != ""
	if set {
		perAddress = r.int(perAddressName, 0, 1<<20)
	}
	var err error
	if l.PerAddress, err = web.PerAddress(perAddress, set, l.Total); err != nil {
		r.keep(r.conf.Refuse(perAddressName, err.Error()))
	}
	list, _ := r.conf.Get(unlimitedName)
	if l.Unlimited, err = web.ParseAddresses(list); err != nil {
		r.keep(r.conf.Refuse(unlimitedName, err.Error()))
	}
	return l
}

// endpoint is the listening HTTP server of a KMS.
type endpoint struct {
	*web.Running
	connections *web.Connections
	tls         *servedTLS // nil: plain http
}

// openEndpoint listens. Until Handle is called, each answer says that the server is
// starting.
func openEndpoint(ctx context.Context, conf *hadoopconf.Conf, set settings, readyFile string,
	log *slog.Logger) (*endpoint, error) {
	e := &endpoint{connections: web.NewConnections(set.web.connections, log)}
	s := &web.Server{
		Address:     net.JoinHostPort(set.host, strconv.Itoa(set.port)),
		AddressName: "hadoop.kms.http.host and hadoop.kms.http.port",
		Connections: e.connections, Limits: set.web.limits, Headers: set.web.headers, Path: "/kms",
		ReadyFile: readyFile,
		Handler:   startingHandler(func() string { return "the server is starting" }, set.web.details, log), Log: log,
	}
	var err error
	if set.tls {
		if e.tls, err = serverTLS(conf, signWithKeys, log); err != nil {
			return nil, err
		}
		s.TLS = e.tls.Config
	}
	if e.Running, err = s.Start(ctx); err == nil {
		return e, nil
	}
	if e.tls != nil {
		e.tls.Close()
	}
	var unresolved *net.DNSError
	if errors.As(err, &unresolved) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		err = errors.Unwrap(err) // removes the names of the properties; the new error names one
		return nil, conf.RefuseFor("hadoop.kms.http.host", err,
			"it must be a name or an address of this host, or 0.0.0.0 for all of them: %v", err)
	}
	return nil, err
}

// close stops the server.
func (e *endpoint) close() error {
	if e.tls != nil {
		defer e.tls.Close()
	}
	return e.Stop()
}
