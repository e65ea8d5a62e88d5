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

// syncRounds bounds how often the passive is brought up to date in one go: who
// makes changes faster than they can be sent is looked after again later.
const syncRounds = 10_000

// sync brings the passive up to date and proves that it is equal. discard: what
// the passive has acknowledged without this server may be dropped; a copy stays
// beside its store. It holds r.op.
func (r *Replica) sync(ctx context.Context, discard bool) error {
	const op = "replica.sync"
	st, err := r.store.Standing(ctx)
	if err != nil {
		return err
	}
	p, err := r.hello(ctx, st)
	if err != nil {
		return err
	}
	switch {
	case p.Epoch > st.Epoch:
		return r.stepDown(ctx, p.Epoch)
	case p.Role == server.RoleActive:
		return claviger.Errorf(op, claviger.Invalid, "", "both Key Trustee Servers are active, in epoch %d, this one at change %d and the other at change %d: neither follows the other; claviger trustee promote --force at the one whose deposits count makes the other passive", p.Epoch, st.Head.Seq, p.Head.Seq)
	}
	if err := peerFault(op, p); err != nil {
		return err
	}
	if p, err = r.catchUp(ctx, *p, discard); err != nil {
		return err
	}
	alone := false
	// From now on no change is made that the passive lacks.
	if _, err := r.store.Stand(ctx, func(st *Standing) error { alone, st.Alone = st.Alone, false; return nil }); err != nil {
		return err
	}
	head, err := r.prove(ctx, *p, discard)
	if err == nil {
		_, err = r.store.Stand(ctx, func(st *Standing) error {
			if st.Role != server.RoleActive || st.Head != head {
				return claviger.Errorf(op, claviger.Unavailable, "", "there was one change more, or this server is the active one no more")
			}
			st.Unshared = 0
			return nil
		})
	}
	if err != nil {
		if alone { // it remains as the operator has said
			_, again := r.store.Stand(ctx, func(st *Standing) error { st.Alone = st.Role == server.RoleActive; return nil })
			err = errors.Join(err, again)
		}
		return err
	}
	r.mu.Lock()
	was := r.synced
	r.synced, r.peerHead, r.equal, r.lacking = true, head, true, false
	r.mu.Unlock()
	if !was {
		r.log.Info("the passive Key Trustee Server is equal, by digest", "seq", head.Seq, "alone no more", alone)
	}
	return nil
}

