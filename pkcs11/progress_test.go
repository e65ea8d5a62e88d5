package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

const stallLimit = time.Second

// TestSlowBatch: a batch that takes longer than the stall limit succeeds while its calls succeed. Requests that wait
// behind the batch, for the same key or for a session, succeed too.
func TestSlowBatch(t *testing.T) {
	tok, m := open(t)
	tok.mechanisms = []uint{p11.CKM_AES_CBC} // a call for each block
	id, label := generate(t, tok, 1, 256)
	other, otherLabel := generate(t, tok, 2, 256)
	for range cap(tok.slots) - 1 { // the batch has the only session
		tok.slots <- struct{}{}
	}
	defer func() {
		for range cap(tok.slots) - 1 {
			<-tok.slots
		}
	}()
	m.Reset()
	m.SetLatency(20 * time.Millisecond)
	ctx := WithStallLimit(t.Context(), stallLimit)
	from := time.Now()
	results := make(chan error, 4)
	go func() { results <- tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 150*blockSize)) }()
	eventually(t, func() error {
		if m.Count("Encrypt") == 0 {
			return errors.New("the batch has not begun")
		}
		return nil
	})
	go func() { results <- tok.EncryptBlocks(ctx, id, label, nil, make([]byte, blockSize)) }()
	go func() { results <- tok.EncryptBlocks(ctx, other, otherLabel, nil, make([]byte, blockSize)) }()
	go func() {
		_, err := tok.CheckValue(ctx, other, otherLabel)
		results <- err
	}()
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(from); took < 2*stallLimit {
		t.Errorf("the batch took only %v", took)
	}
}

// TestStall: an operation fails after its stall limit if its call hangs, or if another call with the same key hangs,
// also while calls with another key succeed. An operation without a stall limit waits.
func TestStall(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	release := m.Hang("Encrypt")
	defer release()
	unlimited, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- tok.EncryptBlocks(unlimited, id, label, nil, make([]byte, blockSize)) }()
	eventually(t, func() error {
		if m.Count("Encrypt") == 0 {
			return errors.New("no call hangs")
		}
		return nil
	})
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() {
		for unlimited.Err() == nil {
			tok.progress.advance() // as a call with another key does
			time.Sleep(stallLimit / 10)
		}
	})
	ctx := WithStallLimit(t.Context(), stallLimit)
	for name, f := range map[string]func() error{
		"behind a call": func() error { return tok.EncryptBlocks(ctx, id, label, nil, make([]byte, blockSize)) },
		"in a call":     func() error { return tok.Prove(ctx, id, label, make([]byte, checkSize)) },
	} {
		within(t, 20*time.Second, name, func() {
			from := time.Now()
			if err := f(); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(from); took < stallLimit*9/10 {
				t.Errorf("%s: ended after %v", name, took)
			}
		})
	}
	select {
	case err := <-result:
		t.Errorf("without a stall limit: %v", err)
	default:
	}
	release()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// TestOperationsAreCounted: an operation counts as running until its call has returned.
func TestOperationsAreCounted(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	running := func(want int32) {
		t.Helper()
		eventually(t, func() error {
			if n := tok.progress.running.Load(); n != want {
				return fmt.Errorf("%d operations count as running, want %d", n, want)
			}
			return nil
		})
	}
	running(0)
	release := m.Hang("Encrypt")
	defer release()
	result := make(chan error, 1)
	go func() { result <- tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, blockSize)) }()
	running(1)
	release()
	if err := <-result; err != nil {
		t.Error(err)
	}
	running(0)
}

// TestStallAfterProgress: a context ends when its stall limit has passed since the last progress.
func TestStallAfterProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		ctx, cancel := untilStalled(WithStallLimit(t.Context(), stallLimit), func() time.Time {
			return begun.Add(stallLimit / 2)
		})
		defer cancel()
		<-ctx.Done()
		took, cause := time.Since(begun), context.Cause(ctx)
		if took != stallLimit*3/2 || !errors.Is(cause, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", took, cause)
		}
	})
}

// TestProgress: if no operation is running, the start of one counts as progress of the token. The start of another does
// not: else new operations would hide that none succeeds. A call that succeeds is progress of its operation and of the
// token.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all progress
		a, b, c := &progress{parent: &all}, &progress{parent: &all}, &progress{parent: &all}
		time.Sleep(time.Second)
		begun := time.Now()
		a.begin()
		time.Sleep(time.Second)
		b.begin()
		if at := all.last(); !at.Equal(begun) || !b.last().Equal(begun.Add(time.Second)) {
			t.Errorf("a second operation: %v and %v after the first", at.Sub(begun), b.last().Sub(begun))
		}
		time.Sleep(time.Second)
		b.advance()
		if at := all.last(); !at.Equal(begun.Add(2*time.Second)) || !b.last().Equal(at) || a.last().After(begun) {
			t.Errorf("a call: %v, %v and %v after the start", at.Sub(begun), b.last().Sub(begun), a.last().Sub(begun))
		}
		a.end()
		b.end()
		time.Sleep(time.Second)
		c.begin()
		if at := all.last(); !at.Equal(begun.Add(3 * time.Second)) {
			t.Errorf("an operation that begins alone: %v after the first", at.Sub(begun))
		}
	})
}
