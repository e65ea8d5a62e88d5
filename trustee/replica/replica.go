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
	// sendTimeout is how long the passive server may take to commit a change. The store of the active
	// server is locked meanwhile, for orgtool too. So sendTimeout must be shorter than the time that the
	// store waits for another process.
	sendTimeout = 4 * time.Second
	// wholeTimeout is the timeout of a request that concerns a whole store.
	wholeTimeout = 50 * time.Second
	// readyTimeout is how long a change waits until the passive server is up to date.
	readyTimeout = 3 * time.Second
	// checkEvery is how often the active server checks whether the passive server lacks changes.
	checkEvery = time.Second
	// probeEvery is how often the active server probes the passive server when it has nothing to send.
	probeEvery = 10 * time.Second
	// pageEntries is the largest number of log entries in one request.
	pageEntries = 500
	// pageBytes is the size limit of a page. Encoded in base64 twice, a page is smaller than
	// trustee.MaxBody.
	pageBytes = 768 << 10
)

// Config is the configuration of a Replica.
type Config struct {
	Identity *trustee.Identity // of both servers
	Store    Logged
	// Peer sends requests to the other server, signed by Identity.
	Peer *trustee.Client
	// Spool is the folder for a copy from the other server, until all its pages have arrived.
	Spool string
	Log   *slog.Logger
}

// Replica makes a server the active or the passive one of two.
type Replica struct {
	id     *trustee.Identity
	store  Logged
	peer   *trustee.Client
	spool  string
	log    *slog.Logger
	wakeup chan struct{}

	writeProbe server.WriteProbe

	op     sync.Mutex // held by a synchronization, and by a command of an operator
	probed time.Time  // when the peer was last probed; guarded by op
	// refused is the last copy that the passive server refused; nil for none. loaded is the result of the last copy
	// that the passive server loaded. Both are guarded by op.
	refused *refusedCopy
	loaded  loadResult

	mu sync.Mutex
	// synced is true if the passive server has every change up to peerHead and can commit the next.
	synced   bool
	peerHead Head
	checked  bool // a check has ended since the start
	// equal is true if this server, as the active one, was equal to the passive server at some time since
	// its start. lacking is true if it knows that the passive server holds records that it lacks.
	equal, lacking bool
	syncErr        error         // the reason why synced is false
	round          chan struct{} // closed at the end of the next check
	logged         string        // the text of syncErr that was logged last
	// unanswered is the last change that was refused because the passive server did not answer. A passive
	// server whose log ends there has acknowledged nothing to a client.
	unanswered Head
	// compared is the last comparison with a copy from the other server.
	compared comparison

	currentMu sync.Mutex // held by a request that finds out whether this server lacks anything
	// learned is the last result of Current; nil for none.
	learned atomic.Pointer[learned]
	events  atomic.Uint64 // calls of unlearn
	// wasComplete is true if this server, as the passive one, lacked nothing when it last reached the
	// active server since its start.
	wasComplete atomic.Bool

	incomingMu sync.Mutex // guards incoming
	incoming   *incoming
}

// refusedCopy is a copy that the passive server refused, because the copy lacks records of its store.
type refusedCopy struct {
	mine, peer Head // of the two logs
	at         time.Time
	err        error
}

// comparison is the result of comparing this store with a copy of the other server's store.
type comparison struct {
	copyHead, storeHead   Head // of the two logs
	copyLacks, storeLacks Loss
}

