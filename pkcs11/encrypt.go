package pkcs11

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// blockSize of AES, in bytes.
const blockSize = 16

// EncryptBlocks encrypts each 16-byte block by itself, in place. It is one
// C_Encrypt however many blocks there are (as far as the HSM's limit goes), and
// shares it with others who use the same key meanwhile. Kind KeyNotFound where
// the token has no such key.
func (t *Token) EncryptBlocks(ctx context.Context, id []byte, label string, blocks []byte) error {
	const op = "pkcs11.EncryptBlocks"
	if len(blocks)%blockSize != 0 {
		return claviger.Errorf(op, claviger.Internal, label, "%d bytes are not whole blocks", len(blocks))
	}
	if len(blocks) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, label, err)
	}
	ctx, cancel := t.limited(ctx)
	defer cancel()
	name := keyName{string(id), label}
	v, ok := t.gather.Load(name)
	if !ok {
		v, _ = t.gather.LoadOrStore(name, &gatherer{token: t, name: name})
	}
	g, _ := v.(*gatherer)
	w := &waiter{blocks: blocks, in: append([]byte(nil), blocks...), since: time.Now(), done: make(chan error, 1)}
	g.add(w)
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		if w.state.CompareAndSwap(waiting, left) {
			return claviger.Errorf(op, claviger.Unavailable, label, "the HSM did not answer in time: %w", ctx.Err())
		}
		return <-w.done // the result is being written into blocks
	}
}

// States of a waiter. Whoever moves it away from waiting owns its blocks.
const (
	waiting int32 = iota
	served
	left
)

// waiter is one caller of EncryptBlocks. The calls work on a copy, since he may
// leave, with his blocks, while one is under way.
type waiter struct {
	blocks []byte
	in     []byte // up to at encrypted already
	since  time.Time
	at     int // belongs to whom the waiter belongs: the queue, or the call he is in
	state  atomic.Int32
	done   chan error
}

// finish hands the waiter his blocks, or err, unless he has left or was told
// before. No call uses in any more.
func (w *waiter) finish(err error) {
	if w.state.CompareAndSwap(waiting, served) {
		if err == nil {
			copy(w.blocks, w.in)
		}
		w.done <- err
	}
	clear(w.in)
}

// part is what of a waiter is in one call.
type part struct {
	w        *waiter
	from, to int
}

func (p part) size() int { return p.to - p.from }

// gatherer makes the calls with one key. Who wants a few blocks, as to open one
// EDEK, goes before who wants many: he is in the next call, however many batches
// wait. They have at least half of each call, and are served in turns.
type gatherer struct {
	token *Token
	name  keyName

	mu      sync.Mutex
	few     []*waiter // who want at most fewBytes
	many    []*waiter
	running int
}

const (
	// fewBytes is 32 EDEKs of 256-bit DEKs.
	fewBytes = 1 << 10
	// gatherLimit is how many bytes of several callers go into one call. Beyond it
	// the call is dear enough for its cost to be shared no further, and copies of
	// large batches side by side would only take memory.
	gatherLimit = 64 << 10
)

// add queues a caller, and starts a call if not enough are under way.
func (g *gatherer) add(w *waiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue(w)
	if g.running < g.token.inFlight {
		g.running++
		go g.run()
	}
}

// queue puts a waiter behind those of his kind. Needs the lock.
func (g *gatherer) queue(w *waiter) {
	if len(w.in) <= fewBytes {
		g.few = append(g.few, w)
	} else {
		g.many = append(g.many, w)
	}
}

// next takes as much as one C_Encrypt serves; nothing where nobody waits. Those
// who have left since are not served.
func (g *gatherer) next() []part {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.few = stillThere(g.few)
	g.many = stillThere(g.many)
	most := max(int(g.token.maxData.Load())/blockSize*blockSize, blockSize)
	limit := min(most, gatherLimit)
	share := limit // of those who want few
	if len(g.many) > 0 {
		share = limit / 2
	}
	var batch []part
	size := 0
	for len(g.few) > 0 && (size == 0 || size+len(g.few[0].in) <= share) {
		w := shift(&g.few)
		batch = append(batch, part{w, w.at, len(w.in)})
		size += len(w.in)
	}
	room := most // for the first of many: who is alone may fill a call
	if size > 0 {
		room = (limit - size) / blockSize * blockSize
	}
	for first := true; len(g.many) > 0 && room > 0; first = false {
		w := g.many[0]
		n := len(w.in) - w.at
		if n > room {
			if !first {
				break
			}
			n = room // the rest has its turn later
		}
		shift(&g.many)
		batch = append(batch, part{w, w.at, w.at + n})
		size += n
		room = limit - size
	}
	if len(batch) == 0 {
		g.running--
	}
	return batch
}

