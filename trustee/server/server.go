package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"claviger"
	"claviger/shares"
	"claviger/trustee"
)

const (
	// concurrent is how many requests of all clients are worked on at once; more get
	// 503.
	concurrent = 64
	// arriving is how many bodies are read at once, which is 256 MiB at most, and
	// arrival how long one may take. They are no turns: who sends slowly, and may be
	// nobody, keeps no client from being served.
	arriving = 128
	arrival  = 10 * time.Second
	// newcomers is how many registrations are worked on at once. What is needed to refuse
	// one costs more than for other requests, since each brings a key of its own.
	newcomers = 4
	// peering is how many requests of the other server, and of operators, are worked
	// on at once.
	peering = 8
	// pageBytes ends a page early: in base64 twice it is well within trustee.MaxBody.
	pageBytes = 768 << 10
	// maxUUIDs of one delete, undelete or purge.
	maxUUIDs = 1000
	// failures of registrations in a row, and how long until one more may be tried:
	// a secret that a person has thought of must not be guessed.
	failures     = 20
	failureEvery = time.Second
	// forgetEvery is how often what is past is dropped.
	forgetEvery = 10 * time.Minute
)

// Config is what a Server is made of.
type Config struct {
	Identity *trustee.Identity
	Store    Store
	// Keeper, if not nil, wraps each new deposit. What was stored without one stays
	// readable.
	Keeper Keeper
	// Replica is nil for a server that is not one of two.
	Replica Replica
	Log     *slog.Logger
	Now     func() time.Time // time.Now where nil
	// Observe, if not nil, is told of each request: its verb, "ok" or the kind of error
	// that was answered, and its time.
	Observe func(verb, result string, took time.Duration)
}

// Server answers requests. It is an http.Handler.
type Server struct {
	id      *trustee.Identity
	store   Store
	keeper  Keeper
	replica Replica // or nil
	log     *slog.Logger
	now     func() time.Time
	observe func(verb, result string, took time.Duration) // or nil
	faults  WriteProbe
	turns   *shares.Shares // by client: none takes what others need
	doors   *doors         // of bodies that arrive
	peers   chan struct{}  // turns of the other server and of operators, whom no client keeps out
	joining chan struct{}  // turns of registrations, which keep no registered client out
	// wrong lets registrations of an address through as long as few of it have failed.
	wrong *failed
	// lines are of requests that were refused before it was known whose they are.
	lines *rate.Limiter

	registering sync.Mutex // of those who are to be alone

	mu     sync.Mutex
	seen   seenReads
	forgot time.Time
	full   time.Time // when a request was last refused though its client had no turn
}

// New makes a server. The store remains the caller's to close.
func New(cfg Config) *Server {
	s := &Server{id: cfg.Identity, store: cfg.Store, keeper: cfg.Keeper, replica: cfg.Replica, log: cfg.Log, now: cfg.Now, observe: cfg.Observe, turns: shares.New(concurrent, true), peers: make(chan struct{}, peering), joining: make(chan struct{}, newcomers), wrong: newFailed(), lines: rate.NewLimiter(rate.Every(refusedEvery), refusedLines)}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.doors = newDoors(s.log, s.now)
	return s
}

// verbs are what the server does. Each returns the result.
var verbs = map[string]func(*Server, context.Context, *trustee.Request) (any, error){
	trustee.VerbRegister: (*Server).register,
	trustee.VerbPut:      (*Server).put,
	trustee.VerbGet:      (*Server).get,
	trustee.VerbFind:     (*Server).find,
	trustee.VerbList:     (*Server).list,
	trustee.VerbDelete:   (*Server).delete,
	trustee.VerbUndelete: (*Server).undelete,
	trustee.VerbPurge:    (*Server).purge,
	trustee.VerbClients:  (*Server).clients,
}

// known tells whether there is such a verb.
func known(verb string) bool { return verbs[verb] != nil || trustee.ForPeer(verb) }

// reads are the verbs that change nothing of the deposits: their replays are kept
// off in memory. Those between two servers do no harm when they come twice.
var reads = map[string]bool{trustee.VerbGet: true, trustee.VerbFind: true, trustee.VerbList: true, trustee.VerbClients: true, trustee.VerbStatus: true, trustee.VerbPromote: true, trustee.VerbAlone: true, trustee.VerbResync: true}

// ServeHTTP answers GET /?a=fingerprint, GET /?a=publickey and the verbs.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch verb, isVerb := strings.CutPrefix(r.URL.Path, trustee.APIPath); {
	case r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		s.about(w, r)
	case r.URL.Path == "/":
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "GET /?a=fingerprint or /?a=publickey", http.StatusMethodNotAllowed)
	case isVerb && known(verb) && r.Method == http.MethodPost:
		s.observed(w, r, verb)
	case isVerb && known(verb):
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST a signed request", http.StatusMethodNotAllowed)
	default:
		http.NotFound(w, r)
	}
}

