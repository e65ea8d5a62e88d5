package server

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"claviger"
)

// Bodies are read before their sender is known, so the places to read them count by address.
const (
	// perAddress is how many bodies of one address are read at once; perProved is the same for an
	// address from which a client has signed a request, since several clients may share it.
	perAddress = 32
	perProved  = 112
	// maxUnknown is how many bodies are read at once of addresses from which no client has signed a
	// request lately. The other places are for addresses from which one has.
	maxUnknown = maxBodies / 2
	// provedFor is how long an address counts as a client's after a signed request; maxProved is how
	// many such addresses are remembered.
	provedFor = time.Hour
	maxProved = 1 << 14
	// refusalsEvery is how often the log tells of refusals.
	refusalsEvery = 10 * time.Second
)

// bodies are the places to read bodies.
type bodies struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	open    map[string]int // by address
	all     int
	unknown int // of all, those of maxUnknown
	proved  map[string]time.Time
	refused int
	logged  time.Time
}

func newBodies(log *slog.Logger, now func() time.Time) *bodies {
	return &bodies{log: log, now: now, open: make(map[string]int), proved: make(map[string]time.Time)}
}

// enter takes a place for an address. ok is false if there is none.
func (d *bodies) enter(address string) (leave func(), ok bool) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	stranger := now.Sub(d.proved[address]) >= provedFor
	most := perProved
	if stranger {
		most = perAddress
	}
	if d.all >= maxBodies || d.open[address] >= most || stranger && d.unknown >= maxUnknown {
		if d.refused++; now.Sub(d.logged) >= refusalsEvery {
			d.logged = now
			d.log.Warn("requests are refused before their bodies: as many are being read as may be", "latest from",
				address, "of it", d.open[address],
				"of all", d.all, "of addresses without a known client", d.unknown, "refused so far", d.refused)
		}
		return nil, false
	}
	d.all++
	d.open[address]++
	if stranger {
		d.unknown++
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.all--
		if stranger {
			d.unknown--
		}
		if d.open[address]--; d.open[address] == 0 {
			delete(d.open, address)
		}
	}, true
}

// prove remembers that a client has signed a request from an address.
func (d *bodies) prove(address string) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.proved[address]; !there && len(d.proved) >= maxProved {
		for a, at := range d.proved {
			if now.Sub(at) >= provedFor {
				delete(d.proved, a)
			}
		}
		if len(d.proved) >= maxProved {
			return // the table is full of addresses that are still valid
		}
	}
	d.proved[address] = now
}

// addressOf returns the network that a sender's address counts as.
func addressOf(r *http.Request) string { return claviger.Network(r.RemoteAddr) }
