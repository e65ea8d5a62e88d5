package zookeeper

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
)

// initiator implements a mechanism like GSSAPI: two tokens for the context, and wrapped messages are in brackets.
type initiator struct {
	steps  int
	closed *int
}

func (i *initiator) Step(in []byte) ([]byte, bool, error) {
	i.steps++
	switch {
	case i.steps == 1 && in == nil:
		return []byte("ticket"), false, nil
	case i.steps == 2 && string(in) == "proof":
		return nil, true, nil
	case string(in) == "more":
		return []byte("more"), false, nil
	}
	return nil, false, errors.New("an unexpected token: " + string(in))
}
func (i *initiator) Wrap(m []byte) ([]byte, error) { return []byte("[" + string(m) + "]"), nil }
func (i *initiator) Unwrap(t []byte) ([]byte, error) {
	if len(t) < 2 || t[0] != '[' {
		return nil, errors.New("not wrapped")
	}
	return t[1 : len(t)-1], nil
}
func (i *initiator) Close() error { *i.closed++; return nil }

// saslServer serves one connection. It answers the connect request, then each SASL request with the next of answers. At
// a nil answer, it closes the connection.
func saslServer(conn net.Conn, answers [][]byte) (got []string, err error) {
	read := func() ([]byte, error) {
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return nil, err
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		_, err := io.ReadFull(conn, b)
		return b, err
	}
	send := func(b []byte) error {
		_, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)) //nolint:gosec // short
		return err
	}
	if _, err := read(); err != nil {
		return nil, err
	}
	connected := append(make([]byte, 4), 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 16)
	if err := send(append(connected, make([]byte, 17)...)); err != nil {
		return nil, err
	}
	for _, a := range answers {
		b, err := read()
		if err != nil {
			return got, err
		}
		if len(b) < 12 || binary.BigEndian.Uint32(b[4:]) != opSASL {
			return got, errors.New("the request is not SASL")
		}
		got = append(got, string(b[12:]))
		if a == nil {
			return got, nil
		}
		if err := send(a); err != nil {
			return got, err
		}
	}
	return got, nil
}

// tokenAnswer returns an answer with an error code and a token.
func tokenAnswer(code int32, token string) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 12), uint32(code)) //nolint:gosec // a signed number
	return append(binary.BigEndian.AppendUint32(b, uint32(len(token))), token...)
}

// TestSASLExchange: the client finishes the SASL exchange only with an answer that proves the server and offers to go
// on without a security layer.
func TestSASLExchange(t *testing.T) {
	t.Parallel()
	offer := tokenAnswer(0, "[\x07\x00\x00\x00]")
	for name, c := range map[string]struct {
		answers [][]byte
		want    string // of the error; "" is none
	}{
		"success": {[][]byte{tokenAnswer(0, "proof"), offer, tokenAnswer(0, "")}, ""},
		"no token at the end": {[][]byte{tokenAnswer(0, "proof"), offer,
			binary.BigEndian.AppendUint32(make([]byte, 16), 0xffffffff)}, ""},
		"connection closed":  {[][]byte{nil}, "refuses our Kerberos ticket"},
		"refused":            {[][]byte{tokenAnswer(authFailed, "")}, "refuses our Kerberos ticket"},
		"another error":      {[][]byte{tokenAnswer(-5, "")}, "error -5"},
		"a false proof":      {[][]byte{tokenAnswer(0, "liar")}, "an unexpected token"},
		"an unwrapped offer": {[][]byte{tokenAnswer(0, "proof"), tokenAnswer(0, "\x01\x00\x00\x00")}, "not wrapped"},
		"a short offer":      {[][]byte{tokenAnswer(0, "proof"), tokenAnswer(0, "[\x01]")}, "has 1 bytes, not 4"},
		"layers only": {[][]byte{tokenAnswer(0, "proof"), tokenAnswer(0, "[\x06\x00\x00\x00]")},
			"sasl.qop=auth"},
		"a refused choice": {[][]byte{tokenAnswer(0, "proof"), offer, tokenAnswer(authFailed, "")},
			"refuses our Kerberos ticket"},
		"only a header":    {[][]byte{make([]byte, 16)}, "an answer has no token"},
		"too long a token": {[][]byte{append(make([]byte, 16), 0x7f, 0, 0, 0)}, "a token of"},
		"a long answer":    {[][]byte{make([]byte, maxSASLFrame+1)}, "does not use ZooKeeper's protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var group sync.WaitGroup
			var mu sync.Mutex
			var first []string
			group.Go(func() {
				for {
					raw, err := l.Accept()
					if err != nil {
						return
					}
					got, _ := saslServer(raw, c.answers) // fails if the client closes the connection
					mu.Lock()
					if first == nil {
						first = got
					}
					mu.Unlock()
					_ = raw.Close() // the library's requests are not served
				}
			})
			opened, closed := 0, 0
			client := open(t, l.Addr().String(), func(conf *Config) {
				conf.RetryTimeout, conf.Owner = 400*time.Millisecond, "kms"
				conf.SASL = func(_ context.Context, host string) (Initiator, error) {
					opened++
					if host != "127.0.0.1" {
						t.Errorf("a context with host %q", host)
					}
					return &initiator{closed: &closed}, nil
				}
			})
			err = client.Check(t.Context())
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want it to contain %q", err, c.want)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			_ = l.Close() // ends the server
			group.Wait()
			if opened == 0 || opened != closed {
				t.Errorf("%d contexts opened, %d closed", opened, closed)
			}
			if c.want == "" && strings.Join(first, "|") != "ticket||[\x01\x00\x00\x00]" {
				t.Errorf("the server got %q", first)
			}
		})
	}
}

// TestSASLNoContext: the error contains the message of the Kerberos library.
func TestSASLNoContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = saslServer(raw, nil) // the client disconnects
			_ = raw.Close()
		}
	})
	client := open(t, l.Addr().String(), func(conf *Config) {
		conf.RetryTimeout, conf.Owner = 300*time.Millisecond, "kms"
		conf.SASL = func(context.Context, string) (Initiator, error) { return nil, errors.New("no such principal") }
	})
	err = client.Check(t.Context())
	for _, want := range []string{"SASL", "no such principal", l.Addr().String(), "the.property"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to contain %q", err, want)
		}
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	_ = l.Close() // ends the server
	group.Wait()
	if _, err := Open(Config{Ensemble: Ensemble{Servers: []string{"h:1"}}, SessionTimeout: time.Second,
		ConnectTimeout: time.Second, RetryTimeout: time.Second, Owner: "kms"}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("an owner without SASL: %v", err)
	}
}
