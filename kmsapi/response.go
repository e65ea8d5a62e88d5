package kmsapi

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// buffers hold bodies while they are read, and answers while they are built, of up to
// freeMemory bytes. They may hold key material, so recycle wipes them.
var buffers = sync.Pool{New: newBuffer}

func newBuffer() any {
	const size = 4 << 10 // most answers are shorter
	b := make([]byte, 0, size)
	return &b
}

// buffer returns an empty buffer for at least n bytes.
func buffer(n int) []byte {
	if n > freeMemory {
		return longBuffer(n)
	}
	p, _ := buffers.Get().(*[]byte)
	return slices.Grow((*p)[:0], n)
}

// longBuffers are buffers for longer bodies and answers: one pool for each capacity.
// The user of a long buffer reserves its memory. Each capacity is four times the one
// before, so that a body that grows is copied rarely, and a body that stops arriving
// takes about four times its bytes at most.
var longBuffers = [...]struct {
	capacity int
	pool     sync.Pool
}{{capacity: 4 * freeMemory}, {capacity: keepBuffer}}

// keepBuffer is the largest buffer that goes back to a pool.
const keepBuffer = 16 * freeMemory

// longBuffer returns an empty buffer for at least n bytes.
func longBuffer(n int) []byte {
	for i := range longBuffers {
		l := &longBuffers[i]
		if n > l.capacity {
			continue
		}
		if p, ok := l.pool.Get().(*[]byte); ok {
			return *p
		}
		return make([]byte, 0, l.capacity)
	}
	return make([]byte, 0, n)
}

// json writes an answer that build appends. The answer to a key management request
// reserves no memory: it is short, and the change is made already, so it must not
// fail.
func (c *call) json(status int, build func([]byte) []byte) {
	b := build(buffer(0))
	if status == http.StatusOK && c.route != nil && c.route.class != management {
		if err := c.reserve(c.r.Context(), int64(cap(b))); err != nil {
			recycle(b)
			c.fail(err)
			return
		}
	}
	c.answer(status, jsonType, b)
	recycle(b)
}

// recycle wipes a buffer and returns it to its pool.
func recycle(b []byte) {
	clear(b)
	b = b[:0]
	pool := &buffers
	for i := range longBuffers {
		if l := &longBuffers[i]; cap(b) >= l.capacity {
			pool = &l.pool
		}
	}
	if b == nil || cap(b) > keepBuffer || pool == &buffers && cap(b) > freeMemory {
		return // to the garbage collector
	}
	pool.Put(&b)
}

// answer writes a whole response. A HEAD request gets the headers of an empty body.
func (c *call) answer(status int, contentType string, body []byte) {
	if c.r.Method == http.MethodHead {
		body = nil
	}
	if status == http.StatusOK && c.route == nil && len(body) > freeMemory { // a servlet's page
		if err := c.reserve(c.r.Context(), int64(len(body))); err != nil {
			c.fail(err)
			return
		}
	}
	c.contentHeaders(contentType)
	c.send(status, body)
}

// contentHeaders sets the headers of every answer except error pages.
func (c *call) contentHeaders(contentType string) {
	h := c.w.Header()
	if contentType == jsonType {
		h["Content-Type"] = jsonValue
	} else {
		h.Set("Content-Type", contentType)
	}
	h["Cache-Control"] = noCache
	h["Expires"] = c.dates.of(c.began)
}

const jsonType = "application/json"

// Values of headers that many answers share. net/http copies the header before it sends it, and nobody changes a value
// in its place.
var jsonValue, noCache = []string{jsonType}, []string{"no-cache"}

// httpDates formats times for headers. Requests of the same second share a value.
type httpDates struct{ last atomic.Pointer[httpDate] }

type httpDate struct {
	second int64 // since 1970
	value  []string
}

func (d *httpDates) of(t time.Time) []string {
	last := d.last.Load()
	if second := t.Unix(); last == nil || last.second != second {
		last = &httpDate{second, []string{t.UTC().Format(http.TimeFormat)}}
		d.last.Store(last)
	}
	return last.value
}

// defaultHeaders are the headers that Hadoop sends with every answer, in Hadoop's
// spelling.
var defaultHeaders = [...]struct {
	name  string
	value []string
}{{"X-Content-Type-Options", []string{"nosniff"}}, {"X-XSS-Protection", []string{"1; mode=block"}}}

// send writes a response with the headers of every answer.
func (c *call) send(status int, body []byte) {
	c.head(status, int64(len(body)))
	if c.r.Method == http.MethodHead {
		return
	}
	c.write(body)
}

// head writes the head of a response whose body has length bytes.
func (c *call) head(status int, length int64) {
	c.status = status
	h := c.w.Header()
	for _, d := range defaultHeaders {
		if len(h[d.name]) == 0 { // hadoop.http.header.* may have set another value
			h[d.name] = d.value
		}
	}
	h["Pragma"] = noCache
	h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	c.w.WriteHeader(status)
	if c.r.Method == http.MethodHead {
		return
	}
	c.gauges.web.bytes.Add(length)
	c.releaseSlots() // the work is done, and a slow reader must not hold slots
	c.writeDeadline(length)
}

// write writes a body, or a part of one. It returns false if the client has disconnected.
func (c *call) write(body []byte) bool {
	if _, err := c.w.Write(body); err != nil && len(body) > 0 {
		c.Log.Debug("the client disconnected before it got its answer", "id", c.caller.RequestID, "err", err)
		return false
	}
	return true
}
