package replica

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// Arguments and results of the verbs of an operator.
type (
	// StatusArgs are the arguments of trustee.VerbStatus. Digest requests the digests of both stores,
	// which reads all their records.
	StatusArgs struct {
		Digest bool `json:"digest"`
	}
	// PromoteArgs are the arguments of trustee.VerbPromote. With Force, the server becomes active even if
	// the other server does not answer, or holds records that this server lacks.
	PromoteArgs struct {
		Force bool `json:"force"`
	}
	// AloneArgs are the arguments of trustee.VerbAlone. With On, the active server works without the
	// passive server until the passive server has every change again.
	AloneArgs struct {
		On bool `json:"on"`
	}
	// ResyncArgs are the arguments of trustee.VerbResync. With Drop, the passive server loses the records
	// that the active server lacks.
	ResyncArgs struct {
		Drop bool `json:"drop"`
	}
	// ResyncResult is the position of the active server after trustee.VerbResync. Dropped describes the
	// records that the passive server has lost, or is nil. Kept is the file on the passive server's host
	// that has them.
	ResyncResult struct {
		Position
		Dropped *Loss  `json:"dropped,omitempty"`
		Kept    string `json:"kept,omitempty"`
	}
)

type (
	appendArgs struct {
		Epoch   uint64  `json:"epoch"`
		Entries []Entry `json:"entries"`
	}
	entriesArgs struct {
		After Head `json:"after"`
	}
	// loadArgs is a page of a copy. The pages of a session come in order, from 0.
	loadArgs struct {
		Session string            `json:"session"`
		Page    int               `json:"page"`
		Epoch   uint64            `json:"epoch"`
		Head    Head              `json:"head"`
		Records []json.RawMessage `json:"records"`
		Last    bool              `json:"last"`
		// Drop makes the server load the copy even if its store holds records that the copy lacks.
		Drop bool `json:"drop,omitempty"`
		// Compare makes the server compare the copy with its store, and not load it.
		Compare bool `json:"compare,omitempty"`
	}
	// loadResult is the passive server's position after a copy. Lost describes the records that the copy
	// lacks. If Lost is not empty and Drop is false, the server refused the copy and changed nothing. Kept
	// is the file with the records that the copy has replaced.
	loadResult struct {
		Position
		Lost *Loss  `json:"lost,omitempty"`
		Kept string `json:"kept,omitempty"`
	}
	digestResult struct {
		Head   Head   `json:"head"`
		Digest string `json:"digest"`
	}
	yieldArgs struct {
		Epoch uint64 `json:"epoch"`
	}
	noArgs struct{}
)

// peerVerbs are the functions that handle requests with the signature of the identity that both servers share.
var peerVerbs = map[string]func(*Replica, context.Context, *trustee.Request) (any, error){
	trustee.VerbStatus: with((*Replica).status),
	trustee.VerbPromote: with(func(r *Replica, ctx context.Context, a PromoteArgs) (any, error) {
		return r.promote(ctx, a.Force)
	}),
	trustee.VerbAlone:      with((*Replica).alone),
	trustee.VerbResync:     with((*Replica).resync),
	trustee.VerbPeerHello:  with((*Replica).onHello),
	trustee.VerbPeerAppend: with((*Replica).onAppend),
	trustee.VerbPeerEntries: with(func(r *Replica, ctx context.Context, a entriesArgs) (any, error) {
		return r.store.Entries(ctx, a.After, pageEntries, pageBytes)
	}),
	trustee.VerbPeerLoad:   with((*Replica).onLoad),
	trustee.VerbPeerDigest: with(func(r *Replica, ctx context.Context, _ noArgs) (any, error) { return r.digest(ctx) }),
	trustee.VerbPeerYield:  with((*Replica).onYield),
	trustee.VerbPeerCompare: with(func(r *Replica, ctx context.Context, _ noArgs) (any, error) {
		_, err := r.send(ctx, loadArgs{Compare: true})
		return nil, err
	}),
}

// Do handles a request of the other server or of an operator.
func (r *Replica) Do(ctx context.Context, req *trustee.Request) (any, error) {
	do := peerVerbs[req.Verb]
	if do == nil {
		return nil, claviger.Errorf("replica.Do", claviger.Internal, "", "unknown verb %q", req.Verb)
	}
	return do(r, ctx, req)
}

// with returns a function that decodes the arguments of a request for f.
func with[A any](f func(*Replica, context.Context, A) (any, error)) func(*Replica, context.Context,
	*trustee.Request) (any, error) {
	return func(r *Replica, ctx context.Context, req *trustee.Request) (any, error) {
		var a A
		if err := req.ReadArgs(&a); err != nil {
			return nil, err
		}
		return f(r, ctx, a)
	}
}

// request sends a request to the peer.
func (r *Replica) request(ctx context.Context, limit time.Duration, verb string, args, into any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.peer.Request(ctx, verb, args, into)
}