// about tells who the server is: "4096R/<40 hex digits>", or the public key.
func (s *Server) about(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Query().Get("a") {
	case "fingerprint":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, s.id) // the client may be gone
	case "publickey":
		w.Header().Set("Content-Type", "application/pgp-keys")
		_ = s.id.Public(w) // likewise
	default:
		http.Error(w, "ask /?a=fingerprint or /?a=publickey", http.StatusBadRequest)
	}
}

// turn takes a turn for a client. One client never has more turns than are left for all
// others. Where there is none for it, turn answers 503.
func (s *Server) turn(w http.ResponseWriter, client string) (leave func(), ok bool) {
	granted, own := s.turns.Try(client, 1)
	switch {
	case granted > 0:
		return func() { s.turns.Release(client, granted) }, true
	case own:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "as many requests of this client as the server takes are being served", http.StatusServiceUnavailable)
	default:
		s.noteFull()
		tooMany(w)
	}
	return nil, false
}

func (s *Server) noteFull() {
	s.mu.Lock()
	s.full = s.now()
	s.mu.Unlock()
}

// enter takes a place in a channel of places; where there is none it answers 503.
func (s *Server) enter(w http.ResponseWriter, places chan struct{}) (leave func(), ok bool) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, true
	default:
		if places != s.joining {
			s.noteFull()
		}
		tooMany(w)
		return nil, false
	}
}

// fullFor is how long after a refusal CheckTurns is an error.
const fullFor = time.Minute

// CheckTurns is an error where a request of a client who had no turn was refused within
// the last minute, since as many as the server takes were being worked on. Registrations
// do not count.
func (s *Server) CheckTurns(context.Context) error {
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full.IsZero() || s.now().Sub(full) >= fullFor {
		return nil
	}
	used, most := s.turns.Figures()
	return fmt.Errorf("requests of clients were refused at %s: %d were being worked on, and %d are now, %d of one client", full.UTC().Format(time.RFC3339), concurrent, used, most)
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Connection", "close") // else net/http waits for the body before it answers
	http.Error(w, "as many requests as the server takes are being served", http.StatusServiceUnavailable)
}

// arrived reads a request's body; where it cannot it answers.
// The place that the body took is kept until leave is called, which may be done again.
func (s *Server) arrived(w http.ResponseWriter, r *http.Request) (body []byte, leave func(), ok bool) {
	door, ok := s.doors.enter(addressOf(r))
	if !ok {
		tooMany(w)
		return nil, nil, false
	}
	door = sync.OnceFunc(door)
	defer func() {
		if leave == nil {
			door()
		}
	}()
	// Where the connection has no deadline, the web server's own counts.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(arrival))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, trustee.MaxBody))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		http.Error(w, fmt.Sprintf("a request has at most %d bytes", trustee.MaxBody), http.StatusRequestEntityTooLarge)
		return nil, nil, false
	case err != nil:
		http.Error(w, "the request did not arrive whole", http.StatusBadRequest)
		return nil, nil, false
	}
	_ = control.SetReadDeadline(time.Time{}) // else it would end the work on the request
	return body, door, true
}

// storeAway is what is answered before it is known whom to sign an answer for.
const storeAway = "the server's store does not answer"

