package kmsapi

import (
	"context"
	"net/http"
	"sync/atomic"

	"claviger"
	"claviger/keyring"
	"claviger/kmswire"
)

// Lists are as long as users make them: of names of 4096 bytes, of metadata of 40 KB, of
// versions by the thousand. In JSON each byte may be six. So what a list takes is reserved
// before it is read, by what such lists took lately, and of its JSON only a part is in
// memory at a time.

// chunk is the part of a long answer that is made before it is sent.
const chunk = 128 << 10

// lists tells how many bytes each kind of list took lately.
type lists struct {
	names, deleted      *expected
	metadata            *expected // of one key
	versions, described *expected // of all of one key
}

// newLists expects little, but not nothing: many lists may be asked for before the first
// was made.
func newLists() lists {
	const one, all = 2 << 10, 64 << 10
	return lists{names: expecting(all), deleted: expecting(all), metadata: expecting(one), versions: expecting(all), described: expecting(all)}
}

// expected is a number of bytes. It rises at once, and falls slowly: the next list may be
// as long as the longest.
type expected struct{ bytes atomic.Int64 }

func expecting(bytes int64) *expected {
	e := &expected{}
	e.bytes.Store(bytes)
	return e
}

func (e *expected) learn(bytes int64) {
	const slowly = 16 // lists, to fall by two thirds
	e.bytes.Store(max(bytes, e.bytes.Load()*(slowly-1)/slowly))
}

// expect reserves what n things of a list are likely to take, before they are read.
func (c *call) expect(ctx context.Context, e *expected, n int) error {
	c.guess = int64(n) * e.bytes.Load()
	return c.reserve(ctx, c.guess)
}

// known corrects that by what they take.
func (c *call) known(ctx context.Context, e *expected, n int, bytes int64) error {
	e.learn(bytes / int64(max(1, n)))
	more := bytes - c.guess
	c.guess = bytes
	if more > 0 {
		return c.reserve(ctx, more)
	}
	c.free(-more)
	return nil
}

// list answers with a JSON list of n things, of which item appends the i-th and the same
// whenever it is called.
func (c *call) list(ctx context.Context, n int, item func(b []byte, i int) []byte) error {
	one := func(b []byte, i int) []byte {
		if i > 0 {
			b = append(b, ',')
		}
		return item(b, i)
	}
	pool := &buffers
	if n > unitNames {
		pool = &longBuffers
	}
	p, _ := pool.Get().(*[]byte)
	b := append((*p)[:0], '[')
	var covered int64
	defer func() { recycle(b[:cap(b)]) }()
	// cover reserves what buffers have grown by.
	cover := func(capacity int) error {
		more := int64(capacity) - covered
		if more <= 0 {
			return nil
		}
		covered += more
		return c.reserve(ctx, more)
	}
	first := 0 // not in b
	for ; first < n && len(b) < chunk; first++ {
		b = one(b, first)
		if err := cover(cap(b)); err != nil {
			return err
		}
	}
	if first == n {
		b = append(b, ']')
		c.answer(http.StatusOK, "application/json", b)
		return nil
	}
	// The rest is made twice: to count it, and to send it.
	p, _ = pool.Get().(*[]byte)
	count := (*p)[:0]
	defer func() { recycle(count[:cap(count)]) }()
	length := int64(len(b)) + 1
	for i := first; i < n; i++ {
		count = one(count[:0], i)
		length += int64(len(count))
		if err := cover(cap(b) + cap(count)); err != nil {
			return err
		}
		if i%unitNames == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if c.r.Method == http.MethodHead {
		c.answer(http.StatusOK, "application/json", nil)
		return nil
	}
	c.typed("application/json")
	c.head(http.StatusOK, length)
	for i := first; i < n; i++ {
		if len(b) >= chunk {
			if !c.write(b) {
				return nil
			}
			b = b[:0]
		}
		b = one(b, i)
	}
	c.write(append(b, ']'))
	return nil
}

const (
	word = 16 // a string's or a slice's header takes as much, or a little more
	// entry is about what a key's or a version's struct takes, with its maps.
	entry = 256
)

func namesMemory(names []string) (bytes int64) {
	for _, name := range names {
		bytes += int64(word + len(name))
	}
	return bytes
}

func metadataMemory(m *claviger.Metadata) int64 {
	if m == nil {
		return word
	}
	bytes := entry + len(m.Name) + len(m.Cipher)
	if m.Description != nil {
		bytes += len(*m.Description)
	}
	for name, value := range m.Attributes {
		bytes += 4*word + len(name) + len(value)
	}
	return int64(bytes)
}

func versionsMemory(vs []claviger.KeyVersion) (bytes int64) {
	for i := range vs {
		bytes += int64(entry + len(vs[i].Key) + len(vs[i].Name) + len(vs[i].Material))
	}
	return bytes
}

func deletedMemory(keys []keyring.DeletedKey) (bytes int64) {
	for i := range keys {
		bytes += metadataMemory(&keys[i].Metadata) + namesMemory(keys[i].List)
	}
	return bytes
}

func describedMemory(keys []kmswire.KeyDescription) (bytes int64) {
	for i := range keys {
		k := &keys[i]
		bytes += metadataMemory(&claviger.Metadata{Name: k.Name, Cipher: k.Cipher, Description: k.Description, Attributes: k.Attributes})
		for _, v := range k.Versions {
			bytes += int64(2*entry + 2*(len(v.Name)+len(v.Label)+len(v.ID)))
		}
	}
	return bytes
}
