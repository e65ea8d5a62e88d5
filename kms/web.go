package kms

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"claviger/web"
)

// webSettings bound what clients may take of the web server.
type webSettings struct {
	headBytes   int
	head        time.Duration // a request's head must have come, and a TLS handshake be done
	request     time.Duration // all of it
	answer      time.Duration // from the head on
	idle        time.Duration
	connections web.ConnectionLimits
	headers     map[string]string // of every answer
	details     []netip.Prefix    // which peers the console shows names to
}

// showsDetails tells whether the console shows names of keys, hosts and files to the peer.
func (w *webSettings) showsDetails(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	from := peer.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(w.details, func(p netip.Prefix) bool { return p.Contains(from) })
}

const (
	headerPrefix       = "hadoop.http.header."
	maxConnectionsName = "claviger.http.max.connections"
	perAddressName     = "claviger.http.max.connections.per.address"
	unlimitedName      = "claviger.http.unlimited.addresses"
	detailsName        = "claviger.console.details"
)

// headerName is what Hadoop's HttpServer2 takes for the name of a header.
var headerName = regexp.MustCompile(`^[a-zA-Z\-_]+$`)

func (r *reader) web() webSettings {
	w := webSettings{
		headBytes:   int(r.int("hadoop.http.max.request.header.size", 1024, 1<<20)),
		head:        r.duration("claviger.http.head.timeout", time.Second),
		request:     r.duration("claviger.http.request.timeout", time.Second),
		answer:      r.duration("claviger.http.answer.timeout", time.Second),
		idle:        r.duration("hadoop.http.idle_timeout.ms", time.Millisecond),
		connections: r.connections(),
		headers:     map[string]string{},
	}
	for _, name := range []string{"claviger.http.head.timeout", "claviger.http.request.timeout", "claviger.http.answer.timeout", "hadoop.http.idle_timeout.ms"} {
		// To net/http 0 means no limit at all.
		if d, err := r.conf.Duration(name, time.Second); err == nil && d == 0 {
			r.keep(r.conf.Refuse(name, "it must be more than 0, or clients could keep their connections for ever"))
		}
	}
	list, _ := r.conf.Get(detailsName)
	var err error
	if w.details, err = web.ParseAddresses(list); err != nil {
		r.keep(r.conf.Refuse(detailsName, err.Error()))
	}
	for name, value := range r.conf.Under(headerPrefix) {
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

// connections reads how many connections are taken.
func (r *reader) connections() web.ConnectionLimits {
	l := web.ConnectionLimits{Total: r.int(maxConnectionsName, 1, 1<<20), TotalName: maxConnectionsName,
		PerAddressName: perAddressName, UnlimitedName: unlimitedName}
	value, _ := r.conf.Get(perAddressName)
	var of int64
	if strings.TrimSpace(value) != "" {
		of = r.int(perAddressName, 0, 1<<20)
	}
	var err error
	if l.PerAddress, err = web.PerAddress(of, strings.TrimSpace(value) != "", l.Total); err != nil {
		r.keep(r.conf.Refuse(perAddressName, err.Error()))
	}
	list, _ := r.conf.Get(unlimitedName)
	if l.Unlimited, err = web.ParseAddresses(list); err != nil {
		r.keep(r.conf.Refuse(unlimitedName, err.Error()))
	}
	return l
}

// newServer makes the web server.
func (w webSettings) newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           web.HTTP1(w.withHeaders(handler)),
		ReadHeaderTimeout: w.head,
		ReadTimeout:       w.request,
		WriteTimeout:      w.answer,
		IdleTimeout:       w.idle,
		MaxHeaderBytes:    w.headBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// HTTP/1.1 alone, as Hadoop's.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// OPTIONS * goes to the handler as everything else does.
		DisableGeneralOptionsHandler: true,
	}
}

// withHeaders puts the headers of hadoop.http.header.* on every answer.
func (w webSettings) withHeaders(next http.Handler) http.Handler {
	if len(w.headers) == 0 {
		return next
	}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		for name, value := range w.headers {
			h[name] = []string{value} // spelt as configured
		}
		next.ServeHTTP(rw, r)
	})
}
