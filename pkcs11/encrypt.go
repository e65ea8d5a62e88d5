package pkcs11

import (
	"context"
	"crypto/subtle"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/cryptoki"
	"claviger/trace"
)

// blockSize is the size of an AES block in bytes.
const blockSize = 16

// EncryptBlocks encrypts each 16-byte block by itself, in place. It calls C_Encrypt once for all blocks, up to the
// HSM's data limit. Callers that use the same key at the same time share a call.
//
// check is the key's check value. Each C_Encrypt also encrypts the check block, and its result is used only if the
// check value is right; see proof.go. If check is empty, nothing proves that the result is the key's. The error is of
// kind KeyNotFound if the token has no such key, and ErrWrongKey if the key has another check value.
func (t *Token) EncryptBlocks(ctx context.Context, id []byte, label string, check, blocks []byte) (err error) {
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
	ctx, span := trace.Start(ctx, op)
	defer span.EndWith(&err)
	ctx, cancel := t.limited(ctx)
	defer cancel()
	g := t.gathererOf(keyName{string(id), label}, check)
	w := &waiter{blocks: blocks, in: append(makeInput(len(blocks)), blocks...), since: time.Now(),
		done: make(chan error, 1), span: span}
	ctx, cancel = untilStalled(ctx, func() time.Time { return g.lastProgress(w) })
	defer cancel()
	g.add(w)
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		if w.state.CompareAndSwap(waiting, abandoned) {
			g.abandon()
			return claviger.Errorf(op, claviger.Unavailable, label, "the HSM did not answer in time: %w",
				context.Cause(ctx))
		}
		return <-w.done // the result is being written into blocks
	}
}

// EncryptAlone is EncryptBlocks in a call of its own: it shares no call, and does not wait for others with the same
// key. It is there to measure how long a call takes, and how many run at the same time.
func (t *Token) EncryptAlone(ctx context.Context, id []byte, label string, check, blocks []byte) error {
	in := append(makeInput(len(blocks)), blocks...)
	var out []byte
	err := t.doWithKey(ctx, "pkcs11.EncryptAlone", label, func(l *login, s p11.SessionHandle) (err error) {
		out, err = t.encrypt(l, s, keyUse{name: keyName{string(id), label}, check: string(check)}, in)
		return err
	})
	if err == nil {
		copy(blocks, out) // otherwise the call may still run
	}
	return err
}

// gathererOf returns the gatherer of a key and its check value. A caller with another check value gets another
// gatherer, which takes the place of the first.
func (t *Token) gathererOf(name keyName, check []byte) *gatherer {
	if v, ok := t.gather.Load(name); ok {
		if g, _ := v.(*gatherer); g.check == string(check) {
			return g
		}
	}
	g := &gatherer{token: t, name: name, check: string(check), progress: progress{parent: &t.progress}}
	if v, loaded := t.gather.LoadOrStore(name, g); loaded {
		if first, _ := v.(*gatherer); first.check == g.check {
			return first
		}
		t.gather.Store(name, g)
	}
	return g
}

// States of a waiter; an abandoned waiter is one whose caller gave up. The goroutine that changes the state from
// waiting to another owns the waiter's blocks.
const (
	waiting int32 = iota
	served
	abandoned
)

// waiter is one caller of EncryptBlocks. The HSM calls work on a copy of the blocks, since the caller may give up
// and use its blocks again while a call runs.
type waiter struct {
	blocks []byte
	in     []byte // the copy, made by makeInput; in[:at] is encrypted already
	since  time.Time
	at     int // guarded by gatherer.mu while queued, owned by the running call otherwise
	state  atomic.Int32
	done   chan error
	call   atomic.Pointer[progress] // of the running call; nil while queued
	span   *trace.Span              // nil if the caller's request is not traced
}

// finish gives the waiter the encrypted blocks, or err, unless it was abandoned or has its answer already. No running
// call may use w.in.
func (w *waiter) finish(err error) {
	if w.state.CompareAndSwap(waiting, served) {
		if err == nil {
			copy(w.blocks, w.in)
		}
		w.done <- err
	}
	if clear(w.in); err == nil {
		cryptoki.FreeBuffer(w.in)
		w.in = nil
	}
}

// part is the part of a waiter's blocks that goes into one call: w.in[from:to].
type part struct {
	w        *waiter
	from, to int
}

func (p part) size() int { return p.to - p.from }

// gatherer makes the calls with one key. Small waiters, such as a request to open one EDEK, go first: they get at
// least half of each call, however many large waiters are queued. The large waiters get the rest of the call, one
// after another.
type gatherer struct {
	token *Token
	name  keyName
	check string // the check value; "" if the caller has none

	mu      sync.Mutex
	small   []*waiter // at most smallBytes each
	large   []*waiter
	running int       // runs, also those whose call hangs
	hung    int       // runs whose call hangs: it did not return within its limit, and has not returned since
	givenUp int       // waiters that were abandoned since dropAbandoned last ran
	begins  time.Time // when the last call began, or will begin; see callGap

	progress progress // of all its calls
}

