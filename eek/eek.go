// Package eek makes and opens encrypted data encryption keys (EDEKs) in batches, as Hadoop's CryptoCodec does. It also
// has the queue of ready-made EDEKs.
//
// An EDEK's material is DEK xor keystream. The keystream consists of consecutive 128-bit big-endian counter blocks,
// each encrypted with AES under the EZ key. The first counter block is the EDEK's IV with every byte xored with 0xff
// (Hadoop's EncryptedKeyVersion.deriveIV). So a provider only ever encrypts counter blocks. This package puts the
// counter blocks of all EDEKs of one key version into one slice, encrypts them with one call, and xors the result
// itself. No provider ever gets a DEK.
package eek

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"sync"

	"claviger"
	"claviger/secret"
)

const blockSize = claviger.IVSize

// BlockEncrypter is the part of a provider that this package needs. provider.BlockEncrypter has the contract.
type BlockEncrypter interface {
	EncryptBlocks(ctx context.Context, version string, blocks []byte) error
}

// Generate makes n EDEKs of random DEKs of dekLen bytes under the version, with one EncryptBlocks call. random is the
// source of IVs and DEKs; nil means crypto/rand. No DEK is left in memory when Generate returns. If n <= 0, it makes no
// EDEK and no call.
func Generate(ctx context.Context, enc BlockEncrypter, version string, dekLen, n int,
	random io.Reader) ([]claviger.EDEK, error) {
	edeks, all, err := draw("eek.Generate", version, dekLen, n, random) // with DEKs in place of the materials
	if err != nil {
		return nil, err
	}
	perEDEK := blocksOf(dekLen)
	blocks := takeBlocks(len(edeks) * perEDEK)
	for i := range edeks {
		putCounters(blocks[i*perEDEK:(i+1)*perEDEK], edeks[i].IV)
	}
	if err := encrypt(ctx, enc, version, blocks); err != nil {
		clear(all)
		return nil, err
	}
	for i := range edeks {
		subtle.XORBytes(edeks[i].Material, edeks[i].Material, blocks[i*perEDEK:])
	}
	giveBlocks(blocks)
	return edeks, nil
}

// draw makes n EDEKs with random IVs and materials. all is the array that they share. random is the source of the
// bytes; nil means crypto/rand.
func draw(op, version string, dekLen, n int, random io.Reader) (edeks []claviger.EDEK, all []byte, err error) {
	if dekLen < 0 {
		return nil, nil, claviger.Errorf(op, claviger.Invalid, version, "a DEK cannot have %d bytes", dekLen)
	}
	if n <= 0 {
		return []claviger.EDEK{}, nil, nil
	}
	if random == nil {
		random = rand.Reader
	}
	size := blockSize + dekLen
	all = make([]byte, n*size)
	if _, err := io.ReadFull(random, all); err != nil {
		clear(all)
		return nil, nil, claviger.Errorf(op, claviger.Internal, version, "reading random bytes: %w", err)
	}
	edeks = make([]claviger.EDEK, n)
	for i := range edeks {
		item := all[i*size : (i+1)*size : (i+1)*size]
		edeks[i] = claviger.EDEK{Version: version, IV: item[:blockSize:blockSize], Material: item[blockSize:]}
	}
	return edeks, all, nil
}

// Wrap makes one EDEK from each DEK under the version, with the IV of the same index, in one EncryptBlocks call. With
// the old IVs, it re-encrypts DEKs that another KMS has unwrapped. The caller still owns deks, and wipes them. Kind
// BadIV.
func Wrap(ctx context.Context, enc BlockEncrypter, version string, ivs [][]byte,
	deks []secret.Bytes) ([]claviger.EDEK, error) {
	const op = "eek.Wrap"
	if len(ivs) != len(deks) {
		return nil, claviger.Errorf(op, claviger.Internal, version, "%d IVs for %d DEKs", len(ivs), len(deks))
	}
	edeks := make([]claviger.EDEK, len(deks))
	for i, dek := range deks {
		edeks[i] = claviger.EDEK{Version: version, IV: ivs[i], Material: dek}
	}
	l, err := plan(op, edeks, nil)
	if err != nil {
		return nil, err
	}
	if err := encrypt(ctx, enc, version, l.blocks); err != nil {
		return nil, err
	}
	return l.rewrap(version, edeks), nil
}

