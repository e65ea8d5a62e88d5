package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// syncRounds is how many pages one synchronization sends at most. If changes are made faster than they
// can be sent, the next synchronization continues.
var syncRounds = 10_000 // fewer in tests

// sync brings the passive server up to date and proves by digest that it is equal. If discard is true,
// the passive server loses the records that it acknowledged without this server; a copy of them stays
// beside its store. The caller holds r.op.
func (r *Replica) sync(ctx context.Context, discard bool) error {
	const op = "replica.sync"
	st, err := r.store.Position(ctx)
	if err != nil {
		return err
	}
	p, err := r.exchangePositions(ctx, st)
	if err != nil {
		return err
	}
	switch {
	case p.Epoch > st.Epoch:
		return r.stepDown(ctx, p.Epoch)
	case p.Role == server.RoleActive:
		return claviger.Errorf(op, claviger.Invalid, "", "both Key Trustee Servers are active, in epoch %d, this "+
			"server "+
			"at change %d and the other at change %d: neither follows the other; claviger trustee promote --force at "+
			"the one whose deposits you want to keep makes the other passive", p.Epoch, st.Head.Seq, p.Head.Seq)
	}
	if err := peerFault(op, p); err != nil {
		return err
	}
	if p, err = r.catchUp(ctx, *p, discard); err != nil {
		return err
	}
	alone := false
	// From now on, this server makes no change that the passive server lacks.
	if _, err := r.store.UpdatePosition(ctx,
		func(st *Position) error { alone, st.Alone = st.Alone, false; return nil }); err != nil {
		return err
	}
	head, err := r.compareStores(ctx, *p, discard)
	if err == nil {
		_, err = r.store.UpdatePosition(ctx, func(st *Position) error {
			if st.Role != server.RoleActive || st.Head != head {
				return claviger.Errorf(op, claviger.Unavailable, "", "another change was made, or this server is not "+
					"the active one any more")
			}
			st.Unshared = 0
			return nil
		})
	}
	if err != nil {
		if alone { // the operator's decision stays in force
			_, again := r.store.UpdatePosition(ctx,
				func(st *Position) error { st.Alone = st.Role == server.RoleActive; return nil })
			err = errors.Join(err, again)
		}
		return err
	}
	r.mu.Lock()
	r.synced, r.peerHead, r.equal, r.lacking = true, head, true, false
	r.mu.Unlock()
	r.log.Info("the passive Key Trustee Server is equal, by digest", "seq", head.Seq, "was alone", alone)
	return nil
}

