package kmsapi

import (
	"context"
	"log/slog"
	"time"
)

// A request may be large, and many may come at once: without an end to their
// sum, a few clients who ask for what each of them may ask for would take all
// memory. So large requests share an allowance, and wait for it in turn. Small
// ones, which nearly all are, never wait: a request about one EDEK has some hundred
// bytes. A NameNode's batch of a thousand EDEKs has 160 kB; it is counted, since
// thousands of connections may each send as much.
const (
	// freeMemory is what a request may take without asking.
	freeMemory = firstRead
	// edekMemory is about what a fresh EDEK takes until it is sent: its struct and
	// bytes, and twice its JSON, since buffers grow by doubling.
	edekMemory = 400
	// batchMemory is about what a batch takes beside each byte of its body, which is given
	// back when it was read: the EDEKs in it, the fresh ones, and the HSM's blocks.
	batchMemory = 2
	// allowance is how many batches of the longest body may be there at once, where
	// Limits.MaxMemory does not say.
	allowance = 4
)

// newLargeRequests is the allowance, in bytes.
func newLargeRequests(l Limits, a Admission, log *slog.Logger) *lane {
	most := l.MaxMemory
	if most == 0 {
		most = allowance * max(l.MaxBody, smallBody)
	}
	return newLane("large", most, true, a, func(string, time.Duration, bool) {}, log)
}

// reserve waits until a request may take n bytes more; they are given back when it is
// done. *busy where that does not come to pass within Admission.Wait.
func (c *call) reserve(ctx context.Context, n int64) error {
	c.taken += n
	// A request that needs more than one user may have gets that: it is alone with it.
	more := min(c.taken-freeMemory, max(1, c.large.shares.Size()/2)) - c.reserved
	if more <= 0 {
		return nil
	}
	granted, err := c.large.acquire(ctx, c.caller.Short, more)
	if err != nil {
		c.taken -= n
		return err
	}
	c.reserved += granted
	return nil
}

// free gives n bytes back that reserve counted.
func (c *call) free(n int64) {
	c.taken -= n
	if over := c.reserved - max(0, c.taken-freeMemory); over > 0 {
		c.large.shares.Release(c.caller.Short, over)
		c.reserved -= over
	}
}

// release gives back what the request has reserved.
func (c *call) release() {
	if c.reserved > 0 {
		c.large.shares.Release(c.caller.Short, c.reserved)
		c.reserved = 0
	}
}