// stepDown: the other server was made active in this one's place.
func (r *Replica) stepDown(ctx context.Context, epoch uint64) error {
	_, err := r.store.Stand(ctx, func(st *Standing) error {
		if epoch > st.Epoch {
			st.Role, st.Epoch, st.Alone = server.RolePassive, epoch, false
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.yielded()
	r.log.Warn("this Key Trustee Server is passive from now on: the other was made active in its place", "epoch", epoch)
	return nil
}

// yielded forgets what this server knew as the active one.
func (r *Replica) yielded() {
	r.mu.Lock()
	r.synced, r.equal, r.lacking = false, false, false
	r.mu.Unlock()
	r.abreastOnce.Store(false)
	r.known.Store(nil)
}

// catchUp sends what the passive lacks, or fetches what it has ahead, until both
// logs end at the same.
func (r *Replica) catchUp(ctx context.Context, p Standing, discard bool) (*Standing, error) {
	for range syncRounds {
		st, err := r.store.Standing(ctx)
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
		past, err := r.ofOurPast(ctx, p.Head)
		if err != nil {
			return nil, err
		}
		if next, err = r.load(ctx, st, p, discard || past); err != nil {
			return nil, err
		}
		p = *next
	}
	return nil, claviger.Errorf("replica.catchUp", claviger.Unavailable, "", "changes are made faster than the passive Key Trustee Server takes them")
}

// ofOurPast tells whether a passive that stands at h has acknowledged nothing that
// this store lacks: h is in this store's log, whose entries after it are dropped, or
// h is a change that this server has refused since the passive's answer did not come.
func (r *Replica) ofOurPast(ctx context.Context, h Head) (bool, error) {
	r.mu.Lock()
	doubt := r.doubt
	r.mu.Unlock()
	if h == doubt && doubt != (Head{}) {
		return true, nil
	}
	had, err := r.store.Has(ctx, h)
	if err != nil || !had {
		return false, err
	}
	// Where the log goes on from there, the passive was sent what follows and could not
	// take it: what it holds did not come about by this log.
	_, err = r.store.Entries(ctx, h, 1, 1)
	if errors.Is(err, ErrChain) {
		return true, nil
	}
	return false, err
}

// follow has one log follow the other by a page: the passive this one, or this one
// the passive, which may have a change that it has told nobody of, since its
// answer was lost. Kind Invalid where neither can.
func (r *Replica) follow(ctx context.Context, st, p Standing) (*Standing, error) {
	list, err := r.store.Entries(ctx, p.Head, pageEntries, pageBytes)
	if err == nil {
		return r.append(ctx, st.Epoch, list)
	}
	if !errors.Is(err, ErrChain) {
		return nil, err
	}
	return &p, r.fetch(ctx, st, server.RoleActive)
}

// fetch applies one page of what the peer has more than st.
func (r *Replica) fetch(ctx context.Context, st Standing, as server.Role) error {
	var list []Entry
	if err := r.ask(ctx, shipTime, trustee.VerbPeerEntries, entriesArgs{st.Head}, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return claviger.E("replica.fetch", claviger.Invalid, "", ErrChain)
	}
	return r.store.Apply(ctx, as, st.Epoch, list)
}

// prove demands that both hold the same by digest; where they do not, the passive
// gets all anew, once.
func (r *Replica) prove(ctx context.Context, p Standing, discard bool) (Head, error) {
	const op = "replica.prove"
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
		theirs, err := r.peerDigest(ctx)
		switch {
		case err != nil:
			return Head{}, err
		case theirs.Head != mine.Head: // orgtool was at work
			p.Head = theirs.Head
			continue
		case theirs.Digest == mine.Digest:
			return mine.Head, nil
		}
		r.log.Error("the two Key Trustee Servers have made the same changes and do not hold the same: the passive gets all anew", "seq", mine.Head.Seq, "digest", mine.Digest, "passive", theirs.Digest)
		if round > 0 {
			break
		}
		st, err := r.store.Standing(ctx)
		if err != nil {
			return Head{}, err
		}
		next, err := r.load(ctx, st, p, discard)
		if err != nil {
			return Head{}, err
		}
		p = *next
	}
	return Head{}, claviger.Errorf(op, claviger.Unavailable, "", "the passive Key Trustee Server could not be made equal by digest")
}

func (r *Replica) digest(ctx context.Context) (digestResult, error) {
	var res digestResult
	var d server.Digester
	err := r.store.Snapshot(ctx, func(h Head) error { res.Head = h; return nil }, d.Add)
	res.Digest = d.Sum()
	return res, err
}

// refusedFor is how long a copy that the passive has refused is not sent again, where
// the passive still stands at the same.
const refusedFor = time.Minute

// load gives the passive a whole copy. The passive refuses it where it holds what the
// copy lacks, unless drop says that this may be dropped. The caller holds r.op.
func (r *Replica) load(ctx context.Context, st, was Standing, drop bool) (*Standing, error) {
	const op = "replica.load"
	if no := r.refused; !drop && no.err != nil && no.theirs == was.Head && (no.mine == st.Head || time.Since(no.at) < refusedFor) {
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
		err := claviger.Errorf(op, claviger.Invalid, "", "the passive Key Trustee Server holds what this one lacks, %s%s; nothing was changed. Where the passive's store is the right one, as after this one's was lost or restored from an older backup, claviger trustee promote there; where this one's is, claviger trustee resync --drop here drops that, and a copy stays beside the passive's store", res.Lost, alone)
		r.refused = refusal{mine: st.Head, theirs: was.Head, at: time.Now(), err: err}
		r.mu.Lock()
		r.lacking = true
		r.mu.Unlock()
		r.known.Store(nil)
		return nil, err
	}
	r.refused, r.dropped = refusal{}, *res
	r.log.Info("the passive Key Trustee Server has the copy", "took", time.Since(begun).Round(time.Millisecond))
	return &res.Standing, nil
}

// send sends the peer a copy, of one moment, in pages.
func (r *Replica) send(ctx context.Context, a loadArgs) (*loadResult, error) {
	a.Session = trustee.NewUUID()
	size := 0
	page := func(into any) error {
		err := r.ask(ctx, longTime, trustee.VerbPeerLoad, a, into)
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

// promote makes the passive active. It first takes over what the active has more;
// with force it does so only as far as it can.
func (r *Replica) promote(ctx context.Context, force bool) (*Standing, error) {
	const op = "replica.promote"
	r.op.Lock()
	defer r.op.Unlock()
	st, err := r.store.Standing(ctx)
	if err != nil {
		return nil, err
	}
	epoch, all := st.Epoch+1, false
	p, err := r.hello(ctx, Standing{Role: server.RolePassive})
	switch {
	case err != nil && !force:
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server does not answer: whether it has acknowledged changes alone, which this one lacks, is not known; where an operator knows that it has not, or that it is lost: --force (%w)", err)
	case err == nil:
		epoch = max(st.Epoch, p.Epoch) + 1
		if st.Role == server.RoleActive && (p.Role != server.RoleActive || p.Epoch < st.Epoch) {
			return &st, nil // it is that already
		}
		err := r.takeOver(ctx, epoch)
		if all = err == nil; !all && !force {
			return nil, err
		} else if !all {
			r.log.Warn("this Key Trustee Server becomes active without all that the other has: claviger trustee resync --drop, once both run, drops that", "err", err)
		}
	}
	st, err = r.store.Stand(ctx, func(st *Standing) error {
		if st.Epoch >= epoch {
			return claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server has just been promoted, to epoch %d", st.Epoch)
		}
		st.Role, st.Epoch, st.Alone = server.RoleActive, epoch, false
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.synced, r.why = false, fmt.Errorf("this server has just been promoted")
	r.equal, r.lacking = all, false
	r.mu.Unlock()
	r.known.Store(nil)
	r.wake()
	r.log.Warn("this Key Trustee Server is active from now on", "epoch", epoch)
	return &st, nil
}

// takeOver fetches what the active has, has it yield, and fetches the rest. All
// that it has acknowledged must be here then.
func (r *Replica) takeOver(ctx context.Context, epoch uint64) error {
	for yielded := false; ; {
		p, err := r.hello(ctx, Standing{Role: server.RolePassive})
		if err != nil {
			return err
		}
		for range syncRounds {
			st, err := r.store.Standing(ctx)
			if err != nil {
				return err
			}
			if st.Head == p.Head {
				break
			}
			if _, err = r.store.Entries(ctx, p.Head, 1, 1); err == nil {
				break // it has no more than this one
			}
			if err := r.fetch(ctx, st, st.Role); claviger.Is(err, claviger.Invalid) {
				if err := r.mayPass(ctx, p); err != nil {
					return err
				}
				break
			} else if err != nil {
				return err
			}
			if p, err = r.hello(ctx, Standing{Role: server.RolePassive}); err != nil {
				return err
			}
		}
		if yielded {
			return nil
		}
		if err := r.ask(ctx, shipTime, trustee.VerbPeerYield, yieldArgs{epoch}, nil); err != nil {
			return err
		}
		yielded = true
	}
}

// mayPass is nil where this server may become active without the history of the
// other, which holds nothing that this one lacks.
func (r *Replica) mayPass(ctx context.Context, p *Standing) error {
	const op = "replica.takeOver"
	if err := r.ask(ctx, longTime, trustee.VerbPeerCompare, none{}, nil); err != nil {
		return err
	}
	r.mu.Lock()
	offer := r.offer
	r.mu.Unlock()
	switch {
	case offer.head != p.Head:
		return claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server has changed while the two were compared: try again")
	case !offer.more.None():
		return claviger.Errorf(op, claviger.Invalid, "", "the other Key Trustee Server holds what this one lacks, %s, and this one cannot follow its changes. claviger trustee resync there brings this one up to date, unless that loses something; claviger trustee promote --force here, and claviger trustee resync --drop afterwards, drops it, and a copy stays beside the other's store", &offer.more)
	}
	return nil
}
