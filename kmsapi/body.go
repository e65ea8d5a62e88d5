package kmsapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"claviger/kmswire"
)

// readBody checks the type of a body and reads it whole.
func (c *call) readBody(ctx context.Context) error {
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
	var err error
	c.body, err = c.readAll(ctx, http.MaxBytesReader(c.w, c.r.Body, limit))
	var over *http.MaxBytesError
	var overload *busy
	switch {
	case errors.As(err, &over):
		return &tooLarge{limit}
	case errors.As(err, &overload):
		c.w.Header().Set("Connection", "close") // the rest is not read
		return err
	case err != nil:
		return kmswire.Throw(kmswire.IOException, "the request's body could not be read to its end")
	}
	return nil
}

// firstRead is how much memory a body gets before any of it has come: a client
// that announces much and sends nothing must not cost much.
const firstRead = 16 << 10

// readAll reads a body. It gets memory as its bytes come, and must come at a rate.
func (c *call) readAll(ctx context.Context, in io.Reader) ([]byte, error) {
	announced := c.r.ContentLength // -1: none
	first := announced + 1         // one more, to see the end without growing
	if announced < 0 || first > firstRead {
		first = firstRead
	}
	p, _ := buffers.Get().(*[]byte)
	b := slices.Grow((*p)[:0], int(first))
	pace := c.reading()
	for {
		pace(len(b))
		n, err := in.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case errors.Is(err, io.EOF):
			pace(-1)
			return b, nil
		case err == nil && len(b) == cap(b):
			// What it holds already is paid for; growing doubles that.
			if err = c.reserve(ctx, int64(cap(b))); err == nil {
				b = slices.Grow(b, cap(b))
			}
		}
		if err != nil {
			recycle(b)
			return nil, err
		}
	}
}

// tooLarge is a body beyond its limit.
type tooLarge struct{ limit int64 }

func (e *tooLarge) Error() string {
	return "the request's body is longer than " + strconv.FormatInt(e.limit, 10) + " bytes"
}