func (s *Server) serve(w http.ResponseWriter, r *http.Request, verb string) {
	body, arrived, ok := s.arrived(w, r)
	if !ok {
		return
	}
	// The place among the bodies, which are shared out by address, is kept until it is
	// known whose the request is: strangers take no turns of clients and of the other
	// server.
	defer arrived()
	if verb == trustee.VerbRegister {
		arrived()
		leave, ok := s.enter(w, s.joining)
		if !ok {
			return
		}
		defer leave()
	}
	ctx := context.WithValue(r.Context(), addressKey{}, addressOf(r))
	know := Knowledge{Sure: true, Lists: true}
	if s.replica != nil && !trustee.ForPeer(verb) {
		// Before anything is looked up: whether the client is known, too.
		var err error
		if know, err = s.replica.Current(ctx); err != nil {
			text := storeAway
			switch {
			case errors.Is(err, ErrBehind):
				text = ErrBehind.Error()
			case errors.Is(err, ErrLacking):
				text = ErrLacking.Error()
			default:
				s.log.Warn("a request was refused", "verb", verb, "from", r.RemoteAddr, "err", err)
			}
			w.Header().Set("Retry-After", "1")
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
	}
	req, err := s.id.ReadRequest(verb, body, s.now(), func(fingerprint string) (*trustee.Party, error) {
		if trustee.ForPeer(verb) {
			return s.self(fingerprint)
		}
		return s.client(ctx, fingerprint, know.Sure)
	})
	if err != nil {
		// Whom to sign an answer for is not known.
		if s.lines.AllowN(s.now(), 1) {
			s.log.Warn("a request was refused", "verb", verb, "from", r.RemoteAddr, "err", err)
		}
		status := http.StatusBadRequest
		switch {
		case claviger.Is(err, claviger.Denied):
			status = http.StatusForbidden
		case claviger.Is(err, claviger.Unavailable):
			text := storeAway
			if errors.Is(err, trustee.ErrUnsure) {
				text = trustee.ErrUnsure.Error()
			}
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		http.Error(w, err.Error(), status)
		return
	}
	if verb != trustee.VerbRegister {
		arrived()
		var leave func()
		if trustee.ForPeer(verb) {
			leave, ok = s.enter(w, s.peers)
		} else {
			leave, ok = s.turn(w, req.Client.Fingerprint())
		}
		if !ok {
			return
		}
		defer leave()
	}
	s.doors.prove(addressOf(r))
	result, err := s.do(ctx, req)
	if !know.Sure && claviger.Is(err, claviger.KeyNotFound) || !know.Lists && err == nil && verb == trustee.VerbList {
		result, err = nil, claviger.E("server.serve", claviger.Unavailable, "", trustee.ErrUnsure)
	}
	ended(w, err)
	log := s.log.With("verb", verb, "client", req.Client.Fingerprint(), "from", r.RemoteAddr, "request", req.Digest[:16])
	switch {
	case err == nil:
		log.Debug("done")
	case errors.Is(err, trustee.ErrPassive):
		log.Debug("a change was asked of the passive")
	case errors.Is(err, ErrAway):
		log.Error("a change was not made", "err", err)
		err = claviger.E("server.serve", claviger.Unavailable, "", ErrAway)
	case errors.Is(err, trustee.ErrUnsure):
		log.Warn("a request was not answered", "err", err)
		err = claviger.E("server.serve", claviger.Unavailable, "", trustee.ErrUnsure)
	case claviger.Is(err, claviger.Internal), claviger.Is(err, claviger.Unavailable):
		log.Error("a request has failed", "err", err)
		if !trustee.ForPeer(verb) && claviger.Is(err, claviger.Unavailable) {
			err = claviger.Errorf("server.serve", claviger.Unavailable, "", "the server cannot do this now, since its store takes no changes (is its disk full?) or its Key HSM is away; its log says which")
		}
	default:
		log.Info("a request was refused", "err", err)
	}
	answer, err := s.id.NewAnswer(req.Digest, result, err, s.now())
	if err != nil {
		log.Error("an answer cannot be signed", "err", err)
		http.Error(w, "the server has failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) //nolint:gosec // JSON that we signed; the client may be gone
}

const notOneOfTwo = "this Key Trustee Server is not one of two"

// IsSingle tells whether an answer says that the server has no other: then there is
// nothing to compare, and no role to change.
func IsSingle(err error) bool {
	return claviger.Is(err, claviger.Invalid) && strings.Contains(err.Error(), notOneOfTwo)
}

func (s *Server) do(ctx context.Context, req *trustee.Request) (any, error) {
	if reads[req.Verb] {
		if err := s.first(req); err != nil {
			return nil, err
		}
	}
	if trustee.ForPeer(req.Verb) {
		if s.replica == nil {
			return nil, s.single(ctx, req.Verb)
		}
		return s.replica.Do(ctx, req)
	}
	if s.replica != nil && !reads[req.Verb] {
		if err := s.replica.Ready(ctx); err != nil {
			return nil, err
		}
	}
	s.forget(ctx)
	return verbs[req.Verb](s, ctx, req)
}

// self lets in who has this server's own identity: the other server, and an
// operator on either's host.
func (s *Server) self(fingerprint string) (*trustee.Party, error) {
	if fingerprint != s.id.Fingerprint() {
		return nil, claviger.Errorf("server.self", claviger.Denied, "", "this is for the Key Trustee Servers' own identity, %s, alone", s.id)
	}
	return &s.id.Party, nil
}

// client returns the public key of a client that may come in.
// sure: one that is not found is not there.
func (s *Server) client(ctx context.Context, fingerprint string, sure bool) (*trustee.Party, error) {
	const op = "server.client"
	c, err := s.store.Client(ctx, fingerprint)
	switch {
	case claviger.Is(err, claviger.KeyNotFound) && !sure:
		return nil, claviger.E(op, claviger.Unavailable, "", trustee.ErrUnsure)
	case claviger.Is(err, claviger.KeyNotFound):
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s is not registered here", fingerprint)
	case err != nil:
		return nil, err
	case c.State == Pending:
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s waits for an operator: claviger orgtool enable-client --fingerprint %s", fingerprint, fingerprint)
	case c.State != Active:
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s is disabled: claviger orgtool enable-client --fingerprint %s lets it in again", fingerprint, fingerprint)
	}
	p, err := trustee.ReadParty(c.PublicKey)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "the key of client %s in the store: %w", fingerprint, err)
	}
	return p, nil
}

// first refuses a read that came before.
func (s *Server) first(req *trustee.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.first(req.Digest, req.Client.Fingerprint(), req.Time.Add(2*trustee.MaxSkew), s.now())
}

// forget drops what is past, now and then.
func (s *Server) forget(ctx context.Context) {
	now := s.now()
	s.mu.Lock()
	due := now.Sub(s.forgot) >= forgetEvery
	if due {
		s.forgot = now
		s.seen.sweep(now)
	}
	s.mu.Unlock()
	if due {
		if err := s.store.Forget(ctx, now); err != nil && !errors.Is(err, trustee.ErrPassive) {
			s.log.Warn("what has expired could not be dropped", "err", err)
		}
	}
}

func once(req *trustee.Request) Once {
	return Once{Digest: req.Digest, Until: req.Time.Add(2 * trustee.MaxSkew)}
}

// register lets a client in by its organization's secret, or has it wait for an
// operator where there is none. Which of the two was wrong is not said.
func (s *Server) register(ctx context.Context, req *trustee.Request) (any, error) {
	const op = "server.register"
	var a trustee.RegisterArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	address, _ := ctx.Value(addressKey{}).(string)
	if s.wrong.many(address, s.now()) {
		return nil, claviger.Errorf(op, claviger.Denied, "", "too many registrations have failed lately from this address, which looks like guessing: try again in a minute; the server's log says from where they came")
	}
	org, err := s.store.Org(ctx, a.Org)
	known := err == nil
	if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
		return nil, err
	}
	given, want := sha256.Sum256([]byte(a.Auth)), sha256.Sum256([]byte(org.Auth))
	same := subtle.ConstantTimeCompare(given[:], want[:]) == 1
	if !known || org.Auth != "" && !same {
		s.wrong.note(address, s.now())
		return nil, claviger.Errorf(op, claviger.Denied, "", "the organization or its secret is wrong: see claviger orgtool list at the server")
	}
	state := Active
	if org.Auth == "" {
		state = Pending
	}
	if a.Alone {
		// Two that come at one moment must not both be the only one.
		s.registering.Lock()
		defer s.registering.Unlock()
		if err := s.alone(ctx, org.Name, req.Client.Fingerprint()); err != nil {
			return nil, err
		}
	}
	c, err := s.store.AddClient(ctx, Client{Fingerprint: req.Client.Fingerprint(), Org: org.Name, PublicKey: a.PublicKey, State: state, Created: s.now()}, once(req))
	if err != nil {
		return nil, err
	}
	if c.State == Disabled {
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s is disabled", c.Fingerprint)
	}
	s.log.Info("a client has registered", "client", c.Fingerprint, "organization", c.Org, "state", c.State)
	return trustee.RegisterResult{Active: c.State == Active}, nil
}

// alone refuses a client that is not to have others beside it where one that is not
// disabled was there before.
func (s *Server) alone(ctx context.Context, org, fingerprint string) error {
	list, err := s.store.Clients(ctx, org)
	if err != nil {
		return err
	}
	sortByAge(list)
	for _, c := range list {
		switch {
		case c.Fingerprint == fingerprint:
			return nil
		case c.State != Disabled:
			return claviger.Errorf("server.register", claviger.KeyExists, "", "organization %q has the client %s already, registered at %s", org, c.Fingerprint, c.Created.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

func sortByAge(list []Client) {
	slices.SortFunc(list, func(a, b Client) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
}

// clients tells a client who else is of its organization.
func (s *Server) clients(ctx context.Context, req *trustee.Request) (any, error) {
	me, err := s.store.Client(ctx, req.Client.Fingerprint())
	if err != nil {
		return nil, err
	}
	list, err := s.store.Clients(ctx, me.Org)
	if err != nil {
		return nil, err
	}
	sortByAge(list)
	r := trustee.ClientsResult{Org: me.Org}
	for _, c := range list[:min(len(list), trustee.MaxPage)] {
		r.Clients = append(r.Clients, trustee.ListedClient{Fingerprint: c.Fingerprint, Created: c.Created, Disabled: c.State == Disabled})
	}
	return r, nil
}
