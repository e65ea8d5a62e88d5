package server

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"claviger"
)

// Bodies are read before it is known whose they are, so the places to read them are
// shared out by address.
const (
	// perAddress is how many bodies of one address are read at once, and perProved how
	// many where a client has proved itself from it: others may share its address.
	perAddress = 32
	perProved  = 112
	// strangers is how many bodies are read at once of addresses from which no client has
	// proved itself lately. The rest is for those from which one has.
	strangers = arriving / 2
	// provedFor is how long an address counts as a client's after a signed request, and
	// maxProved how many are remembered.
	provedFor = time.Hour
	maxProved = 1 << 14
	// doorsLog is how often the log tells of refusals.
	doorsLog = 10 * time.Second
)

// doors are the places to read bodies.
type doors struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	open    map[string]int // by address
	all     int
	unknown int // of all, those of strangers
	proved  map[string]time.Time
	refused int
	logged  time.Time
}

func newDoors(log *slog.Logger, now func() time.Time) *doors {
	return &doors{log: log, now: now, open: make(map[string]int), proved: make(map[string]time.Time)}
}

// enter takes a place for an address; ok is false where there is none.
func (d *doors) enter(address string) (leave func(), ok bool) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	stranger := now.Sub(d.proved[address]) >= provedFor
	most := perProved
	if stranger {
		most = perAddress
	}
	if d.all >= arriving || d.open[address] >= most || stranger && d.unknown >= strangers {
		if d.refused++; now.Sub(d.logged) >= doorsLog {
			d.logged = now
			d.log.Warn("requests are refused before their bodies: as many are being read as may be", "latest from", address, "of it", d.open[address],
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

// prove remembers that a known client has signed a request from an address.
func (d *doors) prove(address string) {
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
			return // those that are there stay
		}
	}
	d.proved[address] = now
}

// addressOf is what the peer's address counts as.
func addressOf(r *http.Request) string { return claviger.Network(r.RemoteAddr) }
