package bench

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"claviger/provider/kmsclient"
)

// ticket proves by Kerberos which user sends one request. A KMS accepts it once.
type ticket struct {
	n      kmsclient.Negotiation
	header []byte // the header line of the request
}

// negotiateScheme begins the values of the headers Authorization and WWW-Authenticate.
const negotiateScheme = "Negotiate "

// newTicket makes the proof for the next request.
func (t *target) newTicket() (*ticket, error) {
	n, err := t.negotiate(strings.ToLower(t.base.Hostname()))
	if err != nil {
		return nil, err
	}
	token, _, err := n.Step(nil)
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return &ticket{n: n, header: fmt.Appendf(nil, "Authorization: %s%s\r\n", negotiateScheme,
		base64.StdEncoding.EncodeToString(token))}, nil
}

// with returns a request with the proof.
func (k *ticket) with(request []byte) []byte {
	line := bytes.IndexByte(request, '\n') + 1
	b := make([]byte, 0, len(request)+len(k.header))
	b = append(b, request[:line]...)
	b = append(b, k.header...)
	return append(b, request[line:]...)
}

// check returns an error if a KMS that did what was requested did not prove its own identity.
func (k *ticket) check(answer *http.Response) error {
	if answer.StatusCode >= http.StatusMultipleChoices {
		return nil
	}
	text, ok := strings.CutPrefix(answer.Header.Get("WWW-Authenticate"), negotiateScheme)
	token, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil {
		return errors.New("the KMS did not prove its identity by Kerberos: its answer has no token")
	}
	if _, done, err := k.n.Step(token); err != nil || !done {
		return fmt.Errorf("the KMS did not prove its identity by Kerberos: %w", err)
	}
	return nil
}

func (k *ticket) close() { _ = k.n.Close() } // Close only frees memory

// prepare makes the proof for the next request before its latency counts, if the KMS gets one with each request. An
// error shows again when the request is sent.
func (c *connection) prepare() {
	if c.t.negotiate != nil && c.ticket == nil {
		c.ticket, _ = c.t.newTicket()
	}
}

// proof returns the proof for this request; nil if the KMS gets a cookie or a token.
func (c *connection) proof() (*ticket, error) {
	k := c.ticket
	c.ticket = nil
	if k == nil && c.t.negotiate != nil {
		return c.t.newTicket()
	}
	return k, nil
}
