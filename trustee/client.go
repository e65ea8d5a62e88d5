package trustee

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"claviger"
)

// Endpoint is a Key Trustee Server.
type Endpoint struct {
	// URL is https://HOST:PORT.
	URL string
	// Server is the identity that must sign the answers; nil before Introduce.
	Server *Party
}

// ClientConfig is the configuration of a Client.
type ClientConfig struct {
	Identity *Identity
	// Servers are the servers, which have the same identity. The first is the active server. Only
	// the active server accepts changes. Another server may be promoted, and is then the active one.
	Servers []Endpoint
	// TLS checks the certificates of the servers. It is not the TLS configuration of the KMS itself.
	TLS *tls.Config
	// RoundRobin spreads reads over all servers. Otherwise reads go to the active server first.
	RoundRobin bool
	// MaxConns bounds the connections to each server; 0 is 5.
	MaxConns int
	// Timeout bounds one request to one server; 0 is 10 s.
	Timeout time.Duration
	Log     *slog.Logger
	Now     func() time.Time
}

// Client is the Box of one identity, at one server or two.
type Client struct {
	cfg   ClientConfig
	http  *http.Client
	reads atomic.Uint64 // number of reads, for RoundRobin
	// backoff holds one time for each server, in nanoseconds since 1970. Until that time, reads try
	// the other servers first.
	backoff []atomic.Int64
	// active is the index of the server that made the last change.
	active atomic.Int64
}

// backoffTime is how long reads avoid a server that did not answer, so that it does not delay each
// read.
const backoffTime = 10 * time.Second

var _ Box = (*Client)(nil)

// NewClient makes a client. It sends no request.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.Servers) == 0 {
		return nil, claviger.Errorf("trustee.NewClient", claviger.Invalid, "", "no Key Trustee Server is named")
	}
	for _, s := range cfg.Servers {
		if !strings.HasPrefix(s.URL, "https://") {
			return nil, claviger.Errorf("trustee.NewClient", claviger.Invalid, "",
				"the URL of the Key Trustee Server, %q, must begin with https://", s.URL)
		}
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 5
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, backoff: make([]atomic.Int64, len(cfg.Servers)), http: &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: cfg.TLS, MaxConnsPerHost: cfg.MaxConns, MaxIdleConnsPerHost: cfg.MaxConns,
			IdleConnTimeout:     time.Minute,
			DialContext:         (&net.Dialer{Timeout: cfg.Timeout}).DialContext,
			TLSHandshakeTimeout: cfg.Timeout, ResponseHeaderTimeout: cfg.Timeout, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Introduce requests the public key of a server. TLS proves the identity of the server. A caller
// that stores the key accepts only answers that this key signed from then on.
func (c *Client) Introduce(ctx context.Context, url string) (*Party, error) {
	const op = "trustee.Introduce"
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/?a=publickey", nil)
	if err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	status, _, body, err := c.send(req)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "%s: %w", url, err)
	}
	if status != http.StatusOK {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s answers %d to /?a=publickey: is it a Key Trustee "+
			"Server of claviger?", url, status)
	}
	return ReadParty(body)
}

// Register registers the client at the active server, with the secret of its organization. It may be
// repeated. active is false if an operator must accept the client first. alone is
// RegisterArgs.Alone. Kinds Denied, KeyExists.
func (c *Client) Register(ctx context.Context, org, auth string, alone bool) (active bool, err error) {
	var public bytes.Buffer
	if err := c.cfg.Identity.Public(&public); err != nil {
		return false, claviger.E("trustee.Register", claviger.Internal, "", err)
	}
	var r RegisterResult
	err = c.change(ctx, VerbRegister, RegisterArgs{PublicKey: public.Bytes(), Org: org, Auth: auth, Alone: alone}, &r)
	return r.Active, err
}

// Clients returns the clients of this client's organization.
func (c *Client) Clients(ctx context.Context) (ClientsResult, error) {
	var r ClientsResult
	err := c.read(ctx, VerbClients, struct{}{}, func(decode decodeFunc) error {
		r = ClientsResult{}
		return decode(&r)
	})
	return r, err
}

