package keystore

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger/filestamp"
)

// ReloadInterval is the interval at which Hadoop checks its TLS stores for changes.
const ReloadInterval = 10 * time.Second

// Reloader has a value that was loaded from files, and loads it again when one of the files changes. If the new files
// cannot be loaded, it logs the error and keeps the old value, so a half-copied certificate does not stop the server.
//
// It compares the files' stamps at an interval. So it notices a file that is written in place, a file that is renamed
// over another, a symbolic link to a new folder (as in Kubernetes), and changes on a network file system, which sends
// no events.
type Reloader[T any] struct {
	load    func() (T, error)
	files   []string
	log     *slog.Logger
	current atomic.Pointer[T]

	stop chan struct{}
	once sync.Once
	done chan struct{}
}

// NewReloader loads the value for the first time, and returns an error if that fails. load is called by one
// goroutine at a time. Close stops the checks.
func NewReloader[T any](files []string, load func() (T, error), interval time.Duration, log *slog.Logger) (*Reloader[T],
	error) {
	r := &Reloader[T]{load: load, files: files, log: log, stop: make(chan struct{}), done: make(chan struct{})}
	// Read the stamps before the files, so that a change in between is noticed.
	seen := r.stamps()
	v, err := load()
	if err != nil {
		return nil, err
	}
	r.current.Store(&v)
	go r.watch(seen, interval)
	return r, nil
}

// Get returns the last value that was loaded without an error.
func (r *Reloader[T]) Get() T { return *r.current.Load() }

// Close stops the checks and waits for their end. Get still works.
func (r *Reloader[T]) Close() {
	r.once.Do(func() { close(r.stop) })
	<-r.done
}

func (r *Reloader[T]) stamps() []filestamp.Stamp {
	list := make([]filestamp.Stamp, len(r.files))
	for i, f := range r.files {
		list[i], _ = filestamp.Of(f) // zero if the file does not exist or cannot be reached
	}
	return list
}

func (r *Reloader[T]) watch(seen []filestamp.Stamp, interval time.Duration) {
	defer close(r.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	// After a failure the files are loaded again at each check.
	failed := ""
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		now := r.stamps()
		if slices.Equal(seen, now) && failed == "" {
			continue
		}
		seen = now
		v, err := r.load()
		if err != nil {
			if failed != err.Error() {
				r.log.Error("changed file cannot be loaded, so the old content stays in use", "files",
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
