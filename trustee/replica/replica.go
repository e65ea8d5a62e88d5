package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

const (
	// shipTime is how long the passive may take to commit a change. The active's store
	// is locked meanwhile, for orgtool too: it must be shorter than the store waits
	// for another process.
	shipTime = 4 * time.Second
	// longTime is that of a question over a whole store.
	longTime = 50 * time.Second
	// readyTime is how long a change waits for the passive to be brought up to date.
	readyTime = 3 * time.Second
	// tick is how often the active looks whether the passive lacks something.
	tick = time.Second
	// idle is how often an active that has nothing to send asks whether the passive is
	// there, and still what it was.
	idle = 10 * time.Second
	// pageEntries of a log go to the peer at once.
	pageEntries = 500
	// pageBytes ends a page early: in base64 twice it is well within trustee.MaxBody.
	pageBytes = 768 << 10
)

// Config is what a Replica is made of.
type Config struct {
	Identity *trustee.Identity // that of both
	Store    Logged
	// Peer asks the other server; as Identity.
	Peer *trustee.Client
	// Spool is the folder in which a whole copy from the peer is gathered.
	Spool string
	Log   *slog.Logger
}

// Replica is one of two Key Trustee Servers that hold the same, the active or the
// passive. A change is committed by the passive first, then by the active, then
// acknowledged; see docs/trustee.md.
type Replica struct {
	id    *trustee.Identity
	store Logged
	peer  *trustee.Client
	spool string
	log   *slog.Logger
	kick  chan struct{}

	faults server.WriteProbe

	op    sync.Mutex // one synchronization, or operator's command, at a time
	asked time.Time  // when the last look asked the peer; under op
	// refused is the last copy that the passive refused, and dropped what the last one
	// that it took has replaced; under op.
	refused refusal
	dropped loadResult

	mu sync.Mutex
	// synced: the passive has all up to peerHead, and takes the next change.
	synced   bool
	peerHead Head
	tried    bool // the peer has been asked since the start
	// equal: as the active one, this server was equal to the passive since its start.
	// lacking: it knows that the passive holds what it lacks.
	equal, lacking bool
	why            error // why it is not synced
	round          chan struct{}
	told           string // what the log said last of why
	// doubt is the last change that this server has sent and refused, since the answer
	// did not come: a passive that stands there has acknowledged nothing with it.
	doubt Head
	// offer is the last copy that came to be taken or compared.
	offer offered

	asking sync.Mutex // of who asks whether this server lacks anything
	// known is what was learned last of whether absence here is absence; nil: nothing.
	known atomic.Pointer[known]
	// abreastOnce: as the passive one, this server lacked nothing when it last reached the
	// active one, since its start.
	abreastOnce atomic.Bool

	arriving sync.Mutex
	incoming *incoming
}

// refusal is that of a copy by the passive, which holds what the copy does not.
type refusal struct {
	mine, theirs Head
	at           time.Time
	err          error
}

// offered is a copy of the other's store: its head, what it lacks of this store at the
// head mine, and what it has more.
type offered struct {
	head, mine Head
	less, more Loss
}

