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

// SelfCheck says how a re-encryption checks the provider's results. An HSM with a fault may return a block with a wrong
// bit and no error; a re-encrypted EDEK that was made of it is lost for good. So blocks are encrypted a second time, in
// the same call, and the two results are compared.
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
	in := make([]byte, len(blocks), len(blocks)+len(again)*blockSize)
	copy(in, blocks)
	defer func() { clear(in) }()
	for _, i := range again {
		in = append(in, blocks[i*blockSize:(i+1)*blockSize]...)
	}
	if err := c.enc.EncryptBlocks(ctx, version, in); err != nil {
		return err
	}
	for n, i := range again {
		second := in[len(blocks)+n*blockSize:][:blockSize]
		if !bytes.Equal(in[i*blockSize:(i+1)*blockSize], second) {
			c.wrong.record(version)
			return claviger.Errorf("eek.Reencrypt", claviger.Unavailable, version, "the HSM encrypted one block with "+
				"one key to two different results, so one of them is wrong; nothing was re-encrypted; if this is "+
				"logged again, take the HSM out of service, and set claviger.hsm.reencrypt.check to twice")
		}
	}
	copy(blocks, in)
	return nil
}

// chosen returns the indexes of the blocks to encrypt again, out of n. They are in another order than the blocks, so
// that a fault at one place of the result does not hit a block twice.
func (c checking) chosen(n int) []int {
	if c.check == CheckTwice || n <= sampledBlocks {
		list := make([]int, n)
		for i := range list {
			list[i] = n - 1 - i
		}
		return list
	}
	list := make([]int, sampledBlocks)
	for i := range list {
		list[i] = rand.IntN(n) //nolint:gosec // a sample, no secret
	}
	return list
}
