package server

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"claviger"
)

// The server reads a body before it knows the sender. So the slots for bodies are limited by address. An
// address is proved if a registered client has signed a request from that address lately.
const (
	// perAddress is how many bodies of one address are read at once. perProved is the same for a proved
	// address, which several clients may share.
	perAddress = 32
	perProved  = 112
	// maxUnknown is how many bodies of addresses that are not proved are read at once. The other slots
	// are for proved addresses.
	maxUnknown = maxBodies / 2
	// provedFor is how long an address is proved after a signed request. maxProved is the size limit of
	// the table of proved addresses.
	provedFor = time.Hour
	maxProved = 1 << 14
	// refusalsEvery is how often refusals are logged.
	refusalsEvery = 10 * time.Second
)

// bodies are the slots for bodies that are being read.
type bodies struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	open    map[string]int // slots that are taken, by address
	all     int            // slots that are taken
	unknown int            // slots that are taken by addresses that are not proved
	proved  map[string]time.Time
	refused int
	logged  time.Time // when a refusal was last logged
}

func newBodies(log *slog.Logger, now func() time.Time) *bodies {
	return &bodies{log: log, now: now, open: make(map[string]int), proved: make(map[string]time.Time)}
}

// enter takes a slot for an address. ok is false if there is none.
func (d *bodies) enter(address string) (leave func(), ok bool) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	unknown := now.Sub(d.proved[address]) >= provedFor
	limit := perProved
	if unknown {
		limit = perAddress
	}
	if d.all >= maxBodies || d.open[address] >= limit || unknown && d.unknown >= maxUnknown {
		if d.refused++; now.Sub(d.logged) >= refusalsEvery {
			d.logged = now
			d.log.Warn("requests are refused before their bodies are read: too many bodies are being read",
				"latest from", address, "of this address", d.open[address], "of all addresses", d.all,
				"of addresses without a known client", d.unknown, "refused so far", d.refused)
		}
		return nil, false
	}
	d.all++
	d.open[address]++
	if unknown {
		d.unknown++
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.all--
		if unknown {
			d.unknown--
		}
		if d.open[address]--; d.open[address] == 0 {
			delete(d.open, address)
		}
	}, true
}

// prove records that a registered client has signed a request from an address.
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
			return // the table is full of addresses that are still proved
		}
	}
	d.proved[address] = now
}

// addressOf returns the network that the address of a sender counts as.
func addressOf(r *http.Request) string { return claviger.Network(r.RemoteAddr) }
