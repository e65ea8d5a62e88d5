package zookeeper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Initiator is the client's side of a GSS-API context with one server. Package gssapi implements it. A build
// without Kerberos has no Initiator.
type Initiator interface {
	// Step takes the server's token (nil at first) and returns the next token for the server. If done is true, the
	// context is established.
	Step(in []byte) (out []byte, done bool, err error)
	// Wrap protects a message to the server. Unwrap opens a message of the server.
	Wrap(message []byte) ([]byte, error)
	Unwrap(token []byte) ([]byte, error)
	Close() error
}

// In ZooKeeper, SASL uses requests of type 102, directly after the session is established. Each request and each
// answer has a token.
//
//	request: int32 xid | int32 102 | int32 length, token
//	answer:  int32 xid | int64 zxid | int32 error | int32 length (-1: none), token
//
// The mechanism is GSSAPI of RFC 4752. First the tokens of the context are exchanged. Then the server offers security
// layers, and the client chooses "none".
const (
	opSASL        = 102
	maxSASLFrame  = 64 << 10 // bytes
	maxSASLSteps  = 8        // the mechanism needs three or four
	authFailed    = -115
	noLayer       = 1 // bit of the offer's first byte
	layersMessage = 4 // bytes of the offer: the layers, and the largest message, which only layers use
)

// authenticate does the SASL exchange. The deadline of the connection limits its time.
func (c *conn) authenticate(ctx context.Context) (err error) {
	in, err := c.d.sasl(ctx, c.host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	var challenge []byte
	for step, done := 0, false; !done; step++ {
		if step == maxSASLSteps {
			return fmt.Errorf("the server wants more than %d tokens", maxSASLSteps)
		}
		var token []byte
		if token, done, err = in.Step(challenge); err != nil {
			return err
		}
		if challenge, err = c.exchange(token); err != nil {
			return err
		}
	}
	offer, err := in.Unwrap(challenge)
	switch {
	case err != nil:
		return fmt.Errorf("the server's offer of security layers: %w", err)
	case len(offer) != layersMessage:
		return fmt.Errorf("the server's offer of security layers has %d bytes, not %d", len(offer), layersMessage)
	case offer[0]&noLayer == 0:
		return errors.New("the server demands a security layer, which ZooKeeper's protocol does not have; set " +
			"sasl.qop=auth at the server")
	}
	choice, err := in.Wrap([]byte{noLayer, 0, 0, 0})
	if err != nil {
		return err
	}
	_, err = c.exchange(choice)
	return err
}

// exchange sends a token, and returns the token of the answer.
func (c *conn) exchange(token []byte) ([]byte, error) {
	frame := binary.BigEndian.AppendUint32(nil, uint32(12+len(token))) //nolint:gosec // we made the token: some kB
	frame = binary.BigEndian.AppendUint32(frame, 0)                    // xid 0: only one request runs
	frame = binary.BigEndian.AppendUint32(frame, opSASL)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(token))) //nolint:gosec // as above
	if _, err := c.Conn.Write(append(frame, token...)); err != nil {
		return nil, err
	}
	n, err := readFrameLength(c.r, replyHeader, maxSASLFrame)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errRefused // the server closes the connection if authentication fails
		}
		return nil, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	switch code := int32(binary.BigEndian.Uint32(body[12:])); code { //nolint:gosec // a signed number
	case 0:
	case authFailed:
		return nil, errRefused
	default:
		return nil, fmt.Errorf("the server answers with error %d", code)
	}
	body = body[replyHeader:]
	if len(body) < 4 {
		return nil, fmt.Errorf("%w: an answer has no token", errFrame)
	}
	size := int32(binary.BigEndian.Uint32(body)) //nolint:gosec // a signed number
	body = body[4:]
	if size < 0 {
		return nil, nil
	}
	if int64(size) > int64(len(body)) {
		return nil, fmt.Errorf("%w: a token of %d bytes in an answer of %d", errFrame, size, len(body))
	}
	return body[:size], nil
}

var errRefused = errors.New("the server refuses our Kerberos ticket; the server's log has the reason (often, the key " +
	"in the server's keytab is not the KDC's)")