// Unwrap returns the DEK of each EDEK, in order. The EDEKs may be of several versions; each version needs one
// EncryptBlocks call. An EDEK without material has an empty DEK, and a version with only such EDEKs needs no call. If
// one EDEK fails, the whole call fails. Kinds BadIV (before any call) and those of EncryptBlocks. The caller wipes the
// DEKs.
func Unwrap(ctx context.Context, enc BlockEncrypter, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	l, err := plan("eek.Unwrap", edeks, nil)
	if err != nil {
		return nil, err
	}
	if err := l.encryptEach(ctx, enc); err != nil {
		return nil, err
	}
	all := make([]byte, l.bytes)
	deks := make([]secret.Bytes, len(edeks))
	for i, e := range edeks {
		n := len(e.Material)
		subtle.XORBytes(all, e.Material, l.blocks[l.offset[i]:])
		deks[i], all = all[:n:n], all[n:]
	}
	giveBlocks(l.blocks)
	return deks, nil
}

// Reencrypt re-encrypts EDEKs under another version, with the same IV and the same DEK. from encrypts under the old
// versions, to under version. It makes one EncryptBlocks call for each old version and one for the new version; the
// call for the new version runs beside the others. An EDEK that already is under version is returned unchanged. If one
// EDEK fails, the whole call fails, with the kinds of Unwrap.
//
// No DEK is computed: Reencrypt xors the two keystreams with each other first, and then the EDEK with the result.
func Reencrypt(ctx context.Context, from, to BlockEncrypter, version string,
	edeks []claviger.EDEK) ([]claviger.EDEK, error) {
	l, err := plan("eek.Reencrypt", edeks, &version)
	if err != nil {
		return nil, err
	}
	counters := takeBlocks(len(l.blocks))
	copy(counters, l.blocks)
	if err := l.encryptBoth(ctx, from, to, version, counters); err != nil {
		return nil, err
	}
	subtle.XORBytes(l.blocks, l.blocks, counters)
	giveBlocks(counters)
	return l.rewrap(version, edeks), nil
}

// layout has the counter blocks of a batch of EDEKs in one array. The blocks of one version are contiguous. The
// versions are in the order of their first EDEKs.
type layout struct {
	blocks []byte
	offset []int // offset in blocks of each EDEK's first block; leftOut for an EDEK without blocks
	bytes  int   // length of all materials together
	groups []group
	index  map[string]int // index in groups by version; nil up to linearVersions groups
}

type group struct {
	version string
	size    int // length of its blocks in bytes
	next    int // offset of the next EDEK's blocks, while the layout is made
}

// leftOut is the offset of an EDEK that was left out of the layout.
const leftOut = -1

// plan checks the IVs and makes the layout. If without is not nil, EDEKs of that version are left out.
func plan(op string, edeks []claviger.EDEK, without *string) (*layout, error) {
	l := &layout{offset: make([]int, len(edeks))}
	// offset has each EDEK's group first, and later the offset of its blocks.
	last, total := -1, 0
	for i := range edeks {
		e := &edeks[i]
		if last < 0 || l.groups[last].version != e.Version {
			if without != nil && e.Version == *without {
				l.offset[i] = leftOut
				continue
			}
			last = l.groupOf(e.Version)
		}
		if len(e.IV) != claviger.IVSize {
			return nil, claviger.Errorf(op, claviger.BadIV, e.Version,
				"Wrong IV length: must be %d bytes long, but got %d", claviger.IVSize, len(e.IV))
		}
		l.offset[i] = last
		size := blocksOf(len(e.Material))
		l.groups[last].size += size
		total += size
		l.bytes += len(e.Material)
	}
	next := 0
	for i := range l.groups {
		l.groups[i].next = next
		next += l.groups[i].size
	}
	l.blocks = takeBlocks(total)
	for i := range edeks {
		if l.offset[i] == leftOut {
			continue
		}
		g := &l.groups[l.offset[i]]
		size := blocksOf(len(edeks[i].Material))
		putCounters(l.blocks[g.next:g.next+size], edeks[i].IV)
		l.offset[i] = g.next
		g.next += size
	}
	return l, nil
}

// linearVersions is the number of versions up to which a linear search is faster than a map. A batch of a NameNode has
// one or two versions.
const linearVersions = 4

// groupOf returns the index of the version's group. It adds the group if there is none.
func (l *layout) groupOf(version string) int {
	if l.index == nil {
		for i := range l.groups {
			if l.groups[i].version == version {
				return i
			}
		}
	} else if i, ok := l.index[version]; ok {
		return i
	}
	i := len(l.groups)
	l.groups = append(l.groups, group{version: version})
	switch {
	case l.index != nil:
		l.index[version] = i
	case i >= linearVersions:
		l.index = make(map[string]int, 2*len(l.groups))
		for j := range l.groups {
			l.index[l.groups[j].version] = j
		}
	}
	return i
}

