package server

import (
	"time"

	"claviger"
	"claviger/trustee"
)

const (
	// maxSeen is the size limit of the table of reads.
	maxSeen = 1 << 17
	// sweepEvery is how often a full table is searched for expired reads.
	sweepEvery = 10 * time.Second
)

// seenReads are the reads that were answered, so that none is answered twice. A client never has more
// reads in the table than there is room left for all others, so one client with many reads cannot stop
// the reads of others.
type seenReads struct {
	reads    map[string]seenRead // by digest
	byClient map[string]int
	swept    time.Time
}

type seenRead struct {
	client string
	until  time.Time
}

// add adds a read, which stays in the table until until. It refuses a read that is in the table.
func (s *seenReads) add(digest, client string, until, now time.Time) error {
	const op = "server.refuseReplay"
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
		return claviger.Errorf(op, claviger.Unavailable, "", "this client has sent %d reads within %s, and all "+
			"clients %d; the server accepts no more reads of this client now: send them less often",
			s.byClient[client], 2*trustee.MaxSkew, len(s.reads))
	}
	s.reads[digest] = seenRead{client, until}
	s.byClient[client]++
	return nil
}

func (s *seenReads) full(client string) bool {
	return s.byClient[client] >= maxSeen-len(s.reads)
}

// sweep removes expired reads.
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
