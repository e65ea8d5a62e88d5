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
	// maxRequests is how many requests of all clients are served at once. Further requests get 503.
	maxRequests = 64
	// maxBodies is how many bodies are read at once, 256 MiB at most. bodyTime is the timeout for
	// the reading of one body. Reading a body takes no request slot, so a slow or unauthenticated
	// sender cannot block clients.
	maxBodies = 128
	bodyTime  = 10 * time.Second
	// maxRegistrations is how many registrations are served at once. The refusal of a registration
	// costs more than that of another request, because each registration contains a public key.
	maxRegistrations = 4
	// maxPeerRequests is how many requests of the other server and of operators are served at once.
	maxPeerRequests = 8
	// pageBytes is the size limit of a page of a list. Encoded in base64 twice, a page is smaller
	// than trustee.MaxBody.
	pageBytes = 768 << 10
	// maxUUIDs is how many uuids one delete, undelete or purge may name.
	maxUUIDs = 1000
	// guessBurst is how many registrations of an address may fail in a row. After that, one more
	// registration is served each guessEvery, so that nobody can guess a weak secret.
	guessBurst = 20
	guessEvery = time.Second
	// sweepStoreEvery is how often expired records are removed.
	sweepStoreEvery = 10 * time.Minute
)

// Config is the configuration of a Server.
type Config struct {
	Identity *trustee.Identity
	Store    Store
	// Keeper, if not nil, wraps each new deposit. Deposits that were stored without a Keeper stay
	// readable.
	Keeper Keeper
	// Replica is nil for a server that is not one of two.
	Replica Replica
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
	// Observe, if not nil, is called for each request with its verb, "ok" or the kind of error in
	// the answer, and the time that it took.
	Observe func(verb, result string, took time.Duration)
}

// Server answers requests. It is an http.Handler.
type Server struct {
	id                *trustee.Identity
	store             Store
	keeper            Keeper
	replica           Replica // or nil
	log               *slog.Logger
	now               func() time.Time
	observe           func(verb, result string, took time.Duration) // or nil
	writeProbe        WriteProbe
	slots             *shares.Shares // request slots, shared fairly between clients
	bodies            *bodies        // the bodies that are being read
	peerSlots         chan struct{}  // only for requests of the other server and of operators
	registrationSlots chan struct{}  // only for registrations
	// guesses limits the failed registrations of an address.
	guesses *guesses
	// logLimit limits the log lines about requests of unknown senders.
	logLimit *rate.Limiter

	registering sync.Mutex // held by a registration with RegisterArgs.Alone

	mu    sync.Mutex
	seen  seenReads
	swept time.Time
	full  time.Time // when a client without a slot was last refused
}

// New makes a server. The caller closes the store.
func New(cfg Config) *Server {
	s := &Server{id: cfg.Identity, store: cfg.Store, keeper: cfg.Keeper, replica: cfg.Replica, log: cfg.Log,
		now: cfg.Now, observe: cfg.Observe, slots: shares.New(maxRequests, true),
		peerSlots: make(chan struct{}, maxPeerRequests), registrationSlots: make(chan struct{}, maxRegistrations),
		guesses: newGuesses(), logLimit: rate.NewLimiter(rate.Every(refusedEvery), refusedLines)}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.bodies = newBodies(s.log, s.now)
	return s
}

// verbs are the functions that handle the requests of clients. Each returns the result.
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

// known reports whether verb is a verb of the protocol.
func known(verb string) bool { return verbs[verb] != nil || trustee.ForPeer(verb) }

// reads are the verbs that change no deposits. The server refuses their replays by a table in memory.
// The verbs between two servers may be repeated.
var reads = map[string]bool{trustee.VerbGet: true, trustee.VerbFind: true, trustee.VerbList: true,
	trustee.VerbClients: true, trustee.VerbStatus: true, trustee.VerbPromote: true, trustee.VerbAlone: true,
	trustee.VerbResync: true}

// ServeHTTP answers GET /?a=fingerprint, GET /?a=publickey and the verbs.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch verb, isVerb := strings.CutPrefix(r.URL.Path, trustee.APIPath); {
	case r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		s.serveIdentity(w, r)
	case r.URL.Path == "/":
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "GET /?a=fingerprint or /?a=publickey", http.StatusMethodNotAllowed)
	case isVerb && known(verb) && r.Method == http.MethodPost:
		s.serveObserved(w, r, verb)
	case isVerb && known(verb):
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST a signed request", http.StatusMethodNotAllowed)
	default:
		http.NotFound(w, r)
	}
}