// exchangePositions sends the peer this server's position, and returns the position of the peer.
func (r *Replica) exchangePositions(ctx context.Context, st Position) (*Position, error) {
	var p Position
	return &p, r.request(ctx, sendTimeout, trustee.VerbPeerHello, st, &p)
}

func (r *Replica) append(ctx context.Context, epoch uint64, list []Entry) (*Position, error) {
	var p Position
	return &p, r.request(ctx, sendTimeout, trustee.VerbPeerAppend, appendArgs{epoch, list}, &p)
}

func (r *Replica) peerDigest(ctx context.Context) (digestResult, error) {
	var d digestResult
	return d, r.request(ctx, wholeTimeout, trustee.VerbPeerDigest, noArgs{}, &d)
}

func (r *Replica) onHello(ctx context.Context, from Position) (any, error) {
	st, err := r.store.Position(ctx)
	if err == nil && from.Role == server.RoleActive && st.Role == server.RoleActive && from.Epoch > st.Epoch {
		if err = r.stepDown(ctx, from.Epoch); err == nil {
			st, err = r.store.Position(ctx)
		}
	}
	if err == nil && from.Role == server.RoleActive && st.Role == server.RolePassive {
		had, err := r.store.Has(ctx, from.Head)
		if err != nil {
			return nil, err
		}
		r.wasComplete.Store(had)
	}
	st.Fault = r.writeProbe.Fault(ctx, r.store, time.Now())
	return st, err
}

func (r *Replica) onAppend(ctx context.Context, a appendArgs) (any, error) {
	if err := r.store.Apply(ctx, server.RolePassive, a.Epoch, a.Entries); err != nil {
		r.writeProbe.Forget()
		return nil, err
	}
	return r.store.Position(ctx)
}