// shift takes the first off a queue, and does not keep it alive.
func shift(q *[]*waiter) *waiter {
	w := (*q)[0]
	(*q)[0] = nil
	if *q = (*q)[1:]; len(*q) == 0 {
		*q = nil
	}
	return w
}

// stillThere drops who does not wait any more.
func stillThere(q []*waiter) []*waiter {
	return slices.DeleteFunc(q, func(w *waiter) bool {
		if w.state.Load() == waiting {
			return false
		}
		clear(w.in)
		return true
	})
}

// run makes calls until nobody waits.
func (g *gatherer) run() {
	g.linger()
	for batch := g.next(); batch != nil; batch = g.next() {
		g.serve(batch)
		g.linger()
	}
}

// linger lets goroutines that are about to ask do so, as long as some do: where
// the HSM is quick, requests would otherwise just miss each other. On an idle
// machine it takes no time.
func (g *gatherer) linger() {
	const most = 64 // more make no call much cheaper
	for before := g.waiting(); before < most; {
		runtime.Gosched()
		after := g.waiting()
		if after == before {
			return
		}
		before = after
	}
}

func (g *gatherer) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.few) + len(g.many)
}

// serve makes one call for a batch. Its limit is the token's, so that the key is
// not blocked by a call that hangs.
func (g *gatherer) serve(batch []part) {
	in := batch[0].w.in[batch[0].from:batch[0].to]
	if len(batch) > 1 {
		size := 0
		for _, p := range batch {
			size += p.size()
		}
		in = make([]byte, 0, size)
		for _, p := range batch {
			in = append(in, p.w.in[p.from:p.to]...)
		}
	}
	since := batch[0].w.since // before the call: he may be told, and gone, within it
	// forget drops the queue of a key that is not there, before its waiters learn that.
	forget := func(err error) {
		if claviger.Is(err, claviger.KeyNotFound) {
			g.token.gather.CompareAndDelete(g.name, g)
		}
	}
	var out []byte
	err := g.token.doThen(context.Background(), "pkcs11.EncryptBlocks", func(l *login, s p11.SessionHandle) error {
		var err error
		begun := time.Now()
		out, err = g.token.encrypt(l, s, []byte(g.name.id), g.name.label, in)
		g.token.tell(Call{Callers: len(batch), Blocks: len(in) / blockSize, Waited: begun.Sub(since), Took: time.Since(begun), Err: err})
		return err
	}, func(err error) {
		// Here and not below: a call that hangs may still read in and write out.
		forget(err)
		g.deliver(batch, out, err)
		if len(batch) > 1 {
			clear(in) // else it is the waiter's, who may not be done
		}
		clear(out)
	})
	forget(err)
	if err != nil { // the call may have been left behind: what it reads must stay
		for _, p := range batch {
			if p.w.state.CompareAndSwap(waiting, served) {
				p.w.done <- err
			}
		}
	}
}

// deliver gives each waiter his part of out, or err. Who wants more queues anew.
func (g *gatherer) deliver(batch []part, out []byte, err error) {
	at := 0
	for _, p := range batch {
		if err == nil {
			copy(p.w.in[p.from:p.to], out[at:])
			at += p.size()
		}
		if err != nil || p.to == len(p.w.in) || p.w.state.Load() != waiting {
			p.w.finish(err)
			continue
		}
		p.w.at = p.to
		g.mu.Lock()
		g.queue(p.w)
		g.mu.Unlock()
	}
}

// encrypt makes the C calls: one C_Encrypt for each maxData bytes. How much the
// token takes at once nobody tells but it, by CKR_DATA_LEN_RANGE; then maxData is
// halved for as long as the token is open.
func (t *Token) encrypt(l *login, s p11.SessionHandle, id []byte, label string, in []byte) ([]byte, error) {
	object, err := t.handle(l, s, id, label)
	if err != nil {
		return nil, err
	}
	var out []byte
	for rest := in; len(rest) > 0; {
		limit := t.maxData.Load()
		n := int(min(limit, int64(len(rest))))
		part, err := t.mechanismEncrypt(s, t.mechanism, object, rest[:n])
		switch {
		case err == nil && n == len(in):
			return part, nil
		case err == nil:
			out = slices.Grow(out, len(rest)) // once
			out, rest = append(out, part...), rest[n:]
			clear(part)
		case errors.Is(err, p11.Error(p11.CKR_DATA_LEN_RANGE)) && n > blockSize:
			half := int64(n/2/blockSize) * blockSize
			if limit = t.maxData.Load(); half < limit && t.maxData.CompareAndSwap(limit, half) {
				t.log.Warn("the token takes less data in one call than its profile says", "bytes", n, "now", half)
			}
		default:
			clear(out)
			return nil, err
		}
	}
	return out, nil
}

