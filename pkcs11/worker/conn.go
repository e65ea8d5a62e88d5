package worker

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"io"
	"syscall"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"claviger/pkcs11/cryptoki"
)

// conn is one end of a socket pair between a server and its worker. It carries one call at a time. The sockets block:
// a thread that waits in a system call costs much less than Go's poller, and a call in the library of this process
// would keep a thread as well.
//
// A message begins with a byte that says what follows: a Request or a Response by package gob, or the raw form of
// Encrypt, which is the call of each request that opens or makes keys.
type conn struct {
	fd   int
	in   []byte       // received bytes
	next int          // in[next:] has not been read yet
	out  bytes.Buffer // the head of a message, or all of it
	data []byte       // of a request, in the worker
	enc  *gob.Encoder // writes to out
	dec  *gob.Decoder
}

// The first byte of a message.
const (
	byGob     = 'g'
	encrypt   = 'e' // 3 numbers of 64 bits: session, key, mechanism; the parameter; the data
	encrypted = 'd' // the data
)

// connBuffer is the size of the buffer of a connection, in bytes. It holds the message of a call for many single
// EDEKs. The data of a larger message is read directly to its destination, so that it is not copied.
const connBuffer = 4 << 10

func newConn(fd int) *conn {
	l := &conn{fd: fd, in: make([]byte, 0, connBuffer)}
	l.enc, l.dec = gob.NewEncoder(&l.out), gob.NewDecoder(l)
	return l
}

func (l *conn) close() { _ = syscall.Close(l.fd) }

// shutdown ends a Read or a send of another goroutine.
func (l *conn) shutdown() { _ = syscall.Shutdown(l.fd, syscall.SHUT_RDWR) }

// retried makes a system call again if a signal interrupted it.
func retried(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != syscall.EINTR { //nolint:errorlint // a system call's own error
			return n, err
		}
	}
}

// Read reads from the socket. It returns io.EOF if the other end is closed.
func (l *conn) Read(p []byte) (int, error) {
	if l.next == len(l.in) && len(p) < cap(l.in) {
		clear(l.in) // it may have been keystream
		n, err := l.receive(l.in[:cap(l.in)])
		l.in, l.next = l.in[:n], 0
		if err != nil {
			return 0, err
		}
	}
	if l.next < len(l.in) {
		n := copy(p, l.in[l.next:])
		l.next += n
		return n, nil
	}
	return l.receive(p)
}

func (l *conn) receive(p []byte) (int, error) {
	n, err := retried(func() (int, error) { return syscall.Read(l.fd, p) })
	if err != nil || n == 0 {
		return 0, cmp.Or(err, io.EOF)
	}
	return n, nil
}

// ReadByte reads one byte, so that package gob reads no more than its message.
func (l *conn) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(l, b[:])
	return b[0], err
}

// wipe clears what was received.
func (l *conn) wipe() { clear(l.in[:l.next]) }

// send sends the message in out, and data after it.
func (l *conn) send(data []byte) error {
	defer l.out.Reset()
	head := l.out.Bytes()
	defer clear(head)
	if len(data) <= connBuffer {
		l.out.Write(data)
		head, data = l.out.Bytes(), nil
		defer clear(head)
	}
	for len(head)+len(data) > 0 {
		n, err := retried(func() (int, error) { return unix.Writev(l.fd, [][]byte{head, data}) })
		if err != nil {
			return err
		}
		sent := min(n, len(head))
		head, data = head[sent:], data[n-sent:]
	}
	return nil
}

// sendGob sends a Request or a Response.
func (l *conn) sendGob(v any) error {
	l.out.WriteByte(byGob)
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	return l.send(nil)
}

// sendRequest sends the raw form of Encrypt.
func (l *conn) sendRequest(q *Request) error {
	m := q.Mechanisms[0]
	b := append(l.out.AvailableBuffer(), encrypt)
	for _, n := range []uint64{uint64(q.Session), uint64(q.Object), uint64(m.Mechanism)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(appendLength(b, m.Parameter), m.Parameter...)
	l.out.Write(appendLength(b, q.Data))
	return l.send(q.Data)
}

// sendResponse sends the result of Encrypt.
func (l *conn) sendResponse(data []byte) error {
	l.out.Write(appendLength(append(l.out.AvailableBuffer(), encrypted), data))
	return l.send(data)
}

func appendLength(b, p []byte) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(len(p))) //nolint:gosec // far below the limit of Encrypt
}

func (l *conn) number() (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(l, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// bytes reads a byte string of at most limit bytes into p, or into new memory if p is too small.
func (l *conn) bytes(p []byte, limit int) ([]byte, error) {
	var b [4]byte
	if _, err := io.ReadFull(l, b[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(b[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("a message has %d bytes, and may have at most %d", n, limit)
	}
	if int64(cap(p)) < int64(n) {
		p = make([]byte, n)
	}
	p = p[:n]
	_, err := io.ReadFull(l, p)
	return p, err
}

// call sends a request and returns the response. After an error the connection cannot be used any more.
func (l *conn) call(q *Request) (*Response, error) {
	var err error
	if q.Function == "Encrypt" {
		err = l.sendRequest(q)
	} else {
		err = l.sendGob(q)
	}
	if err != nil {
		return nil, err
	}
	defer l.wipe()
	r := new(Response)
	switch kind, err := l.ReadByte(); {
	case err != nil:
		return nil, err
	case kind == byGob:
		return r, l.dec.Decode(r)
	case kind == encrypted && q.Function == "Encrypt":
		r.Data, err = l.bytes(cryptoki.NewBuffer(len(q.Data)), len(q.Data)) // a block cipher makes no more
		return r, err
	default:
		return nil, fmt.Errorf("a message of an unknown kind, %#x", kind)
	}
}

// maxRequest is the largest size of the data of a request, in bytes.
const maxRequest = 1 << 30

// serve answers requests until the other end is closed.
func (l *conn) serve(answer func(*Request, *Response)) error {
	defer l.close()
	for {
		kind, err := l.ReadByte()
		if err != nil {
			return err
		}
		q, r := new(Request), new(Response)
		if kind == encrypt {
			err = l.readEncrypt(q)
		} else {
			err = l.dec.Decode(q)
		}
		l.wipe()
		if err != nil {
			return err
		}
		answer(q, r)
		if kind == encrypt && !r.Failed {
			err = l.sendResponse(r.Data)
			clear(r.Data)
			cryptoki.FreeBuffer(r.Data)
		} else {
			err = l.sendGob(r)
		}
		clear(l.data)
		if err != nil {
			return err
		}
	}
}

// readEncrypt reads the raw form of Encrypt.
func (l *conn) readEncrypt(q *Request) error {
	q.Function = "Encrypt"
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = l.number(); err != nil {
			return err
		}
	}
	q.Session, q.Object = p11.SessionHandle(n[0]), p11.ObjectHandle(n[1])
	parameter, err := l.bytes(nil, maxRequest)
	if err != nil {
		return err
	}
	q.Mechanisms = []*p11.Mechanism{{Mechanism: uint(n[2]), Parameter: parameter}}
	l.data, err = l.bytes(l.data, maxRequest)
	q.Data = l.data
	return err
}