// serveIdentity answers with the server's identity, "4096R/<40 hex digits>", or with its public key.
func (s *Server) serveIdentity(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Query().Get("a") {
	case "fingerprint":
		_, _ = fmt.Fprintln(w, s.id) // the client may be gone; net/http sets the Content-Type
	case "publickey":
		w.Header().Set("Content-Type", "application/pgp-keys")
		_ = s.id.Public(w) // an error means that the client has disconnected
	default:
		http.Error(w, "request /?a=fingerprint or /?a=publickey", http.StatusBadRequest)
	}
}

// acquire takes a request slot for a client. One client never has more slots than are free for all
// others. If there is no slot for the client, acquire answers 503.
func (s *Server) acquire(w http.ResponseWriter, client string) (leave func(), ok bool) {
	granted, own := s.slots.Try(client, 1)
	switch {
	case granted > 0:
		return func() { s.slots.Release(client, granted) }, true
	case own:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the server is already serving as many requests of this client as it accepts",
			http.StatusServiceUnavailable)
	default:
		s.recordFull()
		tooMany(w)
	}
	return nil, false
}

func (s *Server) recordFull() {
	s.mu.Lock()
	s.full = s.now()
	s.mu.Unlock()
}

// acquireSlot takes a slot of a channel of slots. If no slot is free, it answers 503.
func (s *Server) acquireSlot(w http.ResponseWriter, slots chan struct{}) (leave func(), ok bool) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, true
	default:
		if slots != s.registrationSlots {
			s.recordFull()
		}
		tooMany(w)
		return nil, false
	}
}

// fullFor is how long CheckSlots returns an error after a refusal.
const fullFor = time.Minute

// CheckSlots returns an error if, within the last minute, the server refused a client without a slot
// because all slots were taken. Registrations do not count.
func (s *Server) CheckSlots(context.Context) error {
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full.IsZero() || s.now().Sub(full) >= fullFor {
		return nil
	}
	used, largest := s.slots.Figures()
	return fmt.Errorf("requests of clients were refused at %s: %d were being served; now %d are, %d of them of one "+
		"client", full.UTC().Format(time.RFC3339), maxRequests, used, largest)
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Connection", "close") // otherwise net/http reads the body before it answers
	http.Error(w, "the server is already serving as many requests as it accepts", http.StatusServiceUnavailable)
}

// readBody reads the body of a request; if it cannot, it answers. The body holds a slot until leave is
// called. leave may be called twice.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) (body []byte, leave func(), ok bool) {
	leaveBody, ok := s.bodies.enter(addressOf(r))
	if !ok {
		tooMany(w)
		return nil, nil, false
	}
	leaveBody = sync.OnceFunc(leaveBody)
	defer func() {
		if leave == nil {
			leaveBody()
		}
	}()
	// If the connection supports no deadline, that of the web server applies.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTime))
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
	_ = control.SetReadDeadline(time.Time{}) // otherwise it would end the request later
	return body, leaveBody, true
}

// storeAway is the answer to a sender that could not be identified. Such an answer is not signed.
const storeAway = "the server's store does not answer"

// serve answers one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, verb string) {
	body, leaveBody, ok := s.readBody(w, r)
	if !ok {
		return
	}
	// The body keeps its slot, one of its address, until the sender is known. An unknown
	// sender takes no slot of clients or of the other server.
	defer leaveBody()
	if verb == trustee.VerbRegister {
		leaveBody()
		leave, ok := s.acquireSlot(w, s.registrationSlots)
		if !ok {
			return
		}
		defer leave()
	}
	ctx := context.WithValue(r.Context(), addressKey{}, addressOf(r))
	known, ok := s.current(ctx, w, r, verb)
	if !ok {
		return
	}
	req, ok := s.authenticate(ctx, w, r, verb, body, known.Sure)
	if !ok {
		return
	}
	if verb != trustee.VerbRegister {
		leaveBody()
		leave, ok := s.slotFor(w, req)
		if !ok {
			return
		}
		defer leave()
		s.bodies.prove(addressOf(r)) // not after a registration, which anybody can sign with a new key
	}
	result, err := s.do(ctx, req)
	if !known.Sure && claviger.Is(err, claviger.KeyNotFound) || !known.Lists && err == nil && verb == trustee.VerbList {
		result, err = nil, claviger.E("server.serve", claviger.Unavailable, "", trustee.ErrUnsure)
	}
	recordResult(w, err)
	s.answer(w, r, req, result, err)
}

