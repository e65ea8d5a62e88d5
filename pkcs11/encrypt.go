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
	w := &waiter{blocks: blocks, in: append([]byte(nil), blocks...), done: make(chan error, 1)}
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

// waiter is one caller of EncryptBlocks. The call works on a copy, since he may
// leave, with his blocks, while it is under way.
type waiter struct {
	blocks []byte
	in     []byte
	state  atomic.Int32
	done   chan error
}

// gatherer makes the calls with one key.
type gatherer struct {
	token *Token
	name  keyName

	mu      sync.Mutex
	pending []*waiter
	running int
}

// add queues a caller, and starts a call if not enough are under way.
func (g *gatherer) add(w *waiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = append(g.pending, w)
	if g.running < g.token.inFlight {
		g.running++
		go g.run()
	}
}

// gatherLimit is how many bytes of several callers go into one call. Beyond it
// the call is dear enough for its cost to be shared no further, and copies of
// large batches side by side would only take memory.
const gatherLimit = 64 << 10

// next takes as many callers as one C_Encrypt serves; at least one. Those who
// have left since are not served.
func (g *gatherer) next() []*waiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = slices.DeleteFunc(g.pending, func(w *waiter) bool { return w.state.Load() == left })
	size, n := 0, 0
	for n < len(g.pending) {
		size += len(g.pending[n].in)
		if n > 0 && int64(size) > min(g.token.maxData.Load(), gatherLimit) {
			break
		}
		n++
	}
	if n == 0 {
		g.running--
		return nil
	}
	batch := g.pending[:n:n]
	g.pending = g.pending[n:]
	if len(g.pending) == 0 {
		g.pending = nil
	}
	return batch
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
	return len(g.pending)
}

// serve makes one call for a batch of callers. Its limit is the token's, so that
// the key is not blocked by a call that hangs.
func (g *gatherer) serve(batch []*waiter) {
	in := batch[0].in
	if len(batch) > 1 {
		size := 0
		for _, w := range batch {
			size += len(w.in)
		}
		in = make([]byte, 0, size)
		for _, w := range batch {
			in = append(in, w.in...)
			clear(w.in)
		}
	}
	var out []byte
	err := g.token.doThen(context.Background(), "pkcs11.EncryptBlocks", func(l *login, s p11.SessionHandle) error {
		var err error
		out, err = g.token.encrypt(l, s, []byte(g.name.id), g.name.label, in)
		return err
	}, func(err error) {
		// Here and not below: a call that hangs may still read in and write out.
		deliver(batch, out, err)
		clear(in)
		clear(out)
	})
	deliver(batch, nil, err) // where the call was left behind
	if claviger.Is(err, claviger.KeyNotFound) {
		g.token.gather.CompareAndDelete(g.name, g)
	}
}

// deliver gives all who still wait their part of out, or err.
func deliver(batch []*waiter, out []byte, err error) {
	at := 0
	for _, w := range batch {
		n := len(w.in)
		if w.state.CompareAndSwap(waiting, served) {
			if err == nil {
				copy(w.blocks, out[at:at+n])
			}
			w.done <- err
		}
		at += n
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
