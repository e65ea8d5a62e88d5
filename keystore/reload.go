package keystore

import (
	"crypto/tls"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger/filestamp"
)

// ReloadInterval is how often Hadoop looks whether its TLS stores changed.
const ReloadInterval = 10 * time.Second

// Reloader holds what was loaded from files, and loads it again when one of them
// changes. A new state that cannot be loaded is logged, and the old one stays in
// use: a certificate half copied must not stop the server.
//
// It looks at the files' stamps at an interval. That sees a
// file written in place, one renamed over it, a symbolic link turned to another
// folder (as Kubernetes does), and changes on a network file system, which sends
// no notices.
type Reloader[T any] struct {
	load    func() (T, error)
	files   []string
	log     *slog.Logger
	current atomic.Pointer[T]

	stop chan struct{}
	once sync.Once
	done chan struct{}
}

// NewReloader loads for the first time, and fails if that does. load is called
// from one goroutine at a time. Close ends the watch.
func NewReloader[T any](files []string, load func() (T, error), interval time.Duration, log *slog.Logger) (*Reloader[T],
	error) {
	r := &Reloader[T]{load: load, files: files, log: log, stop: make(chan struct{}), done: make(chan struct{})}
	// The files are looked at before they are read, so that a change in between
	// is found.
	seen := r.look()
	v, err := load()
	if err != nil {
		return nil, err
	}
	r.current.Store(&v)
	go r.watch(seen, interval)
	return r, nil
}

// Get returns what was last loaded well.
func (r *Reloader[T]) Get() T { return *r.current.Load() }

// Close ends the watch and waits for its end. Get goes on working.
func (r *Reloader[T]) Close() {
	r.once.Do(func() { close(r.stop) })
	<-r.done
}

func (r *Reloader[T]) look() []filestamp.Stamp {
	list := make([]filestamp.Stamp, len(r.files))
	for i, f := range r.files {
		list[i], _ = filestamp.Of(f) // zero: not there, or out of reach
	}
	return list
}

func (r *Reloader[T]) watch(seen []filestamp.Stamp, interval time.Duration) {
	defer close(r.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	// What could not be loaded is tried again, whatever it was.
	failed := ""
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		now := r.look()
		if slices.Equal(seen, now) && failed == "" {
			continue
		}
		seen = now
		v, err := r.load()
		if err != nil {
			if failed != err.Error() {
				r.log.Error("changed file cannot be loaded, what was loaded before stays in use", "files",
					strings.Join(r.files, ", "), "reason", err)
			}
			failed = err.Error()
			continue
		}
		failed = ""
		r.current.Store(&v)
		r.log.Info("changed file was loaded", "files", strings.Join(r.files, ", "))
	}
}

// GetCertificate makes a tls.Config's GetCertificate of a reloader.
func GetCertificate(r *Reloader[tls.Certificate]) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.current.Load(), nil }
}
