package kmsapi

import (
	"context"
	"log/slog"
	"time"
)

// Many large requests may arrive at once. Each is within its limits, but together a
// few could take all memory. So all large requests share an allowance of memory, and
// wait for their part of it. Small requests never wait, and nearly all are small: a request with one
// EDEK has some hundred bytes. A NameNode's batch of a thousand EDEKs has 160 kB.
// It counts as large, because thousands of connections may each send one.
const (
	// freeMemory is how many bytes a request may use without a reservation.
	freeMemory = firstRead
	// edekMemory is about the memory of a fresh EDEK until it is sent, in bytes: its
	// struct, its material, and twice its JSON, since buffers grow by doubling.
	edekMemory = 400
	// batchMemory is about the memory of a batch for each byte of its body: the EDEKs
	// in it, the fresh ones, and the HSM's blocks. The body itself is not included; it
	// is freed after it is parsed.
	batchMemory = 2
	// defaultBodies is how many of the longest bodies the allowance holds, if Limits.MaxMemory
	// is 0.
	defaultBodies = 4
)

// newLargeRequests makes the limiter for the memory of large requests, in bytes.
func newLargeRequests(l Limits, a Admission, log *slog.Logger) *limiter {
	most := l.MaxMemory
	if most == 0 {
		most = defaultBodies * max(l.MaxBody, smallBody)
	}
	return newLimiter("large", most, true, a, func(string, time.Duration, bool) {}, log)
}

// reserve waits until the request may use n bytes more. It returns *busy if that
// takes longer than Admission.Wait. releaseMemory frees them when the request is
// done.
func (c *call) reserve(ctx context.Context, n int64) error {
	c.used += n
	// One user gets at most half of the allowance. A request that needs more is charged only that half.
	more := min(c.used-freeMemory, max(1, c.large.shares.Size()/2)) - c.reserved
	if more <= 0 {
		return nil
	}
	granted, err := c.large.acquire(ctx, c.caller.Short, more)
	if err != nil {
		c.used -= n
		return err
	}
	c.reserved += granted
	return nil
}

// free frees n bytes of those that reserve counted.
func (c *call) free(n int64) {
	c.used -= n
	if over := c.reserved - max(0, c.used-freeMemory); over > 0 {
		c.large.shares.Release(c.caller.Short, over)
		c.reserved -= over
	}
}

// releaseMemory frees all memory that the request has reserved.
func (c *call) releaseMemory() {
	if c.reserved > 0 {
		c.large.shares.Release(c.caller.Short, c.reserved)
		c.reserved = 0
	}
}
