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

	"claviger"
	"claviger/web"
)

// Limits are the limits of the requests to a Key HSM.
var Limits = web.Limits{HeadBytes: 16 << 10, Head: 10 * time.Second, Request: 30 * time.Second,
	Answer: time.Minute, Idle: 2 * time.Minute, Stop: 10 * time.Second}

// Limits of the work.
const (
	workLimit = 20 * time.Second // for the HSM
	// maxInFlight bounds the deposits in memory, each a few times: as JSON, base64,
	// ciphertext and plaintext.
	maxInFlight = 32
	// queueLimit is how long a request waits for its turn.
	queueLimit = 5 * time.Second
)

// Server offers a Keeper over HTTPS to those who are trusted.
type Server struct {
	keeper *Keeper
	load   func() (*Identity, error)
	log    *slog.Logger
	turns  chan struct{}
	queue  time.Duration // queueLimit, but in tests

	identity atomic.Pointer[Identity]
	loading  sync.Mutex
	started  time.Time

	mu        sync.Mutex
	loaded    time.Time
	loadError string

	wrapped, unwrapped, refused atomic.Int64

	observe func(op, result string, took time.Duration) // or nil
}

// NewServer makes a server. load reads its certificate and whom it trusts; it is
// called here and by Reload.
func NewServer(keeper *Keeper, load func() (*Identity, error), log *slog.Logger) (*Server, error) {
	s := &Server{keeper: keeper, load: load, log: log, turns: make(chan struct{}, maxInFlight), queue: queueLimit, started: time.Now()}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// OnRequest sets who is told of each request of a client that is trusted, and of one
// that no longer is: what was asked for ("wrap", "unwrap", "status"), "ok" or the kind
// of error that was answered, and its time. It must be called before Serve.
func (s *Server) OnRequest(f func(op, result string, took time.Duration)) { s.observe = f }

// Refused is how many handshakes and requests were refused.
func (s *Server) Refused() int64 { return s.refused.Load() }

// Certificate is the one that is shown to clients now.
func (s *Server) Certificate() (*x509.Certificate, error) {
	return leaf(&s.identity.Load().Certificate)
}

// Reload takes over certificates anew. Where they cannot be read, those in force
// stay. Who is no longer trusted is refused from his next request on, also on a
// connection that he has.
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

// TLS is the server's side of TLS: version 1.3, and no handshake without a
// certificate that is trusted at that moment.
func (s *Server) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &s.identity.Load().Certificate, nil
		},
		// Which certificates, VerifyConnection says: it is asked at resumptions too.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(c tls.ConnectionState) error {
			_, err := s.identity.Load().admits(c.PeerCertificates)
			if err != nil {
				s.refused.Add(1)
				s.log.Warn("a client was refused", "err", err)
			}
			return err
		},
	}
}

// Handler is the protocol. It must be served by TLS with the configuration of
// TLS.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/wrap", s.serve(false, s.serveWrap))
	mux.Handle("POST /v1/unwrap", s.serve(false, s.serveUnwrap))
	mux.Handle("GET /v1/status", s.serve(true, func(ctx context.Context, _ *http.Request) (any, error) { return s.status(ctx), nil }))
	return mux
}

// serve is what all requests have in common: who may, how many at once, how long.
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
			s.log.Warn("a request was not served", "path", r.URL.Path, "from", r.RemoteAddr, "status", status, "err", err)
		}
		if err := s.may(r, admins); err != nil {
			w.Header().Set("Connection", "close")
			fail(claviger.E("keyhsm.Server", claviger.Denied, "", err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), workLimit)
		defer cancel()
		leave, err := s.turn(ctx)
		if err != nil {
			fail(err)
			return
		}
		defer leave()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		answer, err := f(ctx, r)
		if err != nil {
			fail(err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	})
}

// may checks the peer for each request: he may have lost our trust since the
// handshake.
func (s *Server) may(r *http.Request, admins bool) error {
	var peers []*x509.Certificate
	if r.TLS != nil {
		peers = r.TLS.PeerCertificates
	}
	admin, err := s.identity.Load().admits(peers)
	if err == nil && admin && !admins {
		err = errors.New("the server's own certificate may ask for its status only; use that of a trustee")
	}
	return err
}

// turn waits until fewer than maxInFlight requests are under way.
func (s *Server) turn(ctx context.Context) (leave func(), err error) {
	timer := time.NewTimer(s.queue)
	defer timer.Stop()
	select {
	case s.turns <- struct{}{}:
		return func() { <-s.turns }, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, claviger.Errorf("keyhsm.Server", claviger.Unavailable, "", "%d requests are under way, which is as many as may be", cap(s.turns))
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

// readJSON reads a body that is one JSON value of that form.
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

// status asks the token; what it says is part of the answer.
func (s *Server) status(ctx context.Context) Status {
	st := s.keeper.Status(ctx)
	identity := s.identity.Load()
	st.Trusted, st.Started = identity.Trust.Len(), s.started
	if cert, err := leaf(&identity.Certificate); err == nil {
		st.CertificateUntil = cert.NotAfter
	}
	s.mu.Lock()
	st.Loaded, st.LoadError = s.loaded, s.loadError
	s.mu.Unlock()
	st.Wrapped, st.Unwrapped, st.Refused = s.wrapped.Load(), s.unwrapped.Load(), s.refused.Load()
	return st
}

func leaf(c *tls.Certificate) (*x509.Certificate, error) {
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("no certificate")
	}
	return x509.ParseCertificate(c.Certificate[0])
}

// Status says what state the pair is in: the token is asked for it, and has to
// open something by it.
func (k *Keeper) Status(ctx context.Context) Status {
	info := k.token.Info()
	st := Status{State: Ready, KeyID: k.KeyID(), KeyLabel: k.label, Token: info.Label, Serial: info.Serial, Manufacturer: info.Manufacturer, Model: info.Model}
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

// check is a round trip with the pair.
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
		err = fmt.Errorf("the pair opened %q to other bytes than were wrapped", uuid)
	}
	return p, err
}
