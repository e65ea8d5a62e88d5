package keyhsm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"claviger"
	"claviger/web"
)

// Limits are the limits of the requests to a Key HSM.
var Limits = web.Limits{HeadBytes: 16 << 10, Head: 10 * time.Second, Request: 30 * time.Second,
	Answer: time.Minute, Idle: 2 * time.Minute, Stop: 10 * time.Second}

// Limits of the work on a request.
const (
	// workTimeout is the timeout of a request, from the wait for a slot to the answer of the HSM.
	workTimeout = 20 * time.Second
	// maxInFlight limits the requests at one time, because each holds its deposit in memory as JSON,
	// base64, ciphertext and plaintext.
	maxInFlight = 32
	// slotTimeout is how long a request waits for one of the maxInFlight slots.
	slotTimeout = 5 * time.Second
	// refusedLines is the burst of log lines about refused handshakes, which everybody who reaches the port can cause.
	// After that, one more line is logged each refusedEvery.
	refusedLines = 100
	refusedEvery = 600 * time.Millisecond
)

// Server offers a Keeper over HTTPS to clients with a trusted certificate.
type Server struct {
	keeper   *Keeper
	load     func() (*Identity, error)
	log      *slog.Logger
	slots    chan struct{} // one element for each running request
	slotWait time.Duration // slotTimeout; tests make it shorter
	logLimit *rate.Limiter // of the log lines about refused handshakes

	identity atomic.Pointer[Identity]
	loading  sync.Mutex
	started  time.Time

	mu        sync.Mutex
	loaded    time.Time
	loadError string

	wrapped, unwrapped, refused atomic.Int64

	observe func(op, result string, took time.Duration) // or nil
}

// NewServer makes a server. load reads its certificate and those that it trusts; NewServer and
// Reload call it.
func NewServer(keeper *Keeper, load func() (*Identity, error), log *slog.Logger) (*Server, error) {
	s := &Server{keeper: keeper, load: load, log: log, slots: make(chan struct{}, maxInFlight), slotWait: slotTimeout,
		logLimit: rate.NewLimiter(rate.Every(refusedEvery), refusedLines), started: time.Now()}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// OnRequest makes the server call f after each request. op is "wrap", "unwrap" or "status", result is "ok"
// or the kind of the error in the answer, and took is the duration. A refused handshake is not a request.
// Call OnRequest before the server starts.
func (s *Server) OnRequest(f func(op, result string, took time.Duration)) { s.observe = f }

// Refused returns the number of refused handshakes and requests.
func (s *Server) Refused() int64 { return s.refused.Load() }

// Certificate returns the certificate that the server shows to clients now.
func (s *Server) Certificate() (*x509.Certificate, error) {
	return web.Leaf(&s.identity.Load().Certificate)
}

// Reload reads the certificates again. If that fails, the server keeps the certificates that it had. A
// client that is no longer trusted is refused at its next request, even on an open connection.
func (s *Server) Reload() error {
	s.loading.Lock()
	defer s.loading.Unlock()
	identity, err := s.load()
	if err == nil && len(identity.Certificate.Certificate) == 0 {
		err = errors.New("the server has no certificate")
	}
	s.mu.Lock()
	s.loaded, s.loadError = time.Now(), ""
	if err != nil {
		s.loadError = err.Error()
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.identity.Store(identity)
	return nil
}

// TLS returns the TLS configuration of the server: version 1.3, and a handshake only with a client whose
// certificate is trusted at that moment.
func (s *Server) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &s.identity.Load().Certificate, nil
		},
		// VerifyConnection decides about the certificate. Unlike VerifyPeerCertificate, it is
		// called for resumed sessions too.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(c tls.ConnectionState) error {
			_, err := s.identity.Load().admits(c.PeerCertificates)
			if err != nil {
				s.refused.Add(1)
				if s.logLimit.Allow() {
					s.log.Warn("a client was refused", "err", err)
				}
			}
			return err
		},
	}
}

// Handler returns the handler of requests. It must be served with the configuration that TLS returns.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/wrap", s.serve(false, s.serveWrap))
	mux.Handle("POST /v1/unwrap", s.serve(false, s.serveUnwrap))
	mux.Handle("GET /v1/status", s.serve(true, s.serveStatus))
	return mux
}

