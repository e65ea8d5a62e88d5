package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"claviger/durable"
)

// Limits bound the requests of a server. Each number must be more than 0, except Stop.
type Limits struct {
	HeadBytes int           // of a request's line and headers
	Head      time.Duration // until a TLS handshake is done, and until a request's head has arrived
	Request   time.Duration // until the whole request has arrived
	Answer    time.Duration // from the end of the head to the end of the answer
	Idle      time.Duration // of a connection without a request
	// Stop is how long requests under way may take to end when the server stops. If Stop is
	// 0, they are cut off at once.
	Stop time.Duration
	// StopName is the property of Stop, for messages; "" if the limit is fixed.
	StopName string
}

// Server is an HTTP server. Fill in the fields, then call Run, or Start for a server whose
// handler changes. A Server is used once.
type Server struct {
	// Address is the host and port to listen at. An empty host is every address of this
	// host; port 0 is any free one.
	Address string
	// AddressName is the flag or property of Address, for errors.
	AddressName string
	Connections *Connections
	Limits      Limits
	// TLS is nil for plain http. See FollowCertificate.
	TLS *tls.Config
	// Headers are added to every answer, with their names spelt as they are here.
	Headers map[string]string
	Handler http.Handler
	// Path is the path of the base URL: "" or one that begins with a slash.
	Path string
	// OnReady, unless nil, is called with the base URL when the server is ready, before
	// ReadyFile is written.
	OnReady func(url string) error
	// ReadyFile gets the base URL when the server is ready; "" means no file.
	ReadyFile string
	// About are the attributes of the log line with which Run says that the server is ready.
	About []any
	Log   *slog.Logger
}

// Run serves until ctx ends, then lets requests under way end. The server is ready as soon
// as it listens.
func (s *Server) Run(ctx context.Context) error {
	r, err := s.Start(ctx)
	if err != nil {
		return err
	}
	if err = r.Ready(s.About...); err == nil {
		_ = r.Wait(ctx) // Stop returns the same error
	}
	return errors.Join(err, r.Stop())
}

// Running is a server that listens and serves.
type Running struct {
	server   *Server
	http     *http.Server
	addr     net.Addr
	listener *refusingListener
	handler  atomic.Pointer[http.Handler]
	drained  atomic.Int64  // when the last request came since drain began, in nanoseconds since 1970; 0 before that
	ended    chan struct{} // closed when Serve has returned
	err      error         // of Serve; read it after ended is closed
}

// Start listens, and serves in the background until Stop. ctx limits only the start.
func (s *Server) Start(ctx context.Context) (*Running, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.Address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.AddressName, err)
	}
	r := &Running{server: s, addr: listener.Addr(), listener: newRefusingListener(listener),
		ended: make(chan struct{})}
	r.Handle(s.Handler)
	r.http = s.httpServer(r)
	s.Connections.Watch(r.http)
	listener = s.Connections.Bound(r.listener)
	if s.TLS != nil {
		listener = tls.NewListener(listener, s.TLS)
	}
	go func() {
		defer close(r.ended)
		r.err = r.http.Serve(listener)
	}()
	return r, nil
}

// httpServer makes net/http's server.
func (s *Server) httpServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           s.withHeaders(http1(handler)),
		ReadHeaderTimeout: s.Limits.Head,
		ReadTimeout:       s.Limits.Request,
		WriteTimeout:      s.Limits.Answer,
		IdleTimeout:       s.Limits.Idle,
		MaxHeaderBytes:    s.Limits.HeadBytes,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		// HTTP/1.1 alone, as Hadoop speaks it: streams of HTTP/2 would need limits of their own.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// The handler answers OPTIONS * like any other request.
		DisableGeneralOptionsHandler: true,
	}
}

// withHeaders adds the headers to every answer of next.
func (s *Server) withHeaders(next http.Handler) http.Handler {
	if len(s.Headers) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for name, value := range s.Headers {
			h[name] = []string{value} // not Set, which would change the spelling
		}
		next.ServeHTTP(w, r)
	})
}

// Handle makes h answer all further requests.
func (r *Running) Handle(h http.Handler) { r.handler.Store(&h) }

// ServeHTTP answers by the handler that was set last.
func (r *Running) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.lastAnswer(w)
	(*r.handler.Load()).ServeHTTP(w, q)
}

// Addr is the address that the server listens at, with the port that it got.
func (r *Running) Addr() net.Addr { return r.addr }

// URL is the base URL of the server: with the host of Address, or localhost if the server
// listens at every address.
func (r *Running) URL() string {
	host, _, err := net.SplitHostPort(r.server.Address)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(r.addr.String()) // a TCP address always has a port
	scheme := "http"
	if r.server.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + r.server.Path
}

// Ready says that the server is ready: to OnReady, in the ready file, and in the log, with the
// attributes about.
func (r *Running) Ready(about ...any) error {
	s, url := r.server, r.URL()
	if s.OnReady != nil {
		if err := s.OnReady(url); err != nil {
			return err
		}
	}
	if s.ReadyFile != "" {
		if err := durable.Replace(s.ReadyFile, []byte(url+"\n"), 0o644); err != nil { // scripts of other users read it
			return fmt.Errorf("--ready-file: %w", err)
		}
	}
	s.Log.Info("serving", append([]any{"url", url}, about...)...)
	return nil
}

// Ended is closed when the server has stopped serving. Stop returns the reason.
func (r *Running) Ended() <-chan struct{} { return r.ended }

// Wait waits until ctx ends, or until the server has stopped serving. In the second case it returns the reason.
func (r *Running) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		r.server.Log.Info("stopping: requests under way are served to their end")
		return nil
	case <-r.ended:
		return r.err
	}
}

// Stop closes the listener and lets requests under way end, for as long as Limits.Stop says. If the server had stopped
// serving before the call, Stop returns the reason.
func (r *Running) Stop() error {
	if err := r.shutdown(); err != nil {
		return err
	}
	<-r.ended
	if !errors.Is(r.err, http.ErrServerClosed) {
		return r.err
	}
	return nil
}

func (r *Running) shutdown() error {
	stop := r.server.Limits.Stop
	if stop == 0 {
		return r.http.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), stop)
	defer cancel()
	r.drain()
	if err := r.http.Shutdown(ctx); err != nil {
		about := []any{"limit", stop, "err", err}
		if name := r.server.Limits.StopName; name != "" {
			about = append(about, "property", name)
		}
		r.server.Log.Warn("requests were still under way at the end of the time limit for a stop, and are cut off",
			about...)
		return r.http.Close()
	}
	return nil
}
