package authz

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"claviger/filestamp"
)

// CheckInterval is how often a Watcher looks at its file; the same as Hadoop's.
const CheckInterval = time.Second

// settleTime is how long a file must have been left alone before it is read,
// so that a writer without rename(2) is not caught half way. Hadoop's own
// threshold is of the same length.
const settleTime = 100 * time.Millisecond

// Watcher holds the Policy of one kms-acls.xml and follows the file. A change
// takes effect as a whole or not at all: where the file cannot be read or is
// broken, the rules in force stay in force and the log says so.
type Watcher struct {
	path     string
	read     ReadFunc
	log      *slog.Logger
	defaults []Property
	policy   atomic.Pointer[Policy]
	seen     filestamp.Stamp // of the last attempt to load; touched by one goroutine only

	mu     sync.Mutex
	status Status
}

// Status is what has become of the file so far.
type Status struct {
	Loaded   time.Time // when the rules in force were loaded
	Loads    uint64    // that took effect, the first included
	Failures uint64    // changes of the file that could not take effect
	// Err is why the rules in force are not those of the file as it is now; nil
	// where they are.
	Err error
}

// ReadFunc reads the properties of a file; warnings say what in it is probably
// not meant. Package hadoopconf does this, which a contract package must not
// know.
type ReadFunc func(path string) (props []Property, warnings []string, err error)

// NewWatcher loads the file for the first time. A file that is broken is an
// error: there are no earlier rules to keep. Where there is no file, the rules
// are Parse(nil): every operation is open to everybody at operation level, every
// key is shut at key level; the log warns of it.
//
// defaults are properties that count wherever the file does not set them.
func NewWatcher(path string, read ReadFunc, log *slog.Logger, defaults ...Property) (*Watcher, error) {
	w := &Watcher{path: path, read: read, log: log, defaults: defaults}
	state, err := filestamp.Of(path)
	if err != nil {
		return nil, err
	}
	w.seen = state
	if !state.Exists() {
		w.log.Warn("there is no ACL file: all operations are open to everybody, but no key can be used while "+
			"hadoop.kms.key.authorization.enable is true; write the file, with default.key.acl.* or key.acl.* "+
			"properties", "file", path)
		p, _ := Parse(defaults)
		w.policy.Store(p)
		w.loaded()
		return w, nil
	}
	if err := w.load(); err != nil {
		return nil, err
	}
	return w, nil
}

// Policy returns the rules in force.
func (w *Watcher) Policy() *Policy { return w.policy.Load() }

// Status tells what has become of the file so far.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

func (w *Watcher) loaded() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Loaded, w.status.Err = time.Now(), nil
	w.status.Loads++
}

func (w *Watcher) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Err = err
	w.status.Failures++
}

// Run follows the file until ctx ends. It is called once.
func (w *Watcher) Run(ctx context.Context) {
	tick := time.NewTicker(CheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			w.check(now)
		}
	}
}

// check reloads the file if it is another one than at the last attempt, or if that failed.
// Hadoop compares the modification time with the time of its last load, and so misses a
// file that is put in place with an older time (cp -p, rsync -t).
func (w *Watcher) check(now time.Time) {
	state, err := filestamp.Of(w.path)
	switch {
	case err != nil:
		state = filestamp.Stamp{} // as if it were gone: the rules stay, and it is said once
	case state == w.seen && (w.Status().Err == nil || !state.Exists()):
		return
	}
	if !state.Exists() {
		if w.seen.Exists() {
			w.log.Warn("the ACL file cannot be seen any more; the rules that were loaded from it stay in force",
				"file", w.path, "err", err)
			if err == nil {
				err = fmt.Errorf("the ACL file %s is gone; the rules that were loaded from it stay in force", w.path)
			}
			w.failed(err)
		}
		w.seen = state
		return
	}
	if age := now.Sub(state.ModTime); age >= 0 && age < settleTime {
		return // the next check sees it
	}
	w.seen = state
	if err := w.load(); err != nil {
		if was := w.Status().Err; was == nil || was.Error() != err.Error() {
			w.log.Error("the changed ACL file is not usable; the rules that were loaded before stay in force", "file",
				w.path, "err", err)
			w.failed(err)
		}
		return
	}
	w.log.Info("ACLs loaded anew", "file", w.path)
}

func (w *Watcher) load() error {
	props, odd, err := w.read(w.path)
	if err != nil {
		return err
	}
	p, warnings := Parse(WithDefaults(props, w.defaults))
	for _, s := range append(odd, warnings...) {
		w.log.Warn("in the ACL file: "+s, "file", w.path)
	}
	w.policy.Store(p)
	w.loaded()
	return nil
}

// WithDefaults returns props, and before them those defaults whose names are not
// among them.
func WithDefaults(props, defaults []Property) []Property {
	var all []Property
	for _, d := range defaults {
		if !slices.ContainsFunc(props, func(p Property) bool { return p.Name == d.Name }) {
			all = append(all, d)
		}
	}
	return append(all, props...)
}
