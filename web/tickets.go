package web

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"claviger/secret"
)

// Secrets returns secrets that the servers behind one name share: the current one, and all valid ones (also the
// current).
type Secrets func() (current secret.Bytes, valid []secret.Bytes)

const (
	// ticketAge is the longest time from a full handshake to the last resumption that follows from it. crypto/tls has a
	// limit for each ticket only, of seven days, and each resumption makes a new ticket.
	ticketAge = 24 * time.Hour
	// ticketLabel makes the keys of tickets differ from all other keys that are derived from the same secrets.
	ticketLabel = "claviger TLS session tickets 1"
	// ticketMark begins our entry of a ticket: the mark, the time of the full handshake in seconds (8 bytes, big
	// endian), and the SHA-256 of the server's certificates.
	ticketMark = "claviger 1:"
)

// tickets has the keys of the session tickets of a server.
//
// A ticket of TLS 1.3 has a key that only resumes a session: it decrypts no recorded connection, since each resumption
// has a Diffie-Hellman exchange of its own. A ticket of TLS 1.2 has the key of the connection itself, and passes the
// network in clear text. So the second kind is never encrypted by a key that anybody outside this process can have.
type tickets struct {
	own    tls.Config // with keys of this process, which crypto/tls replaces daily
	shared atomic.Pointer[sharedTickets]
}

// sharedTickets has the keys that are derived from shared secrets.
type sharedTickets struct {
	secrets Secrets

	mu   sync.Mutex
	from []secret.Bytes // the secrets from which keys was derived, the current one first
	keys *tls.Config
}

// keysFor returns the keys of tickets of a version of TLS.
func (t *tickets) keysFor(version uint16) (*tls.Config, error) {
	if s := t.shared.Load(); s != nil && version >= tls.VersionTLS13 {
		return s.current()
	}
	return &t.own, nil
}

// current returns the keys of the secrets that are valid now. The key of the current secret encrypts new tickets, and
// all keys open tickets.
func (s *sharedTickets) current() (*tls.Config, error) {
	current, valid := s.secrets()
	s.mu.Lock()
	defer s.mu.Unlock()
	from := []secret.Bytes{current}
	for _, v := range valid {
		if !bytes.Equal(v, current) {
			from = append(from, v)
		}
	}
	if s.keys != nil && slices.EqualFunc(s.from, from, func(a, b secret.Bytes) bool { return bytes.Equal(a, b) }) {
		return s.keys, nil
	}
	keys := make([][32]byte, len(from))
	defer clear(keys)
	for i, v := range from {
		key, err := hkdf.Key(sha256.New, v, nil, ticketLabel, len(keys[i]))
		if err != nil {
			return nil, err
		}
		copy(keys[i][:], key)
		clear(key)
	}
	s.from, s.keys = from, &tls.Config{MinVersion: tls.VersionTLS13}
	s.keys.SetSessionTicketKeys(keys)
	return s.keys, nil
}

// ticketMaker makes and opens the tickets of one connection.
type ticketMaker struct {
	tickets      *tickets
	certificates [sha256.Size]byte // SHA-256 of the certificates that the server may show on this connection
	now          func() time.Time
	began        time.Time // of a resumed session: the time of its full handshake
}

// wrap makes a ticket; see tls.Config.WrapSession.
func (m *ticketMaker) wrap(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
	keys, err := m.tickets.keysFor(cs.Version)
	if err != nil {
		return nil, err
	}
	began := m.now()
	if cs.DidResume {
		began = m.began
	}
	entry := binary.BigEndian.AppendUint64([]byte(ticketMark), uint64(began.Unix())) //nolint:gosec // after 1970
	ss.Extra = append(ss.Extra, append(entry, m.certificates[:]...))
	return keys.EncryptTicket(cs, ss)
}

// unwrap opens a ticket; see tls.Config.UnwrapSession. It returns no session if the ticket has another key or is too
// old, or if the server's certificates have changed. The client then makes a full handshake, and sees the present
// certificate. crypto/tls checks the session against the rules for client certificates.
func (m *ticketMaker) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	keys, err := m.tickets.keysFor(cs.Version)
	if err != nil {
		return nil, err
	}
	ss, err := keys.DecryptTicket(ticket, cs)
	if ss == nil || err != nil {
		return nil, err
	}
	for _, extra := range ss.Extra {
		entry, ours := bytes.CutPrefix(extra, []byte(ticketMark))
		if !ours || len(entry) != 8+sha256.Size || !bytes.Equal(entry[8:], m.certificates[:]) {
			continue
		}
		began := time.Unix(int64(binary.BigEndian.Uint64(entry)), 0) //nolint:gosec // wrap wrote it
		if m.now().Sub(began).Abs() > ticketAge {                    // a clock of another node may be ahead
			return nil, nil
		}
		m.began = began
		return ss, nil
	}
	return nil, nil
}
