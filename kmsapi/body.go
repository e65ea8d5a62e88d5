package kmsapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"claviger/kmswire"
)

// readBody checks the content type of the body and reads it whole into c.body.
func (c *call) readBody(ctx context.Context) (err error) {
	defer c.span.Step("body").EndWith(&err)
	media, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(media)) {
	case "application/json":
	case "":
		return kmswire.Throw(kmswire.WebApplicationException,
			"com.sun.jersey.api.MessageException: A message body reader for Java class java.util.Map, and Java type "+
				"interface java.util.Map, and MIME media type application/octet-stream was not found.")
	default:
		return &kmswire.Exception{Class: kmswire.WebApplicationException, NoMessage: true}
	}
	limit := int64(smallBody)
	if c.route.body == batchBody {
		limit = c.Limits.MaxBody
	}
	if c.r.ContentLength > limit {
		return &tooLarge{limit}
	}
	var in io.Reader = c.r.Body
	if c.r.ContentLength < 0 { // otherwise net/http reads no more than the length
		in = http.MaxBytesReader(c.w, c.r.Body, limit)
	}
	if c.body, err = c.readAll(ctx, in); err != nil {
		return c.unread(err, limit)
	}
	return nil
}

// unread returns the answer for a body that could not be read.
func (c *call) unread(err error, limit int64) error {
	var over *http.MaxBytesError
	var overload *busy
	switch {
	case errors.As(err, &over):
		return &tooLarge{limit}
	case errors.As(err, &overload):
		c.w.Header().Set("Connection", "close") // the rest is not read
		return err
	}
	return kmswire.Throw(kmswire.IOException, "the request's body could not be read to its end")
}

// firstRead is the memory of a body before its first byte has arrived, in bytes.
// A client that announces a long body and sends nothing must not cost more.
const firstRead = 16 << 10

// readAll reads a body. Its memory grows as its bytes arrive. A body that arrives
// too slowly is an error, see Slow.
func (c *call) readAll(ctx context.Context, in io.Reader) ([]byte, error) {
	announced := c.r.ContentLength // -1 if the client announced no length
	first := announced + 1         // one byte more, to read the end without growing
	if announced < 0 || first > firstRead {
		first = firstRead
	}
	b := buffer(int(first))
	extendDeadline := c.readDeadlines()
	for {
		extendDeadline(len(b))
		n, err := in.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case errors.Is(err, io.EOF):
			extendDeadline(-1)
			return b, nil
		case err == nil && len(b) == cap(b):
			b, err = c.grow(ctx, b)
		}
		if err != nil {
			recycle(b)
			return nil, err
		}
	}
}

// grow returns a longer buffer with the bytes of b, which is recycled.
func (c *call) grow(ctx context.Context, b []byte) ([]byte, error) {
	longer := longBuffer(2 * cap(b))
	if err := c.reserve(ctx, int64(cap(longer)-cap(b))); err != nil { // the bytes in b are reserved already
		recycle(longer)
		return b, err
	}
	longer = append(longer, b...)
	recycle(b)
	return longer, nil
}

// tooLarge is the error for a body that is longer than its limit.
type tooLarge struct{ limit int64 }

func (e *tooLarge) Error() string {
	return "the request's body is longer than " + strconv.FormatInt(e.limit, 10) + " bytes"
}
