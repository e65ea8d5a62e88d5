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

// Secrets returns the current secret that servers behind one name share, and all valid secrets, with the current one.
type Secrets func() (current secret.Bytes, valid []secret.Bytes)

const (
	// ticketAge is the longest time from a full handshake to the last resumption that follows from it. crypto/tls has a
	// limit for each ticket only, of seven days, and each resumption makes a new ticket.
	ticketAge = 24 * time.Hour
	// ticketLabel keeps the keys of tickets apart from everything else that is made of the same secrets.
	ticketLabel = "claviger TLS session tickets 1"
	// ticketMark begins our entry of a ticket: the mark, the time of the full handshake in seconds (8 bytes, big
	// endian), and the SHA-256 of the certificates.
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

// sharedTickets has the keys that follow from secrets.
type sharedTickets struct {
	secrets Secrets

	mu   sync.Mutex
	of   []secret.Bytes // the secrets of keys, the current one first
	keys *tls.Config
}

// of returns what encrypts the tickets of a version of TLS.
func (t *tickets) of(version uint16) (*tls.Config, error) {
	if s := t.shared.Load(); s != nil && version >= tls.VersionTLS13 {
		return s.now()
	}
	return &t.own, nil
}

// now returns the keys of the secrets that are valid now. The key of the current secret makes tickets.
func (s *sharedTickets) now() (*tls.Config, error) {
	current, valid := s.secrets()
	s.mu.Lock()
	defer s.mu.Unlock()
	of := []secret.Bytes{current}
	for _, v := range valid {
		if !bytes.Equal(v, current) {
			of = append(of, v)
		}
	}
	if s.keys != nil && slices.EqualFunc(s.of, of, func(a, b secret.Bytes) bool { return bytes.Equal(a, b) }) {
		return s.keys, nil
	}
	keys := make([][32]byte, len(of))
	defer clear(keys)
	for i, v := range of {
		key, err := hkdf.Key(sha256.New, v, nil, ticketLabel, len(keys[i]))
		if err != nil {
			return nil, err
		}
		copy(keys[i][:], key)
		clear(key)
	}
	s.of, s.keys = of, &tls.Config{MinVersion: tls.VersionTLS13}
	s.keys.SetSessionTicketKeys(keys)
	return s.keys, nil
}

// ticketMaker makes and opens the tickets of one connection.
type ticketMaker struct {
	tickets *tickets
	shows   [sha256.Size]byte // names the certificates of the server
	now     func() time.Time
	began   time.Time // the full handshake of the ticket that was opened last
}

// wrap makes a ticket; see tls.Config.WrapSession.
func (m *ticketMaker) wrap(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
	keys, err := m.tickets.of(cs.Version)
	if err != nil {
		return nil, err
	}
	began := m.now()
	if cs.DidResume {
		began = m.began
	}
	entry := binary.BigEndian.AppendUint64([]byte(ticketMark), uint64(began.Unix())) //nolint:gosec // after 1970
	ss.Extra = append(ss.Extra, append(entry, m.shows[:]...))
	return keys.EncryptTicket(cs, ss)
}

// unwrap opens a ticket; see tls.Config.UnwrapSession. It returns no session for a ticket with another key, one that is
// too old, and one of a connection with another certificate: the client then makes a full handshake, and sees the
// certificate of now. crypto/tls compares the session with the rules for client certificates.
func (m *ticketMaker) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	keys, err := m.tickets.of(cs.Version)
	if err != nil {
		return nil, err
	}
	ss, err := keys.DecryptTicket(ticket, cs)
	if ss == nil || err != nil {
		return nil, err
	}
	for _, extra := range ss.Extra {
		entry, ours := bytes.CutPrefix(extra, []byte(ticketMark))
		if !ours || len(entry) != 8+sha256.Size || !bytes.Equal(entry[8:], m.shows[:]) {
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