const (
	// smallBytes is the size of 32 EDEKs of 256-bit DEKs.
	smallBytes = 1 << 10
	// gatherLimit is the largest number of bytes of a call that several callers share. In a larger call the fixed
	// cost of a call does not matter, and copies of large batches would only take memory.
	gatherLimit = 64 << 10
)

// add queues a waiter, and starts another run if fewer than callsAtOnce are running. A key gets no more places in the
// library than that, also while calls with it hang. If all its calls hang, the waiter gets an error.
func (g *gatherer) add(w *waiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	most := g.token.callsAtOnce()
	if g.hung >= most && g.hung == g.running {
		w.finish(claviger.Errorf("pkcs11.EncryptBlocks", claviger.Unavailable, g.name.label,
			"%d calls with this key hang in the HSM's library", g.hung))
		return
	}
	g.queue(w)
	if g.running < most {
		g.running++
		go g.run()
	}
}

// abandon drops the abandoned waiters from the queues once they are half of all.
func (g *gatherer) abandon() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.givenUp++; 2*g.givenUp >= len(g.small)+len(g.large) {
		g.dropAbandoned()
	}
}

// dropAbandoned drops the abandoned waiters from the queues. The caller holds g.mu.
func (g *gatherer) dropAbandoned() {
	g.givenUp = 0
	g.small = dropAbandoned(g.small)
	g.large = dropAbandoned(g.large)
}

// lastProgress returns when the calls that a waiter waits for last made progress: its own call, or those with its key
// that run before it, or, while they wait for a session, any call of the token.
func (g *gatherer) lastProgress(w *waiter) time.Time {
	if call := w.call.Load(); call != nil {
		return call.last()
	}
	return g.progress.last()
}

// queue appends a waiter to the queue of its size. The caller holds g.mu.
func (g *gatherer) queue(w *waiter) {
	if len(w.in) <= smallBytes {
		g.small = append(g.small, w)
	} else {
		g.large = append(g.large, w)
	}
}

// next takes the parts for one C_Encrypt off the queues. It returns nil, and ends the run, if no waiter is queued.
// It drops abandoned waiters.
func (g *gatherer) next() []part {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dropAbandoned()
	maxSize := partSize(g.token.dataLimit(g.name), g.check)
	limit := min(maxSize, gatherLimit)
	share := limit // of the small waiters
	if len(g.large) > 0 {
		share = limit / 2
	}
	var batch []part
	size := 0
	for len(g.small) > 0 && (size == 0 || size+len(g.small[0].in) <= share) {
		w := shift(&g.small)
		batch = append(batch, part{w, w.at, len(w.in)})
		size += len(w.in)
	}
	room := maxSize // for the first large waiter: alone, it may fill the call
	if size > 0 {
		room = (limit - size) / blockSize * blockSize
	}
	for first := true; len(g.large) > 0 && room > 0; first = false {
		w := g.large[0]
		n := len(w.in) - w.at
		if n > room {
			if !first {
				break
			}
			n = room // a later call takes the rest
		}
		shift(&g.large)
		batch = append(batch, part{w, w.at, w.at + n})
		size += n
		room = limit - size
	}
	if len(batch) == 0 {
		g.running--
	}
	return batch
}

// shift takes the first waiter off a queue. The queue's array keeps no pointer to it.
func shift(q *[]*waiter) *waiter {
	w := (*q)[0]
	(*q)[0] = nil
	if *q = (*q)[1:]; len(*q) == 0 {
		*q = nil
	}
	return w
}

// dropAbandoned removes the abandoned waiters from a queue.
func dropAbandoned(q []*waiter) []*waiter {
	return slices.DeleteFunc(q, func(w *waiter) bool {
		if w.state.Load() == waiting {
			return false
		}
		clear(w.in)
		return true
	})
}

// run makes calls until no waiter is queued. If a call hangs, the run goes on when the call has returned.
func (g *gatherer) run() {
	for {
		g.gatherMore()
		time.Sleep(g.untilBegin())
		batch := g.next()
		if batch == nil {
			return
		}
		g.serve(batch)
	}
}

// untilBegin returns the time until the next call may begin, and counts the call as begun then. It is 0 if no waiter
// is queued.
func (g *gatherer) untilBegin() time.Duration {
	gap := g.token.callGap()
	if gap == 0 {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.small)+len(g.large) == 0 {
		return 0
	}
	now := time.Now()
	g.begins = g.begins.Add(gap)
	if g.begins.Before(now) {
		g.begins = now
	}
	return g.begins.Sub(now)
}