// New makes a server one of two. At its first start, the server gets the role first. New sets the guard
// of the store. Kind Invalid if the store has no role and first is neither active nor passive.
func New(ctx context.Context, cfg Config, first server.Role) (*Replica, error) {
	const op = "replica.New"
	r := &Replica{id: cfg.Identity, store: cfg.Store, peer: cfg.Peer, spool: cfg.Spool, log: cfg.Log,
		wakeup: make(chan struct{}, 1), round: make(chan struct{})}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	// A server that was killed while a copy arrived has left the pages of the copy.
	pages, err := filepath.Glob(filepath.Join(r.spool, incomingFiles))
	for _, file := range pages {
		err = errors.Join(err, os.Remove(file))
	}
	if err != nil {
		return nil, claviger.E(op, claviger.Unavailable, "", err)
	}
	st, err := r.store.Position(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case st.Role == server.RoleSingle && first != server.RoleActive && first != server.RolePassive:
		return nil, claviger.Errorf(op, claviger.Invalid, "", "this is the first start with a peer: say by --role "+
			"whether this Key Trustee Server is the active one, whose deposits are kept, or the passive one, which "+
			"gets a copy of them")
	case st.Role == server.RoleSingle:
		st, err = r.store.UpdatePosition(ctx, func(st *Position) error {
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

// Run keeps the passive server equal until ctx ends.
func (r *Replica) Run(ctx context.Context) {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	for {
		r.check(ctx)
		select {
		case <-ctx.Done():
			r.forgetIncoming()
			return
		case <-r.wakeup:
		case <-t.C:
		}
	}
}

// check brings the passive server up to date if it is not.
func (r *Replica) check(ctx context.Context) {
	r.op.Lock()
	defer r.op.Unlock()
	st, err := r.store.Position(ctx)
	if err == nil && st.Role == server.RoleActive {
		r.mu.Lock()
		synced, at := r.synced, r.peerHead
		r.mu.Unlock()
		switch {
		case synced && at == st.Head && st.Unshared == 0 && time.Since(r.probed) < probeEvery:
			return
		case synced && at == st.Head && st.Unshared == 0:
			r.probed = time.Now()
			err = r.probe(ctx, st)
		case synced:
			err = r.sendTrailing(ctx)
		default:
			err = r.sync(ctx, false)
		}
	}
	if ctx.Err() == nil {
		r.report(err)
	}
}

// probe checks that a passive server which should have every change has it, and can commit the next.
func (r *Replica) probe(ctx context.Context, st Position) error {
	p, err := r.exchangePositions(ctx, st)
	switch {
	case err != nil:
		return err
	case p.Epoch > st.Epoch:
		return r.stepDown(ctx, p.Epoch)
	case p.Fault != "":
		return peerFault("replica.probe", p)
	case p.Role != server.RolePassive || p.Head.Seq < st.Head.Seq: // the passive server has each change first
		return claviger.Errorf("replica.probe", claviger.Unavailable, "", "the other Key Trustee Server was the "+
			"passive one with change %d, but now it is %s with change %d; it will be brought up to date", st.Head.Seq,
			p.Role, p.Head.Seq)
	}
	return nil
}

// report stores the result of a check, wakes the changes that wait for it, and logs a new error.
func (r *Replica) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := ""
	if err != nil {
		r.synced = false
		text = err.Error()
	}
	r.checked, r.syncErr = true, err
	close(r.round)
	r.round = make(chan struct{})
	if text != r.logged && err != nil {
		r.log.Error("the two Key Trustee Servers are not synchronized", "err", err)
	}
	r.logged = text
	r.unlearn()
}

// wake makes Run check at once.
func (r *Replica) wake() {
	select {
	case r.wakeup <- struct{}{}:
	default: // Run is about to check
	}
}

// uncommitted returns the error of a change that the passive server may or may not have.
func (r *Replica) uncommitted(err error) error {
	r.mu.Lock()
	r.synced, r.syncErr = false, err
	r.mu.Unlock()
	r.wake()
	return claviger.Errorf("replica.guard", claviger.Unavailable, "", "%w (%w)", server.ErrAway, err)
}

// Ready waits up to readyTimeout until changes can be made. If they cannot, the error is of kind
// Unavailable, with trustee.ErrPassive or server.ErrAway in it.
func (r *Replica) Ready(ctx context.Context) error {
	const op = "replica.Ready"
	limit := time.NewTimer(readyTimeout)
	defer limit.Stop()
	away := func(cause error) error {
		return claviger.Errorf(op, claviger.Unavailable, "", "%w (%w)", server.ErrAway, errors.Join(cause))
	}
	// The first check that ends may have begun before this call, so only the second counts.
	for checks := 0; ; checks++ {
		st, err := r.store.Position(ctx)
		if err != nil {
			return err
		}
		if st.Role != server.RoleActive {
			return claviger.E(op, claviger.Unavailable, "", trustee.ErrPassive)
		}
		r.mu.Lock()
		mode, cause, round := r.modeOf(&st), r.syncErr, r.round
		r.mu.Unlock()
		if mode != refuse {
			return nil
		}
		if checks >= 2 && cause != nil {
			return away(cause)
		}
		r.wake()
		select {
		case <-round:
		case <-ctx.Done():
			return claviger.E(op, claviger.Unavailable, "", ctx.Err())
		case <-limit.C:
			return away(cause)
		}
	}
}

// A mode says how the active server may commit its next change.
type mode int

const (
	refuse mode = iota // not at all
	both               // after the passive server has committed it
	alone              // without the passive server
)

// modeOf is the only rule that admits a change. The active server works alone only if an operator allows
// it, and only after a check since its start has tried to reach the passive server, which may have been
// promoted meanwhile. The caller holds r.mu.
func (r *Replica) modeOf(st *Position) mode {
	switch {
	case r.synced:
		return both
	case r.checked && st.Alone:
		return alone
	}
	return refuse
}

// guard makes the passive server commit a change before the active server does. A client that
// disconnects does not stop it.
func (r *Replica) guard(ctx context.Context, before Position, e Entry) (shared bool, err error) {
	r.mu.Lock()
	mode, cause, at := r.modeOf(&before), r.syncErr, r.peerHead
	r.mu.Unlock()
	switch mode {
	case alone:
		return false, nil
	case refuse:
		r.wake()
		return false, claviger.Errorf("replica.guard", claviger.Unavailable, "", "%w (%w)", server.ErrAway,
			errors.Join(cause))
	}
	if err := r.sendEntries(ctx, before, at, &e); err != nil {
		return false, err
	}
	return true, nil
}

// sendEntries sends the passive server, whose log ends at the head at, the entries up to before, and then
// e unless it is nil. The caller is in a transaction of the store, so no other change can be made
// meanwhile.
func (r *Replica) sendEntries(ctx context.Context, before Position, at Head, e *Entry) (err error) {
	var list []Entry
	if before.Head != at { // orgtool has made changes
		if list, err = r.store.Entries(ctx, at, pageEntries, pageBytes); err != nil {
			return r.uncommitted(err)
		}
		if n := len(list); n == 0 || list[n-1].Head != before.Head {
			return r.uncommitted(errors.New("the passive server lacks more than one page of changes"))
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
				r.unanswered = e.Head
				r.mu.Unlock()
			}
			return r.uncommitted(err)
		}
	}
	r.mu.Lock()
	r.peerHead = head
	r.mu.Unlock()
	return nil
}

// sendTrailing sends the passive server the changes that orgtool has made. The passive server has all
// other changes.
func (r *Replica) sendTrailing(ctx context.Context) error {
	_, err := r.store.UpdatePosition(ctx, func(st *Position) error {
		r.mu.Lock()
		synced, at := r.synced, r.peerHead
		r.mu.Unlock()
		if !synced || st.Role != server.RoleActive {
			return nil // the next check synchronizes
		}
		if err := r.sendEntries(ctx, *st, at, nil); err != nil {
			return err
		}
		st.Unshared = 0
		return nil
	})
	return err
}

// State returns the server's position, without a request to the other server. synced is true for an
// active server that knows that the passive server has every change.
func (r *Replica) State(ctx context.Context) (st Position, synced bool, err error) {
	if st, err = r.store.Position(ctx); err != nil {
		return st, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return st, r.synced && st.Role == server.RoleActive, nil
}

// StatusReport is the result of trustee.VerbStatus.
type StatusReport struct {
	Position
	// Synced is true for an active server that knows that the passive server has every change.
	Synced bool `json:"synced"`
	// Peer is nil if the other server does not answer; PeerError says why.
	Peer      *Position `json:"peer,omitempty"`
	PeerError string    `json:"peerError,omitempty"`
	// Lag is the number of changes that the passive server lacks.
	Lag uint64 `json:"lag"`
	// Diverged is true if the passive server has changes that the active server lacks.
	Diverged bool `json:"diverged,omitempty"`
	// Why says why the two servers are not synchronized.
	Why        string `json:"why,omitempty"`
	Digest     string `json:"digest,omitempty"`
	PeerDigest string `json:"peerDigest,omitempty"`
}

// Synchronized reports whether the two servers are equal and both accept changes. It is false if that is not
// known.
func (s *StatusReport) Synchronized() bool {
	return s.Fault == "" && s.Peer != nil && s.Peer.Fault == "" && s.Peer.Role != s.Role && s.Lag == 0 && !s.Diverged &&
		(s.Role != server.RoleActive || s.Synced) && s.Digest == s.PeerDigest
}

func (r *Replica) status(ctx context.Context, a StatusArgs) (any, error) {
	st, synced, err := r.State(ctx)
	if err != nil {
		return nil, err
	}
	st.Fault = r.writeProbe.Fault(ctx, r.store, time.Now())
	report := StatusReport{Position: st, Synced: synced}
	r.mu.Lock()
	if r.syncErr != nil {
		report.Why = r.syncErr.Error()
	}
	r.mu.Unlock()
	if report.Peer, err = r.exchangePositions(ctx, Position{Role: server.RolePassive}); err != nil {
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

// diverged compares the heads of the two logs, at the passive server. The active server knows whether the
// two are synchronized.
func (r *Replica) diverged(ctx context.Context, report *StatusReport) error {
	if report.Role != server.RolePassive || report.Peer == nil || report.Peer.Role != server.RoleActive ||
		report.Lag > 0 {
		return nil
	}
	had, err := r.store.Has(ctx, report.Peer.Head)
	if err != nil || had {
		return err
	}
	report.Diverged = true
	r.mu.Lock()
	compared := r.compared
	r.mu.Unlock()
	report.Why = "the active Key Trustee Server does not have the changes that this server has"
	if compared.copyHead == report.Peer.Head && !compared.copyLacks.None() {
		report.Why = fmt.Sprintf("the active Key Trustee Server lacks records that this server holds, %s; its copy "+
			"was refused: "+
			"%s", &compared.copyLacks, curePassive)
	}
	return nil
}

// curePassive is the cure at a passive server that holds records that the active server lacks.
const curePassive = "if this server's store is the right one, run claviger trustee promote here; if the other's is, " +
	"run claviger trustee resync --drop there, which drops the records that only this server holds"

// forgetIncoming removes the pages of a copy that is arriving.
func (r *Replica) forgetIncoming() {
	r.incomingMu.Lock()
	defer r.incomingMu.Unlock()
	if r.incoming != nil {
		r.incoming.drop()
		r.incoming = nil
	}
}

// drop removes the spool file, which no other process uses.
func (i *incoming) drop() {
	_ = i.file.Close()
	_ = os.Remove(i.file.Name())
}