// encryptBoth encrypts l.blocks with the old versions and counters, a copy of l.blocks, with the new version, at the
// same time. If one of the two fails, the other is given up. On an error both are wiped.
func (l *layout) encryptBoth(ctx context.Context, from, to BlockEncrypter, version string, counters []byte) error {
	if len(counters) == 0 {
		return nil
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		err := encrypt(both, to, version, counters)
		if err != nil {
			cancel()
		}
		ended <- err
	}()
	err := l.encryptEach(both, from)
	if err != nil {
		cancel()
	}
	toErr := <-ended // EncryptBlocks has returned, so nothing writes to counters any more
	if toErr != nil && (err == nil || errors.Is(err, context.Canceled) && ctx.Err() == nil) {
		err = toErr // the error of the old version is only that it was given up
	}
	if err != nil {
		clear(l.blocks)
		clear(counters)
	}
	return err
}

// encryptEach encrypts the counter blocks to keystream, with one call for each version. On an error it wipes all
// blocks.
func (l *layout) encryptEach(ctx context.Context, enc BlockEncrypter) error {
	off := 0
	for _, g := range l.groups {
		if err := encrypt(ctx, enc, g.version, l.blocks[off:off+g.size:off+g.size]); err != nil {
			clear(l.blocks)
			return err
		}
		off += g.size
	}
	return nil
}

// rewrap returns the EDEKs under the version. It xors each EDEK's material with its part of l.blocks. The new materials
// are in one new array; the IVs stay where they are. An EDEK that was left out stays as it is. The layout must
// not be used again.
func (l *layout) rewrap(version string, edeks []claviger.EDEK) []claviger.EDEK {
	out := make([]claviger.EDEK, len(edeks))
	all := make([]byte, l.bytes)
	for i := range edeks {
		e := &edeks[i]
		if l.offset[i] == leftOut {
			out[i] = *e
			continue
		}
		n := subtle.XORBytes(all, e.Material, l.blocks[l.offset[i]:])
		out[i] = claviger.EDEK{Version: version, IV: e.IV, Material: all[:n:n]}
		all = all[n:]
	}
	giveBlocks(l.blocks)
	return out
}

// encrypt calls EncryptBlocks, unless there are no blocks. After an error it wipes the blocks.
func encrypt(ctx context.Context, enc BlockEncrypter, version string, blocks []byte) error {
	if len(blocks) == 0 {
		return nil
	}
	if err := enc.EncryptBlocks(ctx, version, blocks); err != nil {
		clear(blocks)
		return err
	}
	return nil
}

// blockBuffers has wiped buffers of maxBuffer bytes for the blocks of batches.
var blockBuffers sync.Pool

const (
	minBuffer = 4 << 10  // a smaller one is made quickly
	maxBuffer = 64 << 10 // 2,000 EDEKs of 256-bit DEKs
)

// takeBlocks returns a buffer of n bytes.
func takeBlocks(n int) []byte {
	if n < minBuffer || n > maxBuffer {
		return make([]byte, n)
	}
	if b, ok := blockBuffers.Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, maxBuffer)
}

// giveBlocks wipes a buffer of takeBlocks for its next use. After a failed call, its buffer must not come back: a
// provider that breaks its contract might still write to it.
func giveBlocks(b []byte) {
	clear(b)
	if cap(b) == maxBuffer {
		blockBuffers.Put(&b)
	}
}

// blocksOf returns the length in bytes of the blocks that cover n bytes.
func blocksOf(n int) int { return (n + blockSize - 1) / blockSize * blockSize }

// putCounters fills blocks with the consecutive counter blocks of an EDEK's IV. The counter has 128 bits: for an IV of
// zeros, the first block is ff..ff and the second one is 00..00.
func putCounters(blocks, iv []byte) {
	hi := ^binary.BigEndian.Uint64(iv[:8])
	lo := ^binary.BigEndian.Uint64(iv[8:])
	for ; len(blocks) > 0; blocks = blocks[blockSize:] {
		binary.BigEndian.PutUint64(blocks[:8], hi)
		binary.BigEndian.PutUint64(blocks[8:blockSize], lo)
		var carry uint64
		lo, carry = bits.Add64(lo, 1, 0)
		hi += carry
	}
}