// hangs counts a run whose call hangs. If the calls of all runs hang, no call can serve the queued waiters, so they get
// an error.
func (g *gatherer) hangs(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hung++; g.hung < g.running {
		return
	}
	for _, w := range slices.Concat(g.small, g.large) {
		w.finish(err)
	}
	g.small, g.large = nil, nil
}

// recordReturn records that the call of a hung run has returned.
func (g *gatherer) recordReturn() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hung--
}

// gatherMore yields to goroutines that are about to queue a request, as long as the queues grow. Without it,
// requests to a quick HSM would just miss a shared call. On an idle machine it takes no time. A large waiter has
// enough blocks for a call, and a yield would cost more than it gains.
func (g *gatherer) gatherMore() {
	const enough = 64 // with more waiters a block gets hardly cheaper
	for before := g.waiting(); 0 < before && before < enough && !g.hasLarge(); {
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
	return len(g.small) + len(g.large)
}

func (g *gatherer) hasLarge() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.large) > 0
}

// inputOf returns the blocks of a batch: those of its only part, or a copy of all.
func inputOf(batch []part) []byte {
	if len(batch) == 1 {
		return batch[0].w.in[batch[0].from:batch[0].to]
	}
	size := 0
	for _, p := range batch {
		size += p.size()
	}
	in := makeInput(size)
	for _, p := range batch {
		in = append(in, p.w.in[p.from:p.to]...)
	}
	return in
}

// watched returns the progress of the next call for a batch, and lets the waiters watch it.
func (g *gatherer) watched(batch []part) *progress {
	call := &progress{parent: &g.progress}
	for _, p := range batch {
		p.w.call.Store(call)
	}
	return call
}

// serve makes one call for a batch. If the call does not return within the token's time limit, the waiters get an
// error then, and serve returns when the call returns.
func (g *gatherer) serve(batch []part) {
	const op = "pkcs11.EncryptBlocks"
	in := inputOf(batch)
	since := batch[0].w.since // read now: the waiter may have its answer, and be gone, before the call ends
	call := g.watched(batch)
	var out []byte
	hang := hanging{g: g, batch: batch}
	g.token.doHere(op, keySubject(g.name.label), call, func(l *login, s p11.SessionHandle) error {
		var err error
		span := spanOf(batch)
		begun := time.Now()
		out, err = g.token.encrypt(l, s, keyUse{g.name, g.check, call}, in)
		ended := time.Now()
		if err == nil {
			g.token.callTime.add(ended.Sub(begun), ended)
		}
		g.token.report(Call{Callers: len(batch), Blocks: len(in) / blockSize, Waited: begun.Sub(since),
			Took: ended.Sub(begun), Err: err})
		endSpan(span, len(batch), len(in)/blockSize, err)
		return err
	}, func(err error) {
		// The gatherer of a key that is missing is dropped before its waiters get that answer.
		if claviger.Is(err, claviger.KeyNotFound) {
			g.token.gather.CompareAndDelete(g.name, g)
		}
		g.deliver(batch, out, err)
		g.release(batch, in, out, err)
		hang.end()
	}, hang.begin)
}

// release wipes the buffers of a call that has returned. If it succeeded, they are used again.
func (g *gatherer) release(batch []part, in, out []byte, err error) {
	own := len(batch) == 1 // in is the waiter's own: finish has wiped it, or a later call encrypts the rest
	if !own {
		clear(in)
	}
	if clear(out); err == nil {
		cryptoki.FreeBuffer(out)
		if !own {
			cryptoki.FreeBuffer(in)
		}
	}
}

// deliver gives each waiter its part of out, or err. A waiter with more blocks to encrypt is queued again.
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
		p.w.call.Store(nil)
		g.mu.Lock()
		g.queue(p.w)
		g.mu.Unlock()
	}
}

// mechanismEncrypt encrypts blocks by one mechanism of the profile's list. ECB is the best. CBC gives the same blocks
// with a call for each; it is for HSMs whose policy forbids ECB. If the caller has a check value, the last block is the
// check block.
func (t *Token) mechanismEncrypt(s p11.SessionHandle, mechanism uint, use keyUse, key p11.ObjectHandle,
	in []byte) ([]byte, error) {
	switch {
	case mechanism != p11.CKM_AES_CBC:
		return t.oneEncrypt(s, p11.NewMechanism(mechanism, nil), key, in, use.progress)
	case use.check == "":
		return t.encryptEach(s, use, key, in)
	default:
		return t.encryptChained(s, use, key, in)
	}
}

// encryptEach encrypts each block in a call of its own: the first block of CBC with a zero IV is the encryption of the
// block.
func (t *Token) encryptEach(s p11.SessionHandle, use keyUse, key p11.ObjectHandle, in []byte) ([]byte, error) {
	out := make([]byte, 0, len(in))
	for ; len(in) > 0; in = in[blockSize:] {
		part, err := t.cbcEncrypt(s, use, key, in[:blockSize])
		if err != nil {
			clear(out)
			return nil, err
		}
		out = append(out, part...)
		clear(part)
	}
	return out, nil
}