func (r *Replica) onYield(ctx context.Context, a yieldArgs) (any, error) {
	st, err := r.store.UpdatePosition(ctx, func(st *Position) error {
		if a.Epoch <= st.Epoch {
			return claviger.Errorf("replica.yield", claviger.Denied, "", "epoch %d is over: the epoch is now %d",
				a.Epoch, st.Epoch)
		}
		st.Role, st.Epoch, st.Alone = server.RolePassive, a.Epoch, false
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.forget()
	r.log.Warn("this Key Trustee Server is passive from now on: the other is being promoted", "epoch", a.Epoch)
	return st, nil
}

// incomingFiles are the names of the files for copies that are arriving.
const incomingFiles = ".incoming-*"

// incoming is a copy that is arriving.
type incoming struct {
	session string
	next    int
	file    *os.File
}

// onLoad collects the pages of a copy, and loads the copy when it is complete. It refuses a copy that
// lacks records of this store, unless an operator of the active server passed --drop. It first saves the
// records of this store in a file beside the store.
func (r *Replica) onLoad(ctx context.Context, a loadArgs) (any, error) {
	const op = "replica.load"
	st, err := r.store.Position(ctx)
	if err == nil && !a.Compare {
		err = st.MayApply(op, server.RolePassive, a.Epoch)
	}
	if err != nil {
		return nil, err
	}
	r.incomingMu.Lock()
	defer r.incomingMu.Unlock()
	if err := r.collect(&a); err != nil || !a.Last {
		return nil, err
	}
	in := r.incoming
	r.incoming = nil
	defer in.drop()
	lost, held, err := r.compare(ctx, in, comparison{copyHead: a.Head, storeHead: st.Head})
	if err != nil {
		return nil, err
	}
	if a.Compare {
		return loadResult{Position: st, Lost: lost}, nil
	}
	if !lost.None() && !a.Drop {
		r.log.Error("the active Key Trustee Server has sent a copy that lacks records that this server holds; the "+
			"copy was refused, and nothing was changed", "lost", lost, "seq", st.Head.Seq, "of the copy", a.Head.Seq)
		return loadResult{Position: st, Lost: lost}, nil
	}
	res := loadResult{Lost: lost}
	if held {
		if res.Kept, err = r.store.Save(ctx, "dropped"); err != nil {
			return nil, err
		}
		r.log.Warn("this Key Trustee Server gets a whole copy from the active one; a file has its records before the "+
			"copy (claviger trustee recover): remove the file when you do not need them", "file", res.Kept, "seq",
			st.Head.Seq, "dropped", lost, "acknowledged alone from", st.Unshared)
	}
	next, err := in.records()
	if err != nil {
		return nil, err
	}
	if err := r.store.Load(ctx, a.Epoch, a.Head, next); err != nil {
		return nil, err
	}
	res.Position, err = r.store.Position(ctx)
	return res, err
}

// collect adds a page to the copy that is arriving. The first page begins a new copy. The caller
// holds r.incomingMu.
func (r *Replica) collect(a *loadArgs) error {
	const op = "replica.load"
	if a.Page == 0 {
		if r.incoming != nil {
			r.incoming.drop()
			r.incoming = nil
		}
		f, err := os.CreateTemp(r.spool, incomingFiles) // mode 0600
		if err != nil {
			return claviger.E(op, claviger.Unavailable, "", err)
		}
		r.incoming = &incoming{session: a.Session, file: f}
	}
	in := r.incoming
	if in == nil || in.session != a.Session || in.next != a.Page {
		return claviger.Errorf(op, claviger.Invalid, "", "page %d of a copy does not follow the pages before it",
			a.Page)
	}
	for _, line := range a.Records {
		if _, err := in.file.Write(append(line, '\n')); err != nil {
			return claviger.E(op, claviger.Unavailable, "", err)
		}
	}
	in.next++
	return nil
}

// records returns a function that reads the copy from its start, until io.EOF.
func (i *incoming) records() (func() (server.Record, error), error) {
	const op = "replica.load"
	if _, err := i.file.Seek(0, io.SeekStart); err != nil {
		return nil, claviger.E(op, claviger.Unavailable, "", err)
	}
	dec := json.NewDecoder(bufio.NewReader(i.file))
	return func() (server.Record, error) {
		var rec server.Record
		err := dec.Decode(&rec)
		if err != nil && !errors.Is(err, io.EOF) {
			err = claviger.Errorf(op, claviger.Invalid, "", "a record of the copy cannot be read: %w", err)
		}
		return rec, err
	}, nil
}

// compare compares this server's store with a copy, and stores the result in r.compared, for promote and
// status. lost is what the copy lacks, or nil. held is true if the store holds any record.
func (r *Replica) compare(ctx context.Context, in *incoming, c comparison) (lost *Loss, held bool, err error) {
	now := time.Now()
	copied, mine := holdings{}, holdings{}
	each := func(f func(server.Record)) error {
		next, err := in.records()
		for err == nil {
			var rec server.Record
			if rec, err = next(); err == nil {
				f(rec)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if err := each(func(rec server.Record) { copied.add(rec, now) }); err != nil {
		return nil, false, err
	}
	lost = new(Loss)
	err = r.store.Export(ctx, func(rec server.Record) error {
		held = true
		mine.add(rec, now)
		copied.lacks(rec, now, lost)
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	if err := each(func(rec server.Record) { mine.lacks(rec, now, &c.storeLacks) }); err != nil {
		return nil, false, err
	}
	c.copyLacks = *lost
	r.mu.Lock()
	r.compared = c
	r.mu.Unlock()
	if lost.None() {
		lost = nil
	}
	return lost, held, nil
}

// alone lets the active server work without the passive server, or ends this.
func (r *Replica) alone(ctx context.Context, a AloneArgs) (any, error) {
	const op = "replica.alone"
	r.op.Lock()
	defer r.op.Unlock()
	r.mu.Lock()
	synced := r.synced
	r.mu.Unlock()
	if a.On && synced {
		if st, err := r.store.Position(ctx); err == nil && st.Role == server.RoleActive {
			if _, err := r.exchangePositions(ctx, st); err == nil {
				return nil, claviger.Errorf(op, claviger.Invalid, "", "the passive Key Trustee Server answers and has "+
					"every change, so this server need not work alone; nothing was changed")
			}
		}
	}
	st, err := r.store.UpdatePosition(ctx, func(st *Position) error {
		if st.Role != server.RoleActive {
			return claviger.Errorf(op, claviger.Invalid, "", "this Key Trustee Server is passive: only an active one "+
				"works alone; claviger trustee promote makes this server active")
		}
		st.Alone = a.On
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.synced = false
	if r.syncErr == nil {
		r.syncErr = fmt.Errorf("this server must reach the passive one first")
	}
	r.mu.Unlock()
	r.unlearn()
	r.wake()
	r.log.Warn("an operator has decided whether this Key Trustee Server works without the passive one", "alone", a.On)
	return st, nil
}

// resync brings the passive server up to date now. If a.Drop is true, the passive server loses the
// records that this server lacks.
func (r *Replica) resync(ctx context.Context, a ResyncArgs) (any, error) {
	r.op.Lock()
	defer r.op.Unlock()
	st, err := r.store.Position(ctx)
	if err != nil {
		return nil, err
	}
	if st.Role != server.RoleActive {
		return nil, claviger.Errorf("replica.resync", claviger.Invalid, "",
			"this Key Trustee Server is passive: claviger trustee resync is for the active one")
	}
	r.refused = nil
	r.loaded = loadResult{}
	err = r.sync(ctx, a.Drop)
	r.report(err)
	if err != nil {
		return nil, err
	}
	res := ResyncResult{Dropped: r.loaded.Lost, Kept: r.loaded.Kept}
	res.Position, err = r.store.Position(ctx)
	return res, err
}