// mechanismEncrypt encrypts blocks by a rung of the ladder. ECB is what is
// wanted; the others give the same with more calls, where an HSM's policy
// forbids ECB.
func (t *Token) mechanismEncrypt(s p11.SessionHandle, mechanism uint, key p11.ObjectHandle, in []byte) ([]byte, error) {
	switch mechanism {
	case p11.CKM_AES_CTR:
		// Counter mode over zeros is the encryption of the counters: one call for
		// each run of consecutive blocks.
		out := make([]byte, 0, len(in))
		for len(in) > 0 {
			n := counterRun(in)
			part, err := t.oneEncrypt(s, p11.NewMechanism(p11.CKM_AES_CTR, ctrParams(in[:blockSize])), key, make([]byte, n))
			if err != nil {
				return nil, err
			}
			out, in = append(out, part...), in[n:]
		}
		return out, nil
	case p11.CKM_AES_CBC:
		// The first block of CBC with a zero IV is the encryption of the block.
		out := make([]byte, 0, len(in))
		for ; len(in) > 0; in = in[blockSize:] {
			part, err := t.oneEncrypt(s, p11.NewMechanism(p11.CKM_AES_CBC, make([]byte, blockSize)), key, in[:blockSize])
			if err != nil {
				return nil, err
			}
			out = append(out, part...)
		}
		return out, nil
	}
	return t.oneEncrypt(s, p11.NewMechanism(mechanism, nil), key, in)
}

func (t *Token) oneEncrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, in []byte) ([]byte, error) {
	if err := t.b.EncryptInit(s, []*p11.Mechanism{m}, key); err != nil {
		return nil, err
	}
	out, err := t.b.Encrypt(s, in)
	if err == nil && len(out) != len(in) {
		err = fmt.Errorf("the HSM made %d bytes of %d", len(out), len(in))
	}
	return out, err
}

// counterRun is how many bytes at the beginning of in are blocks that count up
// by one. A run ends where the counter wraps to zero: there SoftHSM gives up.
func counterRun(in []byte) int {
	hi, lo := binary.BigEndian.Uint64(in), binary.BigEndian.Uint64(in[8:])
	n := blockSize
	for ; n < len(in); n += blockSize {
		if lo++; lo == 0 {
			if hi++; hi == 0 {
				break
			}
		}
		if binary.BigEndian.Uint64(in[n:]) != hi || binary.BigEndian.Uint64(in[n+8:]) != lo {
			break
		}
	}
	return n
}

// ctrParams is CK_AES_CTR_PARAMS: an unsigned long with the counter's bits, and
// the first counter block.
func ctrParams(counter []byte) []byte {
	p := make([]byte, 8+blockSize)
	binary.NativeEndian.PutUint64(p, blockSize*8)
	copy(p[8:], counter)
	return p
}

// probe finds the first mechanism of the ladder that the token has and that
// works, on a session key that is gone afterwards.
func (t *Token) probe(ctx context.Context, ladder []uint) error {
	return t.do(ctx, "pkcs11.probe", func(l *login, s p11.SessionHandle) error {
		list, err := t.b.GetMechanismList(l.found.slot)
		if err != nil {
			return err
		}
		offered := map[uint]bool{}
		for _, m := range list {
			offered[m.Mechanism] = true
		}
		key, err := t.b.GenerateKey(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)}, []*p11.Attribute{
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES), p11.NewAttribute(p11.CKA_VALUE_LEN, 32),
			p11.NewAttribute(p11.CKA_TOKEN, false), p11.NewAttribute(p11.CKA_SENSITIVE, true), p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
			p11.NewAttribute(p11.CKA_ENCRYPT, true), p11.NewAttribute(p11.CKA_LABEL, "claviger probe"),
		})
		if err != nil {
			return fmt.Errorf("token %s makes no AES key: %w", l.found, err)
		}
		defer t.b.DestroyObject(s, key) //nolint:errcheck // it ends with the session in any case
		var tried []string
		for _, m := range ladder {
			if !offered[m] {
				tried = append(tried, mechanismName(m)+" (not offered)")
				continue
			}
			if _, err := t.mechanismEncrypt(s, m, key, make([]byte, 2*blockSize)); err != nil {
				tried = append(tried, fmt.Sprintf("%s (%v)", mechanismName(m), err))
				continue
			}
			t.mechanism = m
			if m != p11.CKM_AES_ECB {
				t.log.Warn("the token does not encrypt by CKM_AES_ECB; each EDEK will be a call of its own", "uses", mechanismName(m), "tried", tried)
			}
			return nil
		}
		return fmt.Errorf("token %s encrypts by none of the mechanisms that would do: %v; allow one of them in the policies of the partition", l.found, tried)
	})
}