// Put implements Box.
func (c *Client) Put(ctx context.Context, d Deposit, replaces string) (string, error) {
	d.UUID = NewUUID()
	sealed, err := c.cfg.Identity.seal(d, c.cfg.Now())
	if err != nil {
		return "", err
	}
	if err := c.change(ctx, VerbPut, PutArgs{Deposit: *sealed, Replaces: replaces}, nil); err != nil {
		return "", err
	}
	return d.UUID, nil
}

// Get implements Box.
func (c *Client) Get(ctx context.Context, uuid string) (Deposit, error) {
	return c.readDeposit(ctx, VerbGet, GetArgs{UUID: uuid}, func(d *Deposit) error {
		if d.UUID != uuid {
			return claviger.Errorf("trustee.Get", claviger.Invalid, uuid, "the server returned deposit %s for %s",
				d.UUID, uuid)
		}
		return nil
	})
}

// Find implements Box.
func (c *Client) Find(ctx context.Context, label string) (Deposit, error) {
	return c.readDeposit(ctx, VerbFind, FindArgs{Label: label}, func(d *Deposit) error {
		if d.Label != label {
			return claviger.Errorf("trustee.Find", claviger.Invalid, label, "the server returned deposit %q for %q",
				d.Label, label)
		}
		return nil
	})
}

// readDeposit reads one deposit. check returns an error if the server returned the wrong deposit.
func (c *Client) readDeposit(ctx context.Context, verb string, args any, check func(*Deposit) error) (
	d Deposit, err error) {
	err = c.read(ctx, verb, args, func(decode decodeFunc) error {
		var s Sealed
		if err := decode(&s); err != nil {
			return err
		}
		d, err = s.Read(&c.cfg.Identity.Party, c.cfg.Now())
		switch {
		case err != nil:
			return err
		case len(d.Content) == 0:
			return claviger.Errorf("trustee."+verb, claviger.Invalid, "", "the server returned deposit %s without "+
				"its content", d.UUID)
		case !d.Deleted.IsZero():
			return claviger.Errorf("trustee."+verb, claviger.KeyNotFound, d.UUID, "the deposit was deleted")
		case !d.Expires.IsZero() && !c.cfg.Now().Before(d.Expires):
			return claviger.Errorf("trustee."+verb, claviger.KeyNotFound, d.UUID, "the deposit has expired, at %s",
				d.Expires.Format(time.RFC3339))
		}
		return check(&d)
	})
	if err != nil {
		return Deposit{}, err
	}
	return d, nil
}