// current calls Replica.Current for the request of a client; if that fails, it answers. serve calls it
// first, because a missing client is unknown only if the store is sure.
func (s *Server) current(ctx context.Context, w http.ResponseWriter, r *http.Request, verb string) (Knowledge, bool) {
	if s.replica == nil || trustee.ForPeer(verb) {
		return Knowledge{Sure: true, Lists: true}, true
	}
	known, err := s.replica.Current(ctx)
	if err == nil {
		return known, true
	}
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
	return known, false
}

// authenticate reads a request and checks its signature; if that fails, it answers. The answer is not
// signed, because the sender is unknown.
func (s *Server) authenticate(ctx context.Context, w http.ResponseWriter, r *http.Request, verb string, body []byte,
	sure bool) (*trustee.Request, bool) {
	req, err := s.id.ReadRequest(verb, body, s.now(), func(fingerprint string) (*trustee.Party, error) {
		if trustee.ForPeer(verb) {
			return s.self(fingerprint)
		}
		return s.client(ctx, fingerprint, sure)
	})
	if err == nil {
		return req, true
	}
	if s.logLimit.AllowN(s.now(), 1) {
		s.log.Warn("a request was refused", "verb", verb, "from", r.RemoteAddr, "err", err)
	}
	text, status := err.Error(), http.StatusBadRequest
	switch {
	case claviger.Is(err, claviger.Denied):
		status = http.StatusForbidden
	case errors.Is(err, trustee.ErrUnsure): // of kind Unavailable, from client
		text, status = trustee.ErrUnsure.Error(), http.StatusServiceUnavailable
	case claviger.Is(err, claviger.Unavailable):
		text, status = storeAway, http.StatusServiceUnavailable
	}
	http.Error(w, text, status)
	return nil, false
}

// slotFor takes a slot for a request of a known sender.
func (s *Server) slotFor(w http.ResponseWriter, req *trustee.Request) (leave func(), ok bool) {
	if trustee.ForPeer(req.Verb) {
		return s.acquireSlot(w, s.peerSlots)
	}
	return s.acquire(w, req.Client.Fingerprint())
}

// answer logs the result of a request, and sends the signed answer.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, req *trustee.Request, result any, err error) {
	log := s.log.With("verb", req.Verb, "client", req.Client.Fingerprint(), "from", r.RemoteAddr, "request",
		req.Digest[:16])
	answer, err := s.id.NewAnswer(req.Digest, result, shown(log, req.Verb, err), s.now())
	if err != nil {
		log.Error("an answer cannot be signed", "err", err)
		http.Error(w, "the server has failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) //nolint:gosec // JSON that we signed; the client may be gone
}

// shown logs the error of a request, and returns the error that the sender may see.
func shown(log *slog.Logger, verb string, err error) error {
	const op = "server.serve"
	switch {
	case err == nil:
		log.Debug("done")
	case errors.Is(err, trustee.ErrPassive):
		log.Debug("a client sent a change to the passive server")
	case errors.Is(err, ErrAway):
		log.Error("a change was refused", "err", err)
		return claviger.E(op, claviger.Unavailable, "", ErrAway)
	case errors.Is(err, trustee.ErrUnsure):
		log.Warn("a request was not answered", "err", err)
		return claviger.E(op, claviger.Unavailable, "", trustee.ErrUnsure)
	case claviger.Is(err, claviger.Internal), claviger.Is(err, claviger.Unavailable):
		log.Error("a request has failed", "err", err)
		if !trustee.ForPeer(verb) && claviger.Is(err, claviger.Unavailable) {
			return claviger.Errorf(op, claviger.Unavailable, "", "the server cannot do this now: its store accepts no "+
				"changes (is its disk full?), or its Key HSM does not answer; the log of the server says which")
		}
	default:
		log.Info("a request was refused", "err", err)
	}
	return err
}

const notOneOfTwo = "this Key Trustee Server is not one of two"

// IsSingle reports whether the error in an answer says that the server is not one of two. Then there is
// nothing to compare, and no role to change.
func IsSingle(err error) bool {
	return claviger.Is(err, claviger.Invalid) && strings.Contains(err.Error(), notOneOfTwo)
}

func (s *Server) do(ctx context.Context, req *trustee.Request) (any, error) {
	if reads[req.Verb] {
		if err := s.refuseReplay(req); err != nil {
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
	s.sweep(ctx)
	return verbs[req.Verb](s, ctx, req)
}

// self accepts only this server's own identity, which signs the requests of the other server, and those
// of an operator on either host.
func (s *Server) self(fingerprint string) (*trustee.Party, error) {
	if fingerprint != s.id.Fingerprint() {
		return nil, claviger.Errorf("server.self", claviger.Denied, "", "only the identity of the Key Trustee "+
			"Servers, %s, may send this", s.id)
	}
	return &s.id.Party, nil
}

// client returns the public key of an active client. If sure is false, a client that is not found
// may be registered at the other server.
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
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s waits for an operator: claviger orgtool "+
			"enable-client --fingerprint %s", fingerprint, fingerprint)
	case c.State != Active:
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s is disabled: claviger orgtool "+
			"enable-client --fingerprint %s enables it again", fingerprint, fingerprint)
	}
	p, err := trustee.ReadParty(c.PublicKey)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "the key of client %s in the store: %w", fingerprint,
			err)
	}
	return p, nil
}