// New makes one of two, which at its first start gets the role first.
// It takes over the store's guard. Kind Invalid where the store has no role yet
// and first is none.
func New(ctx context.Context, cfg Config, first server.Role) (*Replica, error) {
	const op = "replica.New"
	r := &Replica{id: cfg.Identity, store: cfg.Store, peer: cfg.Peer, spool: cfg.Spool, log: cfg.Log, kick: make(chan struct{}, 1), round: make(chan struct{})}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	// Who was killed while a copy came has left a part of it.
	left, err := filepath.Glob(filepath.Join(r.spool, incomingFiles))
	for _, file := range left {
		err = errors.Join(err, os.Remove(file))
	}
	if err != nil {
		return nil, claviger.E(op, claviger.Unavailable, "", err)
	}
	st, err := r.store.Standing(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case st.Role == server.RoleSingle && first != server.RoleActive && first != server.RolePassive:
		return nil, claviger.Errorf(op, claviger.Invalid, "", "this is the first start with a peer: say by --role whether this Key Trustee Server is the active one, whose deposits count, or the passive one, which takes them over")
	case st.Role == server.RoleSingle:
		st, err = r.store.Stand(ctx, func(st *Standing) error {
			st.Role = first
			if first == server.RoleActive {
				st.Epoch = 1
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	r.store.Guard(r.guard)
	r.log.Info("this is one of two Key Trustee Servers", "role", st.Role, "epoch", st.Epoch, "seq", st.Head.Seq)
	return r, nil
}

// Run keeps the passive equal until ctx ends.
func (r *Replica) Run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		r.look(ctx)
		select {
		case <-ctx.Done():
			r.forgetIncoming()
			return
		case <-r.kick:
		case <-t.C:
		}
	}
}

// look brings the passive up to date where it is not.
func (r *Replica) look(ctx context.Context) {
	r.op.Lock()
	defer r.op.Unlock()
	st, err := r.store.Standing(ctx)
	if err == nil && st.Role == server.RoleActive {
		r.mu.Lock()
		synced, at := r.synced, r.peerHead
		r.mu.Unlock()
		switch {
		case synced && at == st.Head && st.Unshared == 0 && time.Since(r.asked) < idle:
			return
		case synced && at == st.Head && st.Unshared == 0:
			r.asked = time.Now()
			err = r.visit(ctx, st)
		case synced:
			err = r.trail(ctx)
		default:
			err = r.sync(ctx, false)
		}
	}
	if ctx.Err() == nil {
		r.tell(err)
	}
}

// visit asks a passive that should have all whether it does.
func (r *Replica) visit(ctx context.Context, st Standing) error {
	p, err := r.hello(ctx, st)
	switch {
	case err != nil:
		return err
	case p.Epoch > st.Epoch:
		return r.stepDown(ctx, p.Epoch)
	case p.Fault != "":
		return peerFault("replica.visit", p)
	case p.Role != server.RolePassive || p.Head.Seq < st.Head.Seq: // it has each change before the active
		return claviger.Errorf("replica.visit", claviger.Unavailable, "", "the other Key Trustee Server was the passive one with change %d, and is %s with change %d: it is brought up to date", st.Head.Seq, p.Role, p.Head.Seq)
	}
	return nil
}

// tell notes how a look ended, wakes who waits for it, and logs what is new.
func (r *Replica) tell(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := ""
	if err != nil {
		r.synced = false
		text = err.Error()
	}
	r.tried, r.why = true, err
	close(r.round)
	r.round = make(chan struct{})
	if text != r.told && err != nil {
		r.log.Error("the two Key Trustee Servers are not in step", "err", err)
	}
	r.told = text
	r.known.Store(nil)
}

// wake has the passive looked after at once.
func (r *Replica) wake() {
	select {
	case r.kick <- struct{}{}:
	default: // it was woken already
	}
}

// lost: the passive may have something, or not.
func (r *Replica) lost(err error) error {
	r.mu.Lock()
	r.synced, r.why = false, err
	r.mu.Unlock()
	r.wake()
	return claviger.Errorf("replica.guard", claviger.Unavailable, "", "%w (%w)", server.ErrAway, err)
}

// Ready waits a moment until changes can be taken. Kind Unavailable, with
// ErrPassive or server.ErrAway.
func (r *Replica) Ready(ctx context.Context) error {
	const op = "replica.Ready"
	limit := time.NewTimer(readyTime)
	defer limit.Stop()
	away := func(why error) error {
		return claviger.Errorf(op, claviger.Unavailable, "", "%w (%w)", server.ErrAway, errors.Join(why))
	}
	// The first look that ends may have begun before; what the second finds is so.
	for looks := 0; ; looks++ {
		st, err := r.store.Standing(ctx)
		if err != nil {
			return err
		}
		if st.Role != server.RoleActive {
			return claviger.E(op, claviger.Unavailable, "", trustee.ErrPassive)
		}
		r.mu.Lock()
		way, why, round := r.wayOf(&st), r.why, r.round
		r.mu.Unlock()
		if way != noWay {
			return nil
		}
		if looks >= 2 && why != nil {
			return away(why)
		}
		r.wake()
		select {
		case <-round:
		case <-ctx.Done():
			return claviger.E(op, claviger.Unavailable, "", ctx.Err())
		case <-limit.C:
			return away(why)
		}
	}
}

// A way is how the active server may commit its next change.
type way int

const (
	noWay way = iota // not at all
	both             // after the passive server has committed it
	alone            // without the passive server
)

// wayOf is the one rule by which a change is admitted. The active server goes on alone only where
// an operator says so, and only after it has asked the passive server since its start: the passive
// server may have been promoted meanwhile. The caller holds r.mu.
func (r *Replica) wayOf(st *Standing) way {
	switch {
	case r.synced:
		return both
	case r.tried && st.Alone:
		return alone
	}
	return noWay
}

// guard has the passive commit a change before the active does. Its end does not
// depend on the client's patience.
func (r *Replica) guard(ctx context.Context, before Standing, e Entry) (shared bool, err error) {
	r.mu.Lock()
	way, why, at := r.wayOf(&before), r.why, r.peerHead
	r.mu.Unlock()
	switch way {
	case alone:
		return false, nil
	case noWay:
		r.wake()
		return false, claviger.Errorf("replica.guard", claviger.Unavailable, "", "%w (%w)", server.ErrAway, errors.Join(why))
	}
	if err := r.ship(ctx, before, at, &e); err != nil {
		return false, err
	}
	return true, nil
}

// ship sends the passive what it lacks of before, whose head it has up to at, and
// then e, if there is one. It is called within a transaction of the store, so that
// nothing comes between.
func (r *Replica) ship(ctx context.Context, before Standing, at Head, e *Entry) (err error) {
	var list []Entry
	if before.Head != at { // orgtool has made changes meanwhile
		if list, err = r.store.Entries(ctx, at, pageEntries, pageBytes); err != nil {
			return r.lost(err)
		}
		if n := len(list); n == 0 || list[n-1].Head != before.Head {
			return r.lost(errors.New("the passive lacks more than one page of changes"))
		}
	}
	head := before.Head
	if e != nil {
		list, head = append(list, *e), e.Head
	}
	if len(list) > 0 {
		if _, err := r.append(ctx, before.Epoch, list); err != nil {
			if e != nil {
				r.mu.Lock()
				r.doubt = e.Head
				r.mu.Unlock()
			}
			return r.lost(err)
		}
	}
	r.mu.Lock()
	r.peerHead = head
	r.mu.Unlock()
	return nil
}

// trail sends the passive, which has all else, what orgtool has changed.
func (r *Replica) trail(ctx context.Context) error {
	_, err := r.store.Stand(ctx, func(st *Standing) error {
		r.mu.Lock()
		synced, at := r.synced, r.peerHead
		r.mu.Unlock()
		if !synced || st.Role != server.RoleActive {
			return nil // the next look does what is to be done
		}
		if err := r.ship(ctx, *st, at, nil); err != nil {
			return err
		}
		st.Unshared = 0
		return nil
	})
	return err
}

// State is what the server is beside the other, which it does not ask. synced: it
// is the active one, and knows that the passive has all.
func (r *Replica) State(ctx context.Context) (st Standing, synced bool, err error) {
	if st, err = r.store.Standing(ctx); err != nil {
		return st, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return st, r.synced && st.Role == server.RoleActive, nil
}

// StatusReport is what status tells.
type StatusReport struct {
	Standing
	// Synced: the active knows that the passive has all.
	Synced bool `json:"synced"`
	// Peer is nil where it does not answer; PeerError says why.
	Peer      *Standing `json:"peer,omitempty"`
	PeerError string    `json:"peerError,omitempty"`
	// Lag is how many changes the passive lacks.
	Lag uint64 `json:"lag"`
	// Diverged: the passive has changes that the active lacks, or another history.
	Diverged bool `json:"diverged,omitempty"`
	// Why the two are not in step.
	Why        string `json:"why,omitempty"`
	Digest     string `json:"digest,omitempty"`
	PeerDigest string `json:"peerDigest,omitempty"`
}

// InStep reports whether the two servers hold the same and both take changes. It is false where that
// is not known.
func (s *StatusReport) InStep() bool {
	return s.Fault == "" && s.Peer != nil && s.Peer.Fault == "" && s.Peer.Role != s.Role && s.Lag == 0 && !s.Diverged &&
		(s.Role != server.RoleActive || s.Synced) && s.Digest == s.PeerDigest
}

func (r *Replica) status(ctx context.Context, a StatusArgs) (any, error) {
	st, synced, err := r.State(ctx)
	if err != nil {
		return nil, err
	}
	st.Fault = r.faults.Fault(ctx, r.store, time.Now())
	report := StatusReport{Standing: st, Synced: synced}
	r.mu.Lock()
	if r.why != nil {
		report.Why = r.why.Error()
	}
	r.mu.Unlock()
	if report.Peer, err = r.hello(ctx, Standing{Role: server.RolePassive}); err != nil {
		report.Peer, report.PeerError = nil, err.Error()
	} else if ahead, behind := st.Head.Seq, report.Peer.Head.Seq; st.Role == server.RoleActive && ahead > behind {
		report.Lag = ahead - behind
	} else if st.Role == server.RolePassive && behind > ahead {
		report.Lag = behind - ahead
	}
	if err := r.diverged(ctx, &report); err != nil {
		return nil, err
	}
	if !a.Digest {
		return report, nil
	}
	if report.Digest, err = server.StateDigest(ctx, r.store); err != nil {
		return nil, err
	}
	if report.Peer != nil {
		d, err := r.peerDigest(ctx)
		if err != nil {
			return nil, err
		}
		report.PeerDigest = d.Digest
	}
	return report, nil
}

// diverged looks at the two heads from the passive's side; the active knows by itself
// whether the two are in step.
func (r *Replica) diverged(ctx context.Context, report *StatusReport) error {
	if report.Role != server.RolePassive || report.Peer == nil || report.Peer.Role != server.RoleActive || report.Lag > 0 {
		return nil
	}
	had, err := r.store.Has(ctx, report.Peer.Head)
	if err != nil || had {
		return err
	}
	report.Diverged = true
	r.mu.Lock()
	offer := r.offer
	r.mu.Unlock()
	report.Why = "the active Key Trustee Server does not have the changes that this one has"
	if offer.head == report.Peer.Head && !offer.less.None() {
		report.Why = fmt.Sprintf("the active Key Trustee Server lacks what this one holds, %s; its copy was refused: %s", &offer.less, curePassive)
	}
	return nil
}

// curePassive is what to do at a passive that holds what the active lacks.
const curePassive = "where this server's store is the right one, claviger trustee promote here; where the other's is, claviger trustee resync --drop there, which drops this one's"

// forgetIncoming drops what has come of a copy.
func (r *Replica) forgetIncoming() {
	r.arriving.Lock()
	defer r.arriving.Unlock()
	if r.incoming != nil {
		r.incoming.drop()
		r.incoming = nil
	}
}

// drop removes the spool; it was only ours.
func (i *incoming) drop() {
	_ = i.file.Close()
	_ = os.Remove(i.file.Name())
}
