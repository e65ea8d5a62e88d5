package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"claviger/console"
	"claviger/kmsapi"
)

// webSettings bound what clients may take of the web server.
type webSettings struct {
	headBytes      int
	head           time.Duration // a request's head must have come, and a TLS handshake be done
	request        time.Duration // all of it
	answer         time.Duration // from the head on
	idle           time.Duration
	maxConnections int64
	headers        map[string]string // of every answer
}

const (
	headerPrefix       = "hadoop.http.header."
	maxConnectionsName = "claviger.http.max.connections"
)

// headerName is what Hadoop's HttpServer2 takes for the name of a header.
var headerName = regexp.MustCompile(`^[a-zA-Z\-_]+$`)

func (r *reader) web() webSettings {
	w := webSettings{
		headBytes:      int(r.int("hadoop.http.max.request.header.size", 1024, 1<<20)),
		head:           r.duration("claviger.http.head.timeout", time.Second),
		request:        r.duration("claviger.http.request.timeout", time.Second),
		answer:         r.duration("claviger.http.answer.timeout", time.Second),
		idle:           r.duration("hadoop.http.idle_timeout.ms", time.Millisecond),
		maxConnections: r.int(maxConnectionsName, 1, 1<<20),
		headers:        map[string]string{},
	}
	for _, name := range []string{"claviger.http.head.timeout", "claviger.http.request.timeout", "claviger.http.answer.timeout", "hadoop.http.idle_timeout.ms"} {
		// To net/http 0 means no limit at all.
		if d, err := r.conf.Duration(name, time.Second); err == nil && d == 0 {
			r.keep(refuse(r.conf, name, "it must be more than 0, or clients could keep their connections for ever"))
		}
	}
	for name, value := range r.conf.Under(headerPrefix) {
		value = strings.TrimSpace(value)
		switch {
		case !headerName.MatchString(name):
			r.keep(fmt.Errorf("property %s%s: a header's name has only letters, '-' and '_'", headerPrefix, name))
		case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f }):
			r.keep(refuse(r.conf, headerPrefix+name, "it must have no control characters, line ends among them"))
		default:
			w.headers[name] = value
		}
	}
	return w
}

// keptDescriptors are those that connections never get: files, HSM, metastore,
// sources.
const keptDescriptors = 256

// bounded returns the cap of connections, lowered to what descriptors allow.
func (w webSettings) bounded(log *slog.Logger) int64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return w.maxConnections
	}
	room := max(int64(limit.Cur)-keptDescriptors, int64(limit.Cur)/2) //nolint:gosec // below 2^30
	if w.maxConnections <= room {
		return w.maxConnections
	}
	log.Warn("fewer connections are taken than the property says: each needs a descriptor; raise LimitNOFILE of the systemd unit, or ulimit -n", "property", maxConnectionsName,
		"value", w.maxConnections, "connections", room, "descriptors", limit.Cur)
	return room
}

// newServer makes the web server.
func (w webSettings) newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           kmsapi.HTTP1(w.withHeaders(handler)),
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

// boundedListener takes so many connections at once. One more is closed as soon
// as it comes, so that its client goes to another node; in a queue it would wait
// for its own time limit, a minute.
type boundedListener struct {
	net.Listener
	most     int64
	property string // that says so
	log      *slog.Logger

	open, refused atomic.Int64
	told          atomic.Int64 // when a refusal was last logged, in nanoseconds since 1970
}

// tellEvery is how often a fault that repeats is logged.
const tellEvery = time.Minute

// Accept returns the next connection that there is room for.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.most {
			return &boundedConn{Conn: conn, done: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		l.open.Add(-1)
		n := l.refused.Add(1)
		_ = conn.Close() // it goes one way or the other
		now := time.Now()
		if last := l.told.Load(); now.Sub(time.Unix(0, last)) >= tellEvery && l.told.CompareAndSwap(last, now.UnixNano()) {
			l.log.Warn("connections are refused: as many are open as may be", "property", l.property, "open", l.most, "refused so far", n, "latest from", conn.RemoteAddr())
		}
	}
}

// metrics shows how full it is.
func (l *boundedListener) metrics(m *console.Metrics) {
	m.Gauge("claviger_http_connections", "Open connections of clients.", func() float64 { return float64(l.open.Load()) })
	m.Gauge("claviger_http_connections_max", "Connections that may be open at once.", func() float64 { return float64(l.most) })
	m.Counter("claviger_http_connections_refused_total", "Connections closed at once, as so many were open.", func() float64 { return float64(l.refused.Load()) })
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	done func()
}

// CloseWrite ends our half. net/http does so after an answer to a request that it
// has not read to its end, and lingers: else a reset would overtake the answer.
func (c *boundedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes it, however often it is called.
func (c *boundedConn) Close() error {
	c.done()
	return c.Conn.Close()
}