// List implements Box.
func (c *Client) List(ctx context.Context, prefix string, deleted bool, after string, limit int) (list []Deposit,
	err error) {
	args := ListArgs{Prefix: prefix, Deleted: deleted, After: after, Limit: min(limit, MaxPage)}
	err = c.read(ctx, VerbList, args, func(decode decodeFunc) error {
		var page []Sealed
		if err := decode(&page); err != nil {
			return err
		}
		list, err = c.readPage(page, prefix, deleted, after, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// readPage checks and reads the deposits of a page.
func (c *Client) readPage(page []Sealed, prefix string, deleted bool, after string, limit int) ([]Deposit, error) {
	const op = "trustee.List"
	if len(page) > limit {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "the server listed %d deposits, but %d were requested",
			len(page), limit)
	}
	list := make([]Deposit, 0, len(page))
	for i := range page {
		page[i].Content = nil
		d, err := page[i].Read(&c.cfg.Identity.Party, c.cfg.Now())
		if err != nil {
			return nil, err
		}
		// If a server always returned the same page, the client would never stop.
		if cursor := d.Cursor(); cursor <= after || !strings.HasPrefix(d.Label, prefix) ||
			d.Deleted.IsZero() == deleted {
			return nil, claviger.Errorf(op, claviger.Invalid, "", "the server listed deposit %q, which does not "+
				"belong to the requested page", d.Label)
		}
		after = d.Cursor()
		list = append(list, d)
	}
	return list, nil
}

// Delete implements Box.
func (c *Client) Delete(ctx context.Context, uuids ...string) error {
	return c.change(ctx, VerbDelete, UUIDArgs{uuids}, nil)
}

// Undelete implements Box.
func (c *Client) Undelete(ctx context.Context, uuids ...string) error {
	return c.change(ctx, VerbUndelete, UUIDArgs{uuids}, nil)
}

// Purge implements Box.
func (c *Client) Purge(ctx context.Context, uuids ...string) error {
	return c.change(ctx, VerbPurge, UUIDArgs{uuids}, nil)
}

// order returns the indices of the servers in the order in which a read tries them.
func (c *Client) order() []int {
	n := len(c.cfg.Servers)
	first := 0
	if c.cfg.RoundRobin {
		first = int(c.reads.Add(1) % uint64(n)) //nolint:gosec // less than n
	}
	now := c.cfg.Now().UnixNano()
	var preferred, avoided []int
	for i := range n {
		s := (first + i) % n
		if c.backoff[s].Load() > now {
			avoided = append(avoided, s)
		} else {
			preferred = append(preferred, s)
		}
	}
	return append(preferred, avoided...)
}

// decodeFunc sends a request and decodes the answer of the server into a value.
type decodeFunc func(into any) error

// read tries one server after another until one answers. It tries the next server if a server
// refuses this client, if clocks differ, if the server fails, or if its answer is invalid: that is
// the fault of one server, and another server may have the deposit. It tries no other server if a
// server is sure that the deposit does not exist. use reads the answer, and returns an error if the
// answer is invalid.
func (c *Client) read(ctx context.Context, verb string, args any, use func(decodeFunc) error) error {
	kind := claviger.Internal // of the first error, but Unavailable if one is Unavailable, since it may be temporary
	var errs []error
	for _, i := range c.order() {
		s := &c.cfg.Servers[i]
		body, digest, err := c.newRequest(s, verb, args)
		if err != nil {
			return err
		}
		err = use(func(into any) error { return c.post(ctx, s, verb, body, digest, into) })
		if ctx.Err() != nil {
			return err // the caller gave up, so this is not the fault of the server
		}
		if err == nil || claviger.Is(err, claviger.KeyNotFound) {
			c.backoff[i].Store(0)
			return err
		}
		if k := claviger.KindOf(err); len(errs) == 0 || k == claviger.Unavailable {
			kind = k
		}
		errs = append(errs, nameServer(s, err))
		if errors.Is(err, ErrUnsure) {
			continue // the server answers, and may have other deposits
		}
		c.backoff[i].Store(c.cfg.Now().Add(backoffTime).UnixNano())
		c.cfg.Log.Warn("a Key Trustee Server does not answer as it should", "server", s.URL, "err", err)
	}
	return claviger.Errorf("trustee."+verb, kind, "", "no Key Trustee Server answers: %w", errors.Join(errs...))
}

// nameServer adds the URL of the server to an error without it. The identity is not enough: two
// servers have the same.
func nameServer(s *Endpoint, err error) error {
	if strings.Contains(err.Error(), s.URL) {
		return err
	}
	return fmt.Errorf("%s: %w", s.URL, err)
}

const (
	// changeRounds is how often change tries all servers, and roundTime the first pause between two
	// rounds. During a promotion, no server is active for a moment.
	changeRounds = 7
	roundTime    = 50 * time.Millisecond
)

// change makes a change at the active server. It tries the server that made the last change first,
// then the others. All servers of one identity get the same bytes, so the change is made only once:
// if an answer was lost, the error ErrReplay to the next request says that the change was made. A
// server that refuses a request before it knows the sender (not registered there, or clocks differ)
// has changed nothing, so change tries the next server.
func (c *Client) change(ctx context.Context, verb string, args, into any) error {
	first := int(c.active.Load()) % len(c.cfg.Servers)
	body, digest, err := c.newRequest(&c.cfg.Servers[first], verb, args)
	if err != nil {
		return err
	}
	var lost error // error of a request whose outcome is unknown
	for round := range changeRounds {
		passive := false
		var refused error
		var errs []error
		for i := range c.cfg.Servers {
			n := (first + i) % len(c.cfg.Servers)
			s := &c.cfg.Servers[n]
			if s.Server == nil || s.Server.Fingerprint() != c.cfg.Servers[first].Server.Fingerprint() {
				continue // a server of another identity
			}
			err := c.post(ctx, s, verb, body, digest, into)
			switch {
			case ctx.Err() != nil:
				return err
			case err == nil:
				c.active.Store(int64(n))
				return nil
			case errors.Is(err, ErrReplay) && lost != nil:
				if verb == VerbRegister { // the lost answer had a result
					return lost
				}
				c.active.Store(int64(n))
				return nil
			case errors.Is(err, ErrPassive):
				passive = true
			case errors.Is(err, errRefused):
				if refused == nil || claviger.Is(err, claviger.Unavailable) { // as in read
					refused = err
				}
			case errors.Is(err, errInvalidAnswer), claviger.Is(err, claviger.Unavailable):
				lost = nameServer(s, err)
			default:
				return nameServer(s, err) // the server has signed this error
			}
			errs = append(errs, nameServer(s, err))
		}
		err = errors.Join(errs...)
		if refused != nil && lost == nil { // nothing was changed, and another round does not help
			return claviger.Errorf("trustee."+verb, claviger.KindOf(refused), "",
				"no Key Trustee Server has accepted the change: %w", err)
		}
		if round == changeRounds-1 || round > 0 && !passive {
			break
		}
		select {
		case <-ctx.Done():
			return claviger.E("trustee."+verb, claviger.Unavailable, "", errors.Join(err, ctx.Err()))
		case <-time.After(roundTime << round):
		}
	}
	return claviger.Errorf("trustee."+verb, claviger.Unavailable, "",
		"no Key Trustee Server has accepted the change: %w", err)
}

// Request sends one request to the first server. Operators and the other server use it, see package
// replica.
func (c *Client) Request(ctx context.Context, verb string, args, into any) error {
	body, digest, err := c.newRequest(&c.cfg.Servers[0], verb, args)
	if err != nil {
		return err
	}
	return c.post(ctx, &c.cfg.Servers[0], verb, body, digest, into)
}

func (c *Client) newRequest(s *Endpoint, verb string, args any) (body []byte, digest string, err error) {
	if s.Server == nil {
		return nil, "", claviger.Errorf("trustee."+verb, claviger.Invalid, "",
			"the key of the Key Trustee Server %s is not known yet", s.URL)
	}
	return c.cfg.Identity.NewRequest(verb, s.Server.Fingerprint(), args, c.cfg.Now())
}

// post sends a request, and checks and decodes the answer.
func (c *Client) post(ctx context.Context, s *Endpoint, verb string, body []byte, digest string, into any) error {
	op := "trustee." + verb
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+APIPath+verb, bytes.NewReader(body))
	if err != nil {
		return claviger.E(op, claviger.Invalid, "", err)
	}
	req.Header.Set("Content-Type", "application/json")
	status, date, answer, err := c.send(req)
	if err != nil {
		return claviger.Errorf(op, claviger.Unavailable, "", "Key Trustee Server %s: %w", s.URL, err)
	}
	// Answers with another status than 200 are not signed. They count only as refusals.
	text := strings.TrimSpace(string(answer[:min(len(answer), 500)]))
	switch status {
	case http.StatusOK:
		return ReadAnswer(answer, s.Server, digest, c.cfg.Now(), into)
	case http.StatusForbidden:
		return claviger.Errorf(op, claviger.Denied, "", "Key Trustee Server %s %w: %s", s.URL, errRefused, text)
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusNotFound, http.StatusMethodNotAllowed:
		kind := claviger.Invalid
		if clocksApart(date, c.cfg.Now()) {
			kind = claviger.Unavailable // not the fault of the request: a host with the right time may send it
		}
		return claviger.Errorf(op, kind, "", "Key Trustee Server %s %w (status %d): %s", s.URL, errRefused, status,
			text)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "Key Trustee Server %s answers %d: %s", s.URL, status, text)
}

// errRefused is in the error of a request that a server refused before it knew the sender. The
// request has changed nothing.
var errRefused = errors.New("refuses the request")

// clocksApart reports whether a server refused a request because its clock and ours differ. date is
// the server's time in whole seconds, after the request.
func clocksApart(date, now time.Time) bool {
	const slack = 10 * time.Second
	return !date.IsZero() && date.Sub(now).Abs() > MaxSkew-slack
}

// send sends a request. date is the server's time, or zero if the answer has none.
func (c *Client) send(req *http.Request) (status int, date time.Time, body []byte, err error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, date, nil, addCure(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err == nil && len(body) > MaxBody {
		err = fmt.Errorf("an answer of more than %d bytes", MaxBody)
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		date = at
	}
	return resp.StatusCode, date, body, err
}

// addCure adds what to do to an error of TLS.
func addCure(err error) error {
	if cure := claviger.CertificateCure(err, "the truststore that is configured for the trustee"); cure != "" {
		return fmt.Errorf("%w; %s", err, cure)
	}
	return err
}
