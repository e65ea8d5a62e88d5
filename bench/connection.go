package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// requestTimeout bounds one request, and the handshake of one connection.
	requestTimeout = 30 * time.Second
	// maxAnswer bounds the body of an answer. 10,000 EDEKs fit.
	maxAnswer = 16 << 20
)

// connection sends requests that are ready as bytes, one after the other, and reads the answers with net/http. Unlike
// an http.Client, it hands nothing over between goroutines, so it takes less processor time from a server on the same
// machine. One goroutine uses it.
type connection struct {
	t     *target
	fresh bool // a new connection for each request

	ticket *ticket // for the next request; nil: none is made yet

	conn net.Conn // nil while there is none
	r    *bufio.Reader
	body bytes.Buffer
}

// do sends a request and returns the status and the body of the answer. The body is valid until the next call. A
// connection that the server has closed between two requests is opened again.
func (c *connection) do(ctx context.Context, request []byte) (status int, body []byte, err error) {
	reused := c.conn != nil
	status, err = c.exchange(ctx, request)
	if reused && (errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)) {
		c.close()
		status, err = c.exchange(ctx, request)
	}
	if err != nil || c.fresh {
		c.close()
	}
	return status, c.body.Bytes(), err
}

// exchange sends the request and reads the answer. After an error the caller must close the connection.
func (c *connection) exchange(ctx context.Context, request []byte) (status int, err error) {
	if c.conn == nil {
		if err := c.dial(ctx); err != nil {
			return 0, err
		}
	}
	proof, err := c.proof()
	if err != nil {
		return 0, err
	}
	if proof != nil {
		defer proof.close()
		request = proof.with(request)
	}
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, err
	}
	if _, err := c.r.Peek(1); err != nil { // the server closed the idle connection
		return 0, err
	}
	answer, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, fmt.Errorf("the answer is not HTTP, or it is cut off: %w", noEOF(err))
	}
	defer answer.Body.Close()
	c.body.Reset()
	if _, err := c.body.ReadFrom(io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return 0, fmt.Errorf("the body of the answer is cut off: %w", noEOF(err))
	}
	if answer.Close {
		c.close()
	}
	if proof != nil {
		err = proof.check(answer)
	}
	return answer.StatusCode, err
}

// noEOF replaces io.EOF. do sends a request again after io.EOF, because the server may have closed an idle connection.
// It must not do so after half an answer.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *connection) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	d := net.Dialer{}
	conn, err := d.DialContext(ctx, "tcp", c.t.address)
	if err != nil {
		return err
	}
	if c.t.tls != nil {
		secure := tls.Client(conn, c.t.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = secure
	}
	c.conn = conn
	if c.r == nil {
		c.r = bufio.NewReaderSize(conn, 16<<10)
	} else {
		c.r.Reset(conn)
	}
	return nil
}

func (c *connection) close() {
	if c.ticket != nil {
		c.ticket.close()
		c.ticket = nil
	}
	if c.conn != nil {
		_ = c.conn.Close() // each answer has been read, or has failed
		c.conn = nil
	}
}