// stepDown makes this server passive, after the other server was promoted.
func (r *Replica) stepDown(ctx context.Context, epoch uint64) error {
	_, err := r.store.UpdatePosition(ctx, func(st *Position) error {
		if epoch > st.Epoch {
			st.Role, st.Epoch, st.Alone = server.RolePassive, epoch, false
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.forget()
	r.log.Warn("this Key Trustee Server is passive from now on: the other was made active in its place", "epoch", epoch)
	return nil
}

// forget clears what this server knew as the active one.
func (r *Replica) forget() {
	r.mu.Lock()
	r.synced, r.equal, r.lacking = false, false, false
	r.mu.Unlock()
	r.wasComplete.Store(false)
	r.unlearn()
}

// catchUp sends the changes that the passive server lacks, or fetches the changes that only the passive
// server has, until both logs end at the same head.
func (r *Replica) catchUp(ctx context.Context, p Position, discard bool) (*Position, error) {
	for range syncRounds {
		st, err := r.store.Position(ctx)
		if err != nil {
			return nil, err
		}
		if st.Head == p.Head {
			return &p, nil
		}
		next, err := r.follow(ctx, st, p)
		if err == nil {
			p = *next
			continue
		}
		if !claviger.Is(err, claviger.Invalid) {
			return nil, err
		}
		past, err := r.hasNothingNew(ctx, p.Head)
		if err != nil {
			return nil, err
		}
		if next, err = r.load(ctx, st, p, discard || past); err != nil {
			return nil, err
		}
		p = *next
	}
	return nil, claviger.Errorf("replica.catchUp", claviger.Unavailable, "",
		"changes are made faster than the passive Key Trustee Server commits them")
}

// hasNothingNew reports whether a passive server whose log ends at h has acknowledged nothing that this store
// lacks. That is true if h is in this store's log, which has lost the next entries since, or if h is the
// change that this server refused because the passive server did not answer. It is false if the passive
// server, with its log at h, refused a copy. The caller holds r.op.
func (r *Replica) hasNothingNew(ctx context.Context, h Head) (bool, error) {
	if r.refused != nil && r.refused.peer == h {
		return false, nil
	}
	r.mu.Lock()
	unanswered := r.unanswered
	r.mu.Unlock()
	if h == unanswered && unanswered != (Head{}) {
		return true, nil
	}
	had, err := r.store.Has(ctx, h)
	if err != nil || !had {
		return false, err
	}
	// If the log has the entries after h, the passive server got them and could not apply them, so its
	// records were not made by this log.
	_, err = r.store.Entries(ctx, h, 1, 1)
	if errors.Is(err, ErrChain) {
		return true, nil
	}
	return false, err
}

// follow adds a page of entries to the passive server's log, or to this server's log, because the passive
// server may have committed a change whose answer was lost. Kind Invalid if neither log follows the
// other.
func (r *Replica) follow(ctx context.Context, st, p Position) (*Position, error) {
	list, err := r.store.Entries(ctx, p.Head, pageEntries, pageBytes)
	if err == nil {
		return r.append(ctx, st.Epoch, list)
	}
	if !errors.Is(err, ErrChain) {
		return nil, err
	}
	return &p, r.fetch(ctx, st, server.RoleActive)
}

// fetch applies one page of the entries that the peer has after st.
func (r *Replica) fetch(ctx context.Context, st Position, as server.Role) error {
	var list []Entry
	if err := r.request(ctx, sendTimeout, trustee.VerbPeerEntries, entriesArgs{st.Head}, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return claviger.E("replica.fetch", claviger.Invalid, "", ErrChain)
	}
	return r.store.Apply(ctx, as, st.Epoch, list)
}

// compareStores compares both stores by digest. If they differ, it sends the passive server a whole copy, once.
func (r *Replica) compareStores(ctx context.Context, p Position, discard bool) (Head, error) {
	const op = "replica.compareStores"
	for round := range 3 {
		now, err := r.catchUp(ctx, p, discard)
		if err != nil {
			return Head{}, err
		}
		p = *now
		mine, err := r.digest(ctx)
		if err != nil {
			return Head{}, err
		}
		peer, err := r.peerDigest(ctx)
		switch {
		case err != nil:
			return Head{}, err
		case peer.Head != mine.Head: // orgtool has made a change
			p.Head = peer.Head
			continue
		case peer.Digest == mine.Digest:
			return mine.Head, nil
		}
		r.log.Error("the two Key Trustee Servers have made the same changes and are not equal: the passive one gets "+
			"a whole copy", "seq", mine.Head.Seq, "digest", mine.Digest, "passive", peer.Digest)
		if round > 0 {
			break
		}
		st, err := r.store.Position(ctx)
		if err != nil {
			return Head{}, err
		}
		next, err := r.load(ctx, st, p, discard)
		if err != nil {
			return Head{}, err
		}
		p = *next
	}
	return Head{}, claviger.Errorf(op, claviger.Unavailable, "", "the passive Key Trustee Server could not be made "+
		"equal by digest")
}

func (r *Replica) digest(ctx context.Context) (digestResult, error) {
	var res digestResult
	var d server.Digester
	err := r.store.Snapshot(ctx, func(h Head) error { res.Head = h; return nil }, d.Add)
	res.Digest = d.Sum()
	return res, err
}

// refusedFor is how long load does not repeat a copy that the passive server refused, if the passive
// server has not changed.
const refusedFor = time.Minute

// load sends the passive server a whole copy. The passive server refuses the copy if the copy lacks
// records of its store, unless drop is true. The caller holds r.op.
func (r *Replica) load(ctx context.Context, st, was Position, drop bool) (*Position, error) {
	const op = "replica.load"
	if no := r.refused; no != nil && no.peer == was.Head &&
		(no.mine == st.Head || time.Since(no.at) < refusedFor) {
		return nil, no.err
	}
	r.log.Warn("the passive Key Trustee Server gets a whole copy")
	begun := time.Now()
	res, err := r.send(ctx, loadArgs{Epoch: st.Epoch, Drop: drop})
	if err != nil {
		return nil, err
	}
	if !drop && !res.Lost.None() {
		alone := ""
		if was.Unshared != 0 {
			alone = fmt.Sprintf(" (it has acknowledged changes alone, from %d on)", was.Unshared)
		}
		err := claviger.Errorf(op, claviger.Invalid, "", "the passive Key Trustee Server holds records that this "+
			"server lacks, %s%s; nothing was changed. If the passive's store is the right one (this server's was "+
			"lost, or restored from an older backup), run claviger trustee promote there. If this server's store is "+
			"the right one, run claviger trustee resync --drop here: it drops those records, and a copy of them "+
			"stays beside the passive's store", res.Lost, alone)
		r.refused = &refusedCopy{mine: st.Head, peer: was.Head, at: time.Now(), err: err}
		r.mu.Lock()
		r.lacking = true // report calls unlearn
		r.mu.Unlock()
		return nil, err
	}
	r.refused, r.loaded = nil, *res
	r.log.Info("the passive Key Trustee Server has the copy", "took", time.Since(begun).Round(time.Millisecond))
	return &res.Position, nil
}

// send sends the peer a copy of all records at one moment, in pages.
func (r *Replica) send(ctx context.Context, a loadArgs) (*loadResult, error) {
	a.Session = trustee.NewUUID()
	size := 0
	page := func(into any) error {
		err := r.request(ctx, wholeTimeout, trustee.VerbPeerLoad, a, into)
		a.Page, a.Records, size = a.Page+1, nil, 0
		return err
	}
	err := r.store.Snapshot(ctx, func(h Head) error { a.Head = h; return nil }, func(rec server.Record) error {
		line, err := json.Marshal(rec)
		if err != nil {
			return claviger.E("replica.send", claviger.Internal, "", err)
		}
		if size += len(line); size > pageBytes && len(a.Records) > 0 {
			if err := page(nil); err != nil {
				return err
			}
			size = len(line)
		}
		a.Records = append(a.Records, line)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.Last = true
	var res loadResult
	return &res, page(&res)
}

// promote makes the passive server active. It first fetches the changes that only the active server has.
// If that fails and force is true, it continues without them.
func (r *Replica) promote(ctx context.Context, force bool) (*Position, error) {
	const op = "replica.promote"
	r.op.Lock()
	defer r.op.Unlock()
	st, err := r.store.Position(ctx)
	if err != nil {
		return nil, err
	}
	epoch, all := st.Epoch+1, false
	p, err := r.exchangePositions(ctx, Position{Role: server.RolePassive})
	switch {
	case err != nil && !force:
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server does not answer: "+
			"it may have acknowledged changes alone, which this server lacks; if you know that it has none, or that "+
			"it is lost for good, add --force (%w)", err)
	case err == nil:
		epoch = max(st.Epoch, p.Epoch) + 1
		if st.Role == server.RoleActive && (p.Role != server.RoleActive || p.Epoch < st.Epoch) {
			return &st, nil // it is active already
		}
		err := r.takeOver(ctx, epoch)
		if all = err == nil; !all && !force {
			return nil, err
		} else if !all {
			r.log.Warn("this Key Trustee Server becomes active without some records of the other: claviger trustee "+
				"resync --drop, when both run, drops those records", "err", err)
		}
	}
	st, err = r.store.UpdatePosition(ctx, func(st *Position) error {
		if st.Epoch >= epoch {
			return claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server has just been "+
				"promoted, to epoch %d", st.Epoch)
		}
		st.Role, st.Epoch, st.Alone = server.RoleActive, epoch, false
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.synced, r.syncErr = false, fmt.Errorf("this server has just been promoted")
	r.equal, r.lacking = all, false
	r.mu.Unlock()
	r.unlearn()
	r.wake()
	r.log.Warn("this Key Trustee Server is active from now on", "epoch", epoch)
	return &st, nil
}

// takeOver fetches the changes of the active server, makes it passive, and fetches the last changes. If
// there is no error, this server has everything that the active server has acknowledged.
func (r *Replica) takeOver(ctx context.Context, epoch uint64) error {
	for yielded := false; ; {
		p, err := r.exchangePositions(ctx, Position{Role: server.RolePassive})
		if err != nil {
			return err
		}
		for range syncRounds {
			st, err := r.store.Position(ctx)
			if err != nil {
				return err
			}
			if st.Head == p.Head {
				break
			}
			if _, err = r.store.Entries(ctx, p.Head, 1, 1); err == nil {
				break // the active server has no changes that this server lacks
			}
			if err := r.fetch(ctx, st, st.Role); claviger.Is(err, claviger.Invalid) {
				if err := r.mayTakeOver(ctx, p); err != nil {
					return err
				}
				break
			} else if err != nil {
				return err
			}
			if p, err = r.exchangePositions(ctx, Position{Role: server.RolePassive}); err != nil {
				return err
			}
		}
		if yielded {
			return nil
		}
		if err := r.request(ctx, sendTimeout, trustee.VerbPeerYield, yieldArgs{epoch}, nil); err != nil {
			return err
		}
		yielded = true
	}
}

// mayTakeOver returns nil if this server may become active although its log does not follow the log of
// the other server, because the other server holds no record that this server lacks.
func (r *Replica) mayTakeOver(ctx context.Context, p *Position) error {
	const op = "replica.takeOver"
	if err := r.request(ctx, wholeTimeout, trustee.VerbPeerCompare, noArgs{}, nil); err != nil {
		return err
	}
	r.mu.Lock()
	compared := r.compared
	r.mu.Unlock()
	switch {
	case compared.copyHead != p.Head:
		return claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server has changed while the two "+
			"were compared: try again")
	case !compared.storeLacks.None():
		return claviger.Errorf(op, claviger.Invalid, "", "the other Key Trustee Server holds records that this "+
			"server lacks, %s, and this server cannot follow its changes. claviger trustee resync there brings this "+
			"server up to date, unless that loses something; claviger trustee promote --force here, and "+
			"claviger trustee resync --drop afterwards, drops those records, and a copy of them stays beside the "+
			"other's store", &compared.storeLacks)
	}
	return nil
}
