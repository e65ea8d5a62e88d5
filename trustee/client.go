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
	// Server is the identity whose answers are believed; nil before Introduce.
	Server *Party
}

// ClientConfig is what a Client is made of.
type ClientConfig struct {
	Identity *Identity
	// Servers are the servers of one identity. The first is the active one, which alone takes
	// changes; another may be promoted in its place.
	Servers []Endpoint
	// TLS checks the servers' certificates. It is not the TLS of the KMS itself.
	TLS *tls.Config
	// RoundRobin spreads reads over all servers. Otherwise the active server is asked first.
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
	turns atomic.Uint64
	// rests has, for each server that did not answer lately, until when it is asked last, in
	// nanoseconds since 1970.
	rests []atomic.Int64
	// active is the server that took the last change.
	active atomic.Int64
}

// restTime is how long a server that did not answer is asked after the others, so that it delays a
// read now and then, and not each read.
const restTime = 10 * time.Second

var _ Box = (*Client)(nil)

// NewClient makes a client. It sends no request.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.Servers) == 0 {
		return nil, claviger.Errorf("trustee.NewClient", claviger.Invalid, "", "no Key Trustee Server is named")
	}
	for _, s := range cfg.Servers {
		if !strings.HasPrefix(s.URL, "https://") {
			return nil, claviger.Errorf("trustee.NewClient", claviger.Invalid, "",
				"the Key Trustee Server %q: only https is spoken", s.URL)
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
	return &Client{cfg: cfg, rests: make([]atomic.Int64, len(cfg.Servers)), http: &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: cfg.TLS, MaxConnsPerHost: cfg.MaxConns, MaxIdleConnsPerHost: cfg.MaxConns,
			IdleConnTimeout:     time.Minute,
			DialContext:         (&net.Dialer{Timeout: cfg.Timeout}).DialContext,
			TLSHandshakeTimeout: cfg.Timeout, ResponseHeaderTimeout: cfg.Timeout, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close drops the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Introduce asks a server for its public key, over TLS that was checked. A caller that keeps the
// key believes that server and no other from then on.
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

// Register registers the client at the active server by its organization's secret. It may be
// repeated. active is false if an operator must let the client in first. alone is
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
	err := c.read(ctx, VerbClients, struct{}{}, func(answer answer) error {
		r = ClientsResult{}
		return answer(&r)
	})
	return r, err
}

// Put makes a deposit.
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

// Get returns a deposit of this client.
func (c *Client) Get(ctx context.Context, uuid string) (Deposit, error) {
	return c.one(ctx, VerbGet, GetArgs{UUID: uuid}, func(d *Deposit) error {
		if d.UUID != uuid {
			return claviger.Errorf("trustee.Get", claviger.Invalid, uuid, "the server handed out deposit %s for %s",
				d.UUID, uuid)
		}
		return nil
	})
}

// Find returns a deposit by its label.
func (c *Client) Find(ctx context.Context, label string) (Deposit, error) {
	return c.one(ctx, VerbFind, FindArgs{Label: label}, func(d *Deposit) error {
		if d.Label != label {
			return claviger.Errorf("trustee.Find", claviger.Invalid, label, "the server handed out deposit %q for %q",
				d.Label, label)
		}
		return nil
	})
}

// one reads a deposit that check accepts as the right one.
func (c *Client) one(ctx context.Context, verb string, args any, check func(*Deposit) error) (d Deposit, err error) {
	err = c.read(ctx, verb, args, func(answer answer) error {
		var s Sealed
		if err := answer(&s); err != nil {
			return err
		}
		d, err = s.Read(&c.cfg.Identity.Party, c.cfg.Now())
		switch {
		case err != nil:
			return err
		case len(d.Content) == 0:
			return claviger.Errorf("trustee."+verb, claviger.Invalid, "", "the server handed out deposit %s without "+
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

// List returns a page.
func (c *Client) List(ctx context.Context, prefix string, deleted bool, after string, limit int) (list []Deposit,
	err error) {
	args := ListArgs{Prefix: prefix, Deleted: deleted, After: after, Limit: min(limit, MaxPage)}
	err = c.read(ctx, VerbList, args, func(answer answer) error {
		var page []Sealed
		if err := answer(&page); err != nil {
			return err
		}
		list, err = c.listed(page, prefix, deleted, after, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// listed checks a page.
func (c *Client) listed(page []Sealed, prefix string, deleted bool, after string, limit int) ([]Deposit, error) {
	const op = "trustee.List"
	if len(page) > limit {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "the server listed %d deposits where %d were asked for",
			len(page), limit)
	}
	list := make([]Deposit, 0, len(page))
	for i := range page {
		page[i].Content = nil
		d, err := page[i].Read(&c.cfg.Identity.Party, c.cfg.Now())
		if err != nil {
			return nil, err
		}
		// A server that returns the same page again would keep this client in a loop.
		if cursor := d.Cursor(); cursor <= after || !strings.HasPrefix(d.Label, prefix) ||
			d.Deleted.IsZero() == deleted {
			return nil, claviger.Errorf(op, claviger.Invalid, "", "the server listed deposit %q where it has no place",
				d.Label)
		}
		after = d.Cursor()
		list = append(list, d)
	}
	return list, nil
}

// Delete makes deposits unreadable.
func (c *Client) Delete(ctx context.Context, uuids ...string) error {
	return c.change(ctx, VerbDelete, UUIDArgs{uuids}, nil)
}

// Undelete brings deposits back.
func (c *Client) Undelete(ctx context.Context, uuids ...string) error {
	return c.change(ctx, VerbUndelete, UUIDArgs{uuids}, nil)
}

// Purge removes deposits.
func (c *Client) Purge(ctx context.Context, uuids ...string) error {
	return c.change(ctx, VerbPurge, UUIDArgs{uuids}, nil)
}

// order returns the indices of the servers in the order in which they are read from.
func (c *Client) order() []int {
	n := len(c.cfg.Servers)
	first := 0
	if c.cfg.RoundRobin {
		first = int(c.turns.Add(1) % uint64(n)) //nolint:gosec // less than n
	}
	now := c.cfg.Now().UnixNano()
	var awake, resting []int
	for i := range n {
		s := (first + i) % n
		if c.rests[s].Load() > now {
			resting = append(resting, s)
		} else {
			awake = append(awake, s)
		}
	}
	return append(awake, resting...)
}

// answer reads a server's answer.
type answer func(into any) error

// read asks one server after another until one answers. A server that refuses this client, whose
// clock is wrong, which fails, or whose answer cannot be believed, is at fault itself, and another
// server may have the deposit. A deposit that is not found does not exist, if the server is sure of
// it. take reads the answer; its error says that the answer is of no use.
func (c *Client) read(ctx context.Context, verb string, args any, take func(answer) error) error {
	kind := claviger.Internal // of the first error; a kind that may be temporary counts most
	var errs []error
	for _, i := range c.order() {
		s := &c.cfg.Servers[i]
		body, digest, err := c.request(s, verb, args)
		if err != nil {
			return err
		}
		err = take(func(into any) error { return c.ask(ctx, s, verb, body, digest, into) })
		if ctx.Err() != nil {
			return err // the caller did not wait, so the server may be well
		}
		if err == nil || claviger.Is(err, claviger.KeyNotFound) {
			c.rests[i].Store(0)
			return err
		}
		if k := claviger.KindOf(err); len(errs) == 0 || k == claviger.Unavailable {
			kind = k
		}
		errs = append(errs, at(s, err))
		if errors.Is(err, ErrUnsure) {
			continue // the server answers, and may know other deposits
		}
		c.rests[i].Store(c.cfg.Now().Add(restTime).UnixNano())
		c.cfg.Log.Warn("a Key Trustee Server does not answer as it should", "server", s.URL, "err", err)
	}
	return claviger.Errorf("trustee."+verb, kind, "", "no Key Trustee Server answers: %w", errors.Join(errs...))
}

// at adds the server to an error that does not name it: two servers have one identity.
func at(s *Endpoint, err error) error {
	if strings.Contains(err.Error(), s.URL) {
		return err
	}
	return fmt.Errorf("%s: %w", s.URL, err)
}

const (
	// changeRounds is how often all servers are asked for a change before it fails, and roundTime
	// the first pause between two rounds: during a promotion no server is active for a moment.
	changeRounds = 7
	roundTime    = 50 * time.Millisecond
)

// change asks the active server: first the server that took the last change, then the others. All
// servers of one identity get the same bytes, so the change is made once in any case: if an answer
// was lost, ErrReplay says that the change was made. A server that refuses before it knows the
// sender (not registered there, or its clock is wrong) has changed nothing, and the next one is
// asked.
func (c *Client) change(ctx context.Context, verb string, args, into any) error {
	first := int(c.active.Load()) % len(c.cfg.Servers)
	body, digest, err := c.request(&c.cfg.Servers[first], verb, args)
	if err != nil {
		return err
	}
	var lost error // of a request whose outcome is not known
	for round := range changeRounds {
		passive := false
		var refused error
		var errs []error
		for i := range c.cfg.Servers {
			n := (first + i) % len(c.cfg.Servers)
			s := &c.cfg.Servers[n]
			if s.Server == nil || s.Server.Fingerprint() != c.cfg.Servers[first].Server.Fingerprint() {
				continue // it is not a second server of the same identity
			}
			err := c.ask(ctx, s, verb, body, digest, into)
			switch {
			case ctx.Err() != nil:
				return err
			case err == nil:
				c.active.Store(int64(n))
				return nil
			case errors.Is(err, ErrReplay) && lost != nil:
				if verb == VerbRegister { // its answer has a result
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
			case errors.Is(err, errUnbelieved), claviger.Is(err, claviger.Unavailable):
				lost = at(s, err)
			default:
				return at(s, err) // the server has signed it
			}
			errs = append(errs, at(s, err))
		}
		err = errors.Join(errs...)
		if refused != nil && lost == nil { // nothing was changed, and no further round helps
			return claviger.Errorf("trustee."+verb, claviger.KindOf(refused), "",
				"no Key Trustee Server has taken the change: %w", err)
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
	return claviger.Errorf("trustee."+verb, claviger.Unavailable, "", "no Key Trustee Server has taken the change: %w",
		err)
}

// Ask sends one request to the first server: those of operators and of the other server, see
// package replica.
func (c *Client) Ask(ctx context.Context, verb string, args, into any) error {
	body, digest, err := c.request(&c.cfg.Servers[0], verb, args)
	if err != nil {
		return err
	}
	return c.ask(ctx, &c.cfg.Servers[0], verb, body, digest, into)
}

func (c *Client) request(s *Endpoint, verb string, args any) (body []byte, digest string, err error) {
	if s.Server == nil {
		return nil, "", claviger.Errorf("trustee."+verb, claviger.Invalid, "",
			"the key of the Key Trustee Server %s is not known yet", s.URL)
	}
	return c.cfg.Identity.NewRequest(verb, s.Server.Fingerprint(), args, c.cfg.Now())
}

// ask sends a request and checks the answer.
func (c *Client) ask(ctx context.Context, s *Endpoint, verb string, body []byte, digest string, into any) error {
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
	// A refusal of an unknown sender is not signed. It is believed only as a refusal.
	text := strings.TrimSpace(string(answer[:min(len(answer), 500)]))
	switch status {
	case http.StatusOK:
		return ReadAnswer(answer, s.Server, digest, c.cfg.Now(), into)
	case http.StatusForbidden:
		return claviger.Errorf(op, claviger.Denied, "", "Key Trustee Server %s %w: %s", s.URL, errRefused, text)
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusNotFound, http.StatusMethodNotAllowed:
		kind := claviger.Invalid
		if clocksApart(date, c.cfg.Now()) {
			kind = claviger.Unavailable // the request is not at fault: another host may send it
		}
		return claviger.Errorf(op, kind, "", "Key Trustee Server %s %w (status %d): %s", s.URL, errRefused, status,
			text)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "Key Trustee Server %s answers %d: %s", s.URL, status, text)
}

// errRefused is in the error of a request that a server refused before it knew the sender: nothing
// was changed.
var errRefused = errors.New("refuses the request")

// clocksApart reports whether a server refused a request because of this host's clock. date is the
// server's time in whole seconds, after the request.
func clocksApart(date, now time.Time) bool {
	const slack = 10 * time.Second
	return !date.IsZero() && date.Sub(now).Abs() > MaxSkew-slack
}

// send sends a request. date is the server's time, or zero if the answer has none.
func (c *Client) send(req *http.Request) (status int, date time.Time, body []byte, err error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, date, nil, explain(err)
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

// explain adds the cure to an error of TLS.
func explain(err error) error {
	if cure := claviger.CertificateCure(err, "the truststore that is configured for the trustee"); cure != "" {
		return fmt.Errorf("%w; %s", err, cure)
	}
	return err
}
