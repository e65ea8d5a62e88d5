package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"net"
	"strings"
	"sync"
	"testing"
)

// Faults is a proxy that makes statements fail on demand. It changes a message of the client, so that the server
// answers with an error, or a row of the server, so that the client cannot scan the row. It forwards connections
// without TLS.
type Faults struct {
	// Addr is its address, "127.0.0.1:PORT".
	Addr string
	// Skip reports whether a statement, or a row of its result, is not counted and never fails; nil counts all.
	Skip func(statement string, row bool) bool

	server string
	mu     sync.Mutex
	calls  int    // since the last start
	fail   int    // the number of the call that fails; 0: none
	hook   func() // called before that call, which does not fail then; nil: the call fails
	fault  Fault  // the call that failed
}

// Fault is a call that was made to fail. The zero value means no fault.
type Fault struct {
	Number    int // of the call, from 1
	Statement string
	Row       bool // a row of the statement's result was changed
}

func (f Fault) String() string {
	what := "the statement"
	if f.Row {
		what = "a row of"
	}
	return fmt.Sprintf("call %d (%s %s)", f.Number, what, f.Statement)
}

// NewFaults makes a proxy to a server. The end of the test stops it.
func NewFaults(t testing.TB, server string) *Faults {
	t.Helper()
	f := &Faults{server: server}
	addr, stop, wait := listen(t, f.serve)
	f.Addr = addr
	t.Cleanup(func() {
		stop()
		wait() // the clients have closed their connections
	})
	return f
}

// EachFails calls do several times. In the first round the first call fails, in the second round the second call, and
// so on. A call is a statement, or a row of a result. In the last round no call fails, because do makes no more calls;
// its fault is the zero value. EachFails yields the fault of each round and the error of do. No calls fail while the
// caller handles them.
func (f *Faults) EachFails(do func() error) iter.Seq2[Fault, error] { return f.BeforeEach(nil, do) }

// BeforeEach is EachFails, but calls hook before the call, and the call does not fail.
func (f *Faults) BeforeEach(hook func(), do func() error) iter.Seq2[Fault, error] {
	return func(yield func(Fault, error) bool) {
		for n := 1; ; n++ {
			f.start(n, hook)
			err := do()
			fault := f.stop()
			if !yield(fault, err) || fault.Number == 0 {
				return
			}
		}
	}
}

func (f *Faults) start(fail int, hook func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.fail, f.hook, f.fault = 0, fail, hook, Fault{}
}

func (f *Faults) stop() Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = 0
	return f.fault
}

// fails counts a call, and reports whether the call must fail.
func (f *Faults) fails(statement string, row bool) bool {
	f.mu.Lock()
	if f.fail == 0 || f.Skip != nil && f.Skip(statement, row) {
		f.mu.Unlock()
		return false
	}
	f.calls++
	now, hook := f.calls == f.fail, f.hook
	if now {
		f.fault = Fault{f.calls, statement, row}
	}
	f.mu.Unlock()
	if now && hook != nil {
		hook()
		return false
	}
	return now
}

func (f *Faults) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", f.server)
	if err != nil {
		_ = client.Close()
		return
	}
	q := &queue{}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { _ = server.Close() }() // one direction is useless without the other
		_ = f.forwardStatements(server, client, q)
	})
	wg.Go(func() {
		defer func() { _ = client.Close() }()
		_ = f.forwardRows(client, server, q)
	})
	wg.Wait()
}

// queue holds the statements that a server has not answered completely.
type queue struct {
	mu         sync.Mutex
	statements []string
}

func (q *queue) push(statement string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.statements = append(q.statements, statement)
}

func (q *queue) first() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.statements) == 0 {
		return ""
	}
	return q.statements[0]
}

// answered removes the first statement, or all statements, because the server skips them after an error.
func (q *queue) answered(all bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if all {
		q.statements = nil
	} else if len(q.statements) > 0 {
		q.statements = q.statements[1:]
	}
}

// message is a message of the protocol, see https://www.postgresql.org/docs/current/protocol-message-formats.html.
type message struct {
	kind byte // 0 for the first message of a client
	body []byte
}

func readMessage(r io.Reader, first bool) (m message, err error) {
	head := make([]byte, 5)
	if first {
		head = head[:4]
	}
	if _, err := io.ReadFull(r, head); err != nil {
		return m, err
	}
	if !first {
		m.kind, head = head[0], head[1:]
	}
	m.body = make([]byte, binary.BigEndian.Uint32(head)-4)
	_, err = io.ReadFull(r, m.body)
	return m, err
}

func (m message) write(w io.Writer) error {
	var b []byte
	if m.kind != 0 {
		b = append(b, m.kind)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.body)+4))
	_, err := w.Write(append(b, m.body...))
	return err
}

// forwardStatements forwards the messages of a client. A statement that must fail is replaced by an invalid one.
func (f *Faults) forwardStatements(to io.Writer, from io.Reader, q *queue) error {
	r := bufio.NewReader(from)
	prepared := map[string]string{} // statements by name
	for first := true; ; first = false {
		m, err := readMessage(r, first)
		if err != nil {
			return err
		}
		parts := bytes.SplitN(m.body, []byte{0}, 3)
		switch m.kind {
		case 'P': // Parse: name, statement
			prepared[string(parts[0])] = string(parts[1])
		case 'B': // Bind: portal, name of the statement
			statement := prepared[string(parts[1])]
			q.push(statement)
			if f.fails(statement, false) {
				m.body = append([]byte("\x00no such statement\x00"), 0, 0, 0, 0, 0, 0)
			}
		case 'Q': // Query: statement
			statement := string(parts[0])
			q.push(statement)
			if statement != "rollback" && !strings.HasPrefix(statement, "-- ping") && f.fails(statement, false) {
				m.body = []byte("SELECT 1/0\x00")
			}
		}
		if err := m.write(to); err != nil {
			return err
		}
	}
}

// forwardRows forwards the messages of a server. A row that must fail gets values of wrong lengths, and a column more.
func (f *Faults) forwardRows(to io.Writer, from io.Reader, q *queue) error {
	r := bufio.NewReader(from)
	for {
		m, err := readMessage(r, false)
		if err != nil {
			return err
		}
		switch m.kind {
		case 'D': // DataRow: number of columns, columns with their lengths
			if f.fails(q.first(), true) {
				columns := binary.BigEndian.Uint16(m.body) + 1
				m.body = binary.BigEndian.AppendUint16(nil, columns)
				m.body = append(m.body, bytes.Repeat([]byte{0, 0, 0, 1, 'x'}, int(columns))...)
			}
		case 'C', 'I': // CommandComplete, EmptyQueryResponse
			q.answered(false)
		case 'E': // ErrorResponse
			q.answered(true)
		}
		if err := m.write(to); err != nil {
			return err
		}
	}
}
