package kmsapi

import (
	"context"
	"net/http"
	"sync/atomic"

	"claviger"
	"claviger/keyring"
	"claviger/kmswire"
)

// Users can make lists long: names of 4096 bytes, metadata of 40 KB, thousands of
// versions. In JSON one byte may become six. So the server estimates the memory of
// a list from earlier lists of its kind, and reserves it before it reads the list.
// Of a long list's JSON, only a part is in memory at a time.

// chunk is how many bytes of a long answer are made before they are sent.
const chunk = 128 << 10

// lists estimates the memory of each kind of list.
type lists struct {
	names, deleted      *estimate
	metadata            *estimate // of one key
	versions, described *estimate // of one key with all its versions
}

// newLists starts with small estimates above 0, because many requests may arrive
// before the first list is read.
func newLists() lists {
	const one, all = 2 << 10, 64 << 10
	return lists{
		names: newEstimate(all), deleted: newEstimate(all), metadata: newEstimate(one),
		versions: newEstimate(all), described: newEstimate(all),
	}
}

// estimate is an expected number of bytes. It rises at once and falls slowly: the
// next list may be as long as the longest before it.
type estimate struct{ bytes atomic.Int64 }

func newEstimate(bytes int64) *estimate {
	e := &estimate{}
	e.bytes.Store(bytes)
	return e
}

func (e *estimate) update(bytes int64) {
	const slowly = 16 // number of lists after which it has fallen by two thirds
	e.bytes.Store(max(bytes, e.bytes.Load()*(slowly-1)/slowly))
}

// reserveEstimate reserves the estimated memory of n items, before they are read.
func (c *call) reserveEstimate(ctx context.Context, e *estimate, n int) error {
	c.estimate = int64(n) * e.bytes.Load()
	return c.reserve(ctx, c.estimate)
}

// reserveActual replaces the estimated memory of n items by their actual one.
func (c *call) reserveActual(ctx context.Context, e *estimate, n int, bytes int64) error {
	e.update(bytes / int64(max(1, n)))
	more := bytes - c.estimate
	c.estimate = bytes
	if more > 0 {
		return c.reserve(ctx, more)
	}
	c.free(-more)
	return nil
}

// appendItem appends the i-th item of a list. For the same i it must always append
// the same bytes.
type appendItem func(b []byte, i int) []byte

// add appends the i-th item, after a comma if it is not the first.
func (item appendItem) add(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return item(b, i)
}

// list answers with a JSON list of n items.
func (c *call) list(ctx context.Context, n int, item appendItem) error {
	l := listAnswer{call: c, n: n, b: append(listBuffer(n), '[')}
	defer func() { recycle(l.b[:cap(l.b)]) }()
	first, err := l.fill(ctx, item)
	if err != nil {
		return err
	}
	if first == n {
		l.b = append(l.b, ']')
		c.answer(http.StatusOK, "application/json", l.b)
		return nil
	}
	// The head needs the length, so the rest is made twice: to count it, and to send it.
	length, err := l.length(ctx, item, first, listBuffer(n))
	if err != nil {
		return err
	}
	if c.r.Method == http.MethodHead {
		c.answer(http.StatusOK, "application/json", nil)
		return nil
	}
	c.contentHeaders("application/json")
	c.head(http.StatusOK, length)
	l.send(item, first)
	return nil
}

// listBuffer returns an empty buffer for a list of n items. Only a long one may become
// longer than the buffers that need no reservation.
func listBuffer(n int) []byte {
	if n > unitNames {
		return longBuffer(0)
	}
	return buffer(0)
}

// sizedList answers with a JSON list of n items whose lengths are known. Unlike list it
// makes each item once.
func (c *call) sizedList(ctx context.Context, n int, size func(i int) int, item appendItem) error {
	length, longest := len("[]"), 0
	for i := range n {
		one := size(i) + len(",")
		length, longest = length+one, max(longest, one)
	}
	if n > 0 {
		length-- // there is no comma after the last item
	}
	l := listAnswer{call: c, n: n, b: buffer(min(length, chunk+longest))}
	defer func() { recycle(l.b[:cap(l.b)]) }()
	if err := l.cover(ctx, cap(l.b)); err != nil {
		return err
	}
	c.contentHeaders("application/json")
	if c.r.Method == http.MethodHead {
		c.head(http.StatusOK, 0)
		return nil
	}
	c.head(http.StatusOK, int64(length))
	l.b = append(l.b, '[')
	l.send(item, 0)
	return nil
}

// listAnswer is a JSON list while it is made. It does not hold the appendItem:
// that would put the function on the heap.
type listAnswer struct {
	*call
	n        int
	b        []byte // the part that is made and not yet sent
	reserved int64  // bytes of buffers for which memory is reserved
}

// cover reserves memory for buffers that have grown to capacity bytes.
func (l *listAnswer) cover(ctx context.Context, capacity int) error {
	more := int64(capacity) - l.reserved
	if more <= 0 {
		return nil
	}
	l.reserved += more
	return l.reserve(ctx, more)
}

// fill appends items to l.b until it has a chunk of bytes. It returns the number
// of items in l.b.
func (l *listAnswer) fill(ctx context.Context, item appendItem) (first int, err error) {
	for ; first < l.n && len(l.b) < chunk; first++ {
		l.b = item.add(l.b, first)
		if err := l.cover(ctx, cap(l.b)); err != nil {
			return 0, err
		}
	}
	return first, nil
}

// length returns the length of the whole list. It makes the items from first on in
// the buffer, one after the other, and recycles the buffer.
func (l *listAnswer) length(ctx context.Context, item appendItem, first int, buffer []byte) (int64, error) {
	defer func() { recycle(buffer[:cap(buffer)]) }()
	length := int64(len(l.b)) + 1 // 1 for "]"
	for i := first; i < l.n; i++ {
		buffer = item.add(buffer[:0], i)
		length += int64(len(buffer))
		if err := l.cover(ctx, cap(l.b)+cap(buffer)); err != nil {
			return 0, err
		}
		if i%unitNames == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return length, nil
}

// send writes l.b, and the items from first on. It ends early if the client disconnects.
func (l *listAnswer) send(item appendItem, first int) {
	for i := first; i < l.n; i++ {
		if len(l.b) >= chunk {
			if !l.write(l.b) {
				return
			}
			l.b = l.b[:0]
		}
		l.b = item.add(l.b, i)
	}
	l.b = append(l.b, ']')
	l.write(l.b)
}

const (
	word = 16 // about the size of a string's or a slice's header, in bytes
	// entry is about the size of the struct of a key or a version with its maps, in
	// bytes.
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
		bytes += metadataMemory(&claviger.Metadata{
			Name: k.Name, Cipher: k.Cipher, Description: k.Description, Attributes: k.Attributes,
		})
		for _, v := range k.Versions {
			bytes += int64(2*entry + 2*(len(v.Name)+len(v.Label)+len(v.ID)))
		}
	}
	return bytes
}
