package server

import (
	"time"

	"claviger"
	"claviger/trustee"
)

const (
	// remembered bounds the table of reads, by which no read is answered twice.
	remembered = 1 << 17
	// sweepEvery is how often the whole table is searched for want of room.
	sweepEvery = 10 * time.Second
)

// seenReads are the reads that were answered. A client never has more reads in the table than there
// is room left for all others, so one client with many reads cannot stop the reads of others.
type seenReads struct {
	reads    map[string]seenRead // by digest
	byClient map[string]int
	swept    time.Time
}

type seenRead struct {
	client string
	until  time.Time
}

// first remembers a read until its time is over, and refuses a read that it remembers.
func (s *seenReads) first(digest, client string, until, now time.Time) error {
	const op = "server.first"
	if s.reads == nil {
		s.reads, s.byClient = map[string]seenRead{}, map[string]int{}
	}
	if _, seen := s.reads[digest]; seen {
		return claviger.E(op, claviger.Invalid, "", trustee.ErrReplay)
	}
	if s.full(client) && now.Sub(s.swept) >= sweepEvery {
		s.sweep(now)
	}
	if s.full(client) {
		return claviger.Errorf(op, claviger.Unavailable, "", "this client has sent %d reads within %s, of %d of all "+
			"clients, and more are not taken now; ask less often",
			s.byClient[client], 2*trustee.MaxSkew, len(s.reads))
	}
	s.reads[digest] = seenRead{client, until}
	s.byClient[client]++
	return nil
}

func (s *seenReads) full(client string) bool {
	return s.byClient[client] >= remembered-len(s.reads)
}

// sweep removes the reads whose time is over.
func (s *seenReads) sweep(now time.Time) {
	s.swept = now
	for digest, r := range s.reads {
		if r.until.Before(now) {
			delete(s.reads, digest)
			if s.byClient[r.client]--; s.byClient[r.client] == 0 {
				delete(s.byClient, r.client)
			}
		}
	}
}