// serve returns a handler that checks the peer, waits for a slot, calls f with a timeout, and writes the
// result of f. admins says whether administrators may make the request.
func (s *Server) serve(admins bool, f func(context.Context, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, result := time.Now(), "ok"
		defer func() {
			if s.observe != nil {
				s.observe(path.Base(r.URL.Path), result, time.Since(began))
			}
		}()
		fail := func(err error) {
			result = claviger.KindOf(err).String()
			s.refused.Add(1)
			status := writeError(w, err)
			s.log.Warn("a request has failed", "path", r.URL.Path, "from", r.RemoteAddr, "status", status, "err", err)
		}
		if err := s.authorize(r, admins); err != nil {
			w.Header().Set("Connection", "close")
			fail(claviger.E("keyhsm.Server", claviger.Denied, "", err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
		defer cancel()
		release, err := s.slot(ctx)
		if err != nil {
			fail(err)
			return
		}
		defer release()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		answer, err := f(ctx, r)
		if err != nil {
			fail(err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	})
}

// authorize checks the peer of a request. Each request is checked, because its certificate may have been
// removed from the trusted ones since the handshake.
func (s *Server) authorize(r *http.Request, admins bool) error {
	var peers []*x509.Certificate
	if r.TLS != nil {
		peers = r.TLS.PeerCertificates
	}
	admin, err := s.identity.Load().admits(peers)
	if err == nil && admin && !admins {
		err = errors.New("the server's own certificate may only request the status; use the certificate of a trustee")
	}
	return err
}

// slot waits for one of the maxInFlight slots. The caller must call release.
func (s *Server) slot(ctx context.Context) (release func(), err error) {
	timer := time.NewTimer(s.slotWait)
	defer timer.Stop()
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, claviger.Errorf("keyhsm.Server", claviger.Unavailable, "",
		"the server is already serving %d requests, which is its limit; try again", cap(s.slots))
}

func (s *Server) serveStatus(ctx context.Context, _ *http.Request) (any, error) {
	return s.status(ctx), nil
}

func (s *Server) serveWrap(ctx context.Context, r *http.Request) (any, error) {
	var q wrapRequest
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	wrapped, err := s.keeper.Wrap(ctx, q.UUID, q.Content)
	if err != nil {
		return nil, err
	}
	s.wrapped.Add(1)
	return wrapAnswer{wrapped}, nil
}

func (s *Server) serveUnwrap(ctx context.Context, r *http.Request) (any, error) {
	var q unwrapRequest
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	content, err := s.keeper.Unwrap(ctx, q.UUID, q.Wrapped)
	if err != nil {
		return nil, err
	}
	s.unwrapped.Add(1)
	return unwrapAnswer{content}, nil
}

// readJSON reads the body of a request, which must be one JSON value, into v.
func readJSON(r *http.Request, v any) error {
	const op = "keyhsm.Server"
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return claviger.Errorf(op, claviger.Invalid, "", "reading the request: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return claviger.Errorf(op, claviger.Invalid, "", "the request is not as docs/keyhsm.md says: %w", err)
	}
	return nil
}

// status returns the status of the server and of its keeper.
func (s *Server) status(ctx context.Context) Status {
	st := s.keeper.Status(ctx)
	identity := s.identity.Load()
	st.Trusted, st.Started = identity.Trust.Len(), s.started
	if cert, err := web.Leaf(&identity.Certificate); err == nil {
		st.CertificateUntil = cert.NotAfter
	}
	s.mu.Lock()
	st.Loaded, st.LoadError = s.loaded, s.loadError
	s.mu.Unlock()
	st.Wrapped, st.Unwrapped, st.Refused = s.wrapped.Load(), s.unwrapped.Load(), s.refused.Load()
	return st
}

// Status returns the state of the pair that wraps new deposits. It wraps and unwraps a test
// deposit with the token.
func (k *Keeper) Status(ctx context.Context) Status {
	info := k.token.Info()
	st := Status{State: Ready, KeyID: k.KeyID(), KeyLabel: k.label, Token: info.Label, Serial: info.Serial,
		Manufacturer: info.Manufacturer, Model: info.Model}
	p, err := k.check(ctx)
	if p != nil {
		st.KeyBits, st.OAEP = p.public.N.BitLen(), p.hash.String()
	}
	if err != nil {
		st.State, st.Detail = HSMUnavailable, err.Error()
		if errors.Is(err, ErrKeyGone) {
			st.State = KeyGone
		}
	}
	return st
}

// check wraps and unwraps a test deposit.
func (k *Keeper) check(ctx context.Context) (*pair, error) {
	const uuid = "claviger-status"
	p, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	want := []byte("claviger status")
	wrapped, err := k.Wrap(ctx, uuid, want)
	if err != nil {
		return p, err
	}
	got, err := k.Unwrap(ctx, uuid, wrapped)
	if err == nil && string(got) != string(want) {
		err = fmt.Errorf("the pair unwrapped %q to other bytes than it had wrapped", uuid)
	}
	return p, err
}