// refuseReplay refuses a read that was sent before.
func (s *Server) refuseReplay(req *trustee.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.add(req.Digest, req.Client.Fingerprint(), req.Time.Add(2*trustee.MaxSkew), s.now())
}

// sweep removes expired records, every few minutes.
func (s *Server) sweep(ctx context.Context) {
	now := s.now()
	s.mu.Lock()
	due := now.Sub(s.swept) >= sweepStoreEvery
	if due {
		s.swept = now
		s.seen.sweep(now)
	}
	s.mu.Unlock()
	if due {
		if err := s.store.Forget(ctx, now); err != nil && !errors.Is(err, trustee.ErrPassive) {
			s.log.Warn("expired records could not be removed", "err", err)
		}
	}
}

func once(req *trustee.Request) Once {
	return Once{Digest: req.Digest, Until: req.Time.Add(2 * trustee.MaxSkew)}
}

// register registers a client that knows the secret of its organization. If the organization has no
// secret, the client waits for an operator. The answer does not say whether the organization or the
// secret was wrong.
func (s *Server) register(ctx context.Context, req *trustee.Request) (any, error) {
	const op = "server.register"
	var a trustee.RegisterArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	address, _ := ctx.Value(addressKey{}).(string)
	if s.guesses.tooMany(address, s.now()) {
		return nil, claviger.Errorf(op, claviger.Denied, "", "too many registrations have failed lately from this "+
			"address, which looks like guessing: try again in a minute; the server's log names the senders")
	}
	org, err := s.store.Org(ctx, a.Org)
	known := err == nil
	if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
		return nil, err
	}
	given, want := sha256.Sum256([]byte(a.Auth)), sha256.Sum256([]byte(org.Auth))
	same := subtle.ConstantTimeCompare(given[:], want[:]) == 1
	if !known || org.Auth != "" && !same {
		s.guesses.record(address, s.now())
		return nil, claviger.Errorf(op, claviger.Denied, "", "the organization or its secret is wrong: see claviger "+
			"orgtool list at the server")
	}
	state := Active
	if org.Auth == "" {
		state = Pending
	}
	if a.Alone {
		// If two clients register at the same time, one must be refused.
		s.registering.Lock()
		defer s.registering.Unlock()
		if err := s.checkOnlyClient(ctx, org.Name, req.Client.Fingerprint()); err != nil {
			return nil, err
		}
	}
	c, err := s.store.AddClient(ctx, Client{Fingerprint: req.Client.Fingerprint(), Org: org.Name,
		PublicKey: a.PublicKey, State: state, Created: s.now()}, once(req))
	if err != nil {
		return nil, err
	}
	if c.State == Disabled {
		return nil, claviger.Errorf(op, claviger.Denied, "", "the client %s is disabled", c.Fingerprint)
	}
	s.log.Info("a client has registered", "client", c.Fingerprint, "organization", c.Org, "state", c.State)
	return trustee.RegisterResult{Active: c.State == Active}, nil
}

// checkOnlyClient refuses a client that wants to be the only one of its organization, if another client that
// is not disabled was registered before.
func (s *Server) checkOnlyClient(ctx context.Context, org, fingerprint string) error {
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
			return claviger.Errorf("server.register", claviger.KeyExists, "",
				"organization %q already has the client %s, registered at %s", org, c.Fingerprint,
				c.Created.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

func sortByAge(list []Client) {
	slices.SortFunc(list, func(a, b Client) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
}

// clients returns the clients of the sender's organization.
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
		r.Clients = append(r.Clients, trustee.ListedClient{Fingerprint: c.Fingerprint, Created: c.Created,
			Disabled: c.State == Disabled})
	}
	return r, nil
}