// encryptChained encrypts each block in a call of its own, behind the last block of in, which is the check block. CBC
// encrypts the sum of the second block and of the first one's result. So the check block is encrypted first, alone, and
// its result is added to each block, which cancels that sum. Each call proves itself by its first block: the token
// cannot use another key for one of the calls in between.
func (t *Token) encryptChained(s p11.SessionHandle, use keyUse, key p11.ObjectHandle, in []byte) ([]byte, error) {
	n := len(in) - blockSize
	proof, err := t.cbcEncrypt(s, use, key, in[n:])
	if err != nil {
		return nil, err
	}
	defer clear(proof)
	out := make([]byte, 0, len(in))
	var pair [2 * blockSize]byte
	defer clear(pair[:])
	copy(pair[:], in[n:])
	for at := 0; at < n; at += blockSize {
		subtle.XORBytes(pair[blockSize:], in[at:at+blockSize], proof)
		part, err := t.cbcEncrypt(s, use, key, pair[:])
		if err == nil && subtle.ConstantTimeCompare(part[:blockSize], proof) != 1 {
			err = wrongKey{checkOf(part[:blockSize]), checkOf(proof)}
		}
		if err != nil {
			clear(part)
			clear(out)
			return nil, err
		}
		out = append(out, part[blockSize:]...)
		clear(part)
	}
	return append(out, proof...), nil
}

func (t *Token) cbcEncrypt(s p11.SessionHandle, use keyUse, key p11.ObjectHandle, in []byte) ([]byte, error) {
	return t.oneEncrypt(s, p11.NewMechanism(p11.CKM_AES_CBC, make([]byte, blockSize)), key, in, use.progress)
}

func (t *Token) oneEncrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, in []byte,
	p *progress) ([]byte, error) {
	out, err := t.b.Encrypt(s, m, key, in)
	if err == nil && len(out) != len(in) {
		clear(out)
		err = errLength{len(out), len(in)}
	}
	if err == nil {
		p.advance()
	}
	return out, err
}

// probe sets t.mechanisms to the mechanisms that the token offers, from the first that works. It tries them with a
// session key, and destroys that key afterwards.
func (t *Token) probe(ctx context.Context, mechanisms []uint) error {
	return t.do(ctx, "pkcs11.probe", func(l *login, s p11.SessionHandle) error {
		list, err := t.b.GetMechanismList(l.found.slot)
		if err != nil {
			return err
		}
		key, err := t.sessionKey(s)
		if err != nil {
			return mechanismError{fmt.Errorf("token %s makes no AES key: %w", l.found, err)}
		}
		defer t.destroy(s, key, sessionKeyMatch) //nolint:errcheck // it ends with the session in any case
		var tried []string
		var offered []uint
		for _, m := range mechanisms {
			if !slices.ContainsFunc(list, func(o *p11.Mechanism) bool { return o.Mechanism == m }) {
				tried = append(tried, mechanismName(m)+" (not offered)")
				continue
			}
			if len(offered) == 0 {
				if _, err := t.mechanismEncrypt(s, m, keyUse{}, key, make([]byte, 2*blockSize)); err != nil {
					tried = append(tried, fmt.Sprintf("%s (%v)", mechanismName(m), err))
					continue
				}
			}
			offered = append(offered, m)
		}
		if len(offered) == 0 {
			return mechanismError{fmt.Errorf("token %s encrypts by none of the mechanisms that claviger can use: %v; "+
				"allow one of them in the policies of the partition", l.found, tried)}
		}
		t.mechanisms = offered
		if offered[0] != p11.CKM_AES_ECB {
			t.log.Warn("the token does not encrypt by CKM_AES_ECB; each block will be a call of its own", "uses",
				mechanismName(offered[0]), "tried", tried)
		}
		return nil
	})
}

// sessionKeyMatch has the attributes of a key that sessionKey makes. No key of the token shows all of them.
var sessionKeyMatch = []*p11.Attribute{
	p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
	p11.NewAttribute(p11.CKA_TOKEN, false), p11.NewAttribute(p11.CKA_LABEL, "claviger probe"),
}

// sessionKey makes an AES key that exists only in the session. The caller destroys it.
func (t *Token) sessionKey(s p11.SessionHandle) (p11.ObjectHandle, error) {
	return t.b.GenerateKey(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)},
		append(slices.Clone(sessionKeyMatch),
			p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_SENSITIVE, true),
			p11.NewAttribute(p11.CKA_EXTRACTABLE, false), p11.NewAttribute(p11.CKA_ENCRYPT, true)))
}
