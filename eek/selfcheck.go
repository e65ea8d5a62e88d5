package eek

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"claviger"
)

// SelfCheck says how decrypts and re-encryptions check the provider's results. An HSM with a fault may return a block
// with a wrong bit and no error. A re-encrypted EDEK that was made of it is lost for good, and so is a file that a
// client writes with a wrong DEK. So blocks are encrypted a second time, in the same call, and the two results are
// compared. A generated EDEK needs no check: with any keystream it is the EDEK of a random DEK.
type SelfCheck string

// The self-checks.
const (
	// CheckNone encrypts each block once.
	CheckNone SelfCheck = "none"
	// CheckSampled encrypts a few blocks of each call again, chosen at random, and all blocks of a small call. It
	// notices an HSM whose results are often wrong.
	CheckSampled SelfCheck = "sampled"
	// CheckTwice encrypts all blocks again. It notices each wrong block.
	CheckTwice SelfCheck = "twice"
)

// Valid reports whether c is one of the self-checks.
func (c SelfCheck) Valid() bool {
	return slices.Contains([]SelfCheck{CheckNone, CheckSampled, CheckTwice}, c)
}

// sampledBlocks is how many blocks of a call CheckSampled encrypts again: those of 8 EDEKs of 256-bit DEKs. A batch of
// 1,000 EDEKs has 2,000 blocks.
const sampledBlocks = 16

// Mismatch says when a self-check last found two different results of one block.
type Mismatch struct {
	At      time.Time
	Version string // of the key
	Count   int    // of mismatches since the Service was made
}

// mismatches records the mismatches of a Service.
type mismatches struct {
	mu   sync.Mutex
	last Mismatch
}

func (m *mismatches) record(version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = Mismatch{At: time.Now(), Version: version, Count: m.last.Count + 1}
}

// Mismatch returns the last mismatch that a self-check found. Its Count is 0 if there was none.
func (s *Service) Mismatch() Mismatch {
	s.wrong.mu.Lock()
	defer s.wrong.mu.Unlock()
	return s.wrong.last
}

// checked returns the BlockEncrypter that encrypts with enc and makes the self-check.
func (s *Service) checked(enc BlockEncrypter) BlockEncrypter {
	if s.check == CheckSampled || s.check == CheckTwice {
		return checking{enc, s.check, &s.wrong}
	}
	return enc
}

// checking is a BlockEncrypter that encrypts some blocks a second time.
type checking struct {
	enc   BlockEncrypter
	check SelfCheck
	wrong *mismatches
}

func (c checking) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	again := c.chosen(len(blocks) / blockSize)
	in := takeBlocks(len(blocks) + again.count*blockSize)
	copy(in, blocks)
	for n := range again.count {
		i := again.index(n)
		copy(in[len(blocks)+n*blockSize:], blocks[i*blockSize:(i+1)*blockSize])
	}
	if err := c.enc.EncryptBlocks(ctx, version, in); err != nil {
		clear(in)
		return err
	}
	defer giveBlocks(in)
	for n := range again.count {
		i := again.index(n)
		second := in[len(blocks)+n*blockSize:][:blockSize]
		if !bytes.Equal(in[i*blockSize:(i+1)*blockSize], second) {
			c.wrong.record(version)
			return claviger.Errorf("eek.SelfCheck", claviger.Unavailable, version, "the HSM encrypted one block with "+
				"one key to two different results, so one of them is wrong, and none is used; if this is logged "+
				"again, take the HSM out of service, and set claviger.hsm.self.check to twice")
		}
	}
	copy(blocks, in)
	return nil
}

// repeats are the blocks of a call that are encrypted again.
type repeats struct {
	count   int
	sampled bool // sample has their indexes; if false, all blocks are encrypted again
	sample  [sampledBlocks]int
}

// chosen returns the blocks to encrypt again, out of n.
func (c checking) chosen(n int) (r repeats) {
	if c.check == CheckTwice || n <= sampledBlocks {
		return repeats{count: n}
	}
	r.count, r.sampled = sampledBlocks, true
	for i := range r.sample {
		r.sample[i] = rand.IntN(n) //nolint:gosec // a sample, no secret
	}
	return r
}

// index returns the index of the block that is encrypted again in place n. They are in another order than the blocks,
// so that a fault at one place of the result does not hit a block twice.
func (r *repeats) index(n int) int {
	if r.sampled {
		return r.sample[n]
	}
	return r.count - 1 - n
}
