package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"claviger"
	"claviger/trustee"
)

// syncRounds bounds how often the passive is brought up to date in one go: who
// makes changes faster than they can be sent is looked after again later.
const syncRounds = 10_000

// sync brings the passive up to date and proves that it is equal. discard: what
// the passive has acknowledged without this server may be dropped; a copy stays
// beside its store. It holds r.op.
func (r *Replica) sync(ctx context.Context, discard bool) error {
	const op = "server.sync"
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
	case p.Role == RoleActive:
		return claviger.Errorf(op, claviger.Invalid, "", "both Key Trustee Servers are active, in epoch %d: neither follows the other; claviger trustee promote --force at the one that is to stay active makes the other passive", p.Epoch)
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
			if st.Role != RoleActive || st.Head != head {
				return claviger.Errorf(op, claviger.Unavailable, "", "there was one change more, or this server is the active one no more")
			}
			st.Unshared = 0
			return nil
		})
	}
	if err != nil {
		if alone { // it remains as the operator has said
			_, again := r.store.Stand(ctx, func(st *Standing) error { st.Alone = st.Role == RoleActive; return nil })
			err = errors.Join(err, again)
		}
		return err
	}
	r.mu.Lock()
	was := r.synced
	r.synced, r.peerHead = true, head
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
			st.Role, st.Epoch, st.Alone = RolePassive, epoch, false
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.synced = false
	r.mu.Unlock()
	r.log.Warn("this Key Trustee Server is passive from now on: the other was made active in its place", "epoch", epoch)
	return nil
}

// catchUp sends what the passive lacks, or fetches what it has ahead, until both
// logs end at the same.
func (r *Replica) catchUp(ctx context.Context, p Standing, discard bool) (*Standing, error) {
	const op = "server.catchUp"
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
		if p.Unshared != 0 && !discard {
			return nil, claviger.Errorf(op, claviger.Invalid, "", "the passive Key Trustee Server has acknowledged changes, from %d on, that this one does not have, and this one others: claviger trustee resync here drops those of the passive, of which a copy stays beside its store; claviger trustee promote --force there, and resync, drops those of this one", p.Unshared)
		}
		if next, err = r.load(ctx, st.Epoch); err != nil {
			return nil, err
		}
		p = *next
	}
	return nil, claviger.Errorf(op, claviger.Unavailable, "", "changes are made faster than the passive Key Trustee Server takes them")
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
	return &p, r.fetch(ctx, st, RoleActive)
}

// fetch applies one page of what the peer has more than st.
func (r *Replica) fetch(ctx context.Context, st Standing, as Role) error {
	var list []Entry
	if err := r.ask(ctx, shipTime, verbEntries, entriesArgs{st.Head}, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return claviger.E("server.fetch", claviger.Invalid, "", ErrChain)
	}
	return r.store.Apply(ctx, as, st.Epoch, list)
}

// prove demands that both hold the same by digest; where they do not, the passive
// gets all anew, once.
func (r *Replica) prove(ctx context.Context, p Standing, discard bool) (Head, error) {
	const op = "server.prove"
	for round := range 3 {
		if _, err := r.catchUp(ctx, p, discard); err != nil {
			return Head{}, err
		}
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
		next, err := r.load(ctx, p.Epoch)
		if err != nil {
			return Head{}, err
		}
		p = *next
	}
	return Head{}, claviger.Errorf(op, claviger.Unavailable, "", "the passive Key Trustee Server could not be made equal by digest")
}

func (r *Replica) digest(ctx context.Context) (digestResult, error) {
	var res digestResult
	var d Digester
	err := r.store.Snapshot(ctx, func(h Head) error { res.Head = h; return nil }, d.Add)
	res.Digest = d.Sum()
	return res, err
}

// load gives the passive a whole copy, of one moment.
func (r *Replica) load(ctx context.Context, epoch uint64) (*Standing, error) {
	a := loadArgs{Session: trustee.NewUUID(), Epoch: epoch}
	r.log.Warn("the passive Key Trustee Server gets a whole copy")
	size, begun := 0, time.Now()
	send := func(into any) error {
		err := r.ask(ctx, longTime, verbLoad, a, into)
		a.Page, a.Records, size = a.Page+1, nil, 0
		return err
	}
	err := r.store.Snapshot(ctx, func(h Head) error { a.Head = h; return nil }, func(rec Record) error {
		line, err := json.Marshal(rec)
		if err != nil {
			return claviger.E("server.load", claviger.Internal, "", err)
		}
		if size += len(line); size > pageBytes && len(a.Records) > 0 {
			if err := send(nil); err != nil {
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
	var p Standing
	if err := send(&p); err != nil {
		return nil, err
	}
	r.log.Info("the passive Key Trustee Server has the copy", "pages", a.Page, "took", time.Since(begun).Round(time.Millisecond))
	return &p, nil
}

// promote makes the passive active. It first takes over what the active has more;
// with force it does so only as far as it can.
func (r *Replica) promote(ctx context.Context, force bool) (*Standing, error) {
	const op = "server.promote"
	r.op.Lock()
	defer r.op.Unlock()
	st, err := r.store.Standing(ctx)
	if err != nil {
		return nil, err
	}
	epoch := st.Epoch + 1
	p, err := r.hello(ctx, Standing{Role: RolePassive})
	switch {
	case err != nil && !force:
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server does not answer: whether it has acknowledged changes alone, which this one lacks, is not known; where an operator knows that it has not, or that it is lost: --force (%w)", err)
	case err == nil:
		epoch = max(st.Epoch, p.Epoch) + 1
		if st.Role == RoleActive && (p.Role != RoleActive || p.Epoch < st.Epoch) {
			return &st, nil // it is that already
		}
		if err := r.takeOver(ctx, epoch); err != nil && !force {
			return nil, err
		} else if err != nil {
			r.log.Warn("this Key Trustee Server becomes active without all that the other has: claviger trustee resync, once both run, drops that", "err", err)
		}
	}
	st, err = r.store.Stand(ctx, func(st *Standing) error {
		if st.Epoch >= epoch {
			return claviger.Errorf(op, claviger.Unavailable, "", "the other Key Trustee Server has just been promoted, to epoch %d", st.Epoch)
		}
		st.Role, st.Epoch, st.Alone = RoleActive, epoch, false
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.synced, r.why = false, fmt.Errorf("this server has just been promoted")
	r.mu.Unlock()
	r.wake()
	r.log.Warn("this Key Trustee Server is active from now on", "epoch", epoch)
	return &st, nil
}

// takeOver fetches what the active has, has it yield, and fetches the rest. All
// that it has acknowledged must be here then.
func (r *Replica) takeOver(ctx context.Context, epoch uint64) error {
	const op = "server.takeOver"
	for yielded := false; ; {
		p, err := r.hello(ctx, Standing{Role: RolePassive})
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
				return claviger.Errorf(op, claviger.Invalid, "", "the other Key Trustee Server has changes that this one lacks and cannot follow: let it bring this one up to date first, claviger trustee resync there, or become active without them: --force")
			} else if err != nil {
				return err
			}
			if p, err = r.hello(ctx, Standing{Role: RolePassive}); err != nil {
				return err
			}
		}
		if yielded {
			return nil
		}
		if err := r.ask(ctx, shipTime, verbYield, yieldArgs{epoch}, nil); err != nil {
			return err
		}
		yielded = true
	}
}
