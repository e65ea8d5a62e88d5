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

// CheckInterval is the interval at which a Watcher checks its file, the same as Hadoop's.
const CheckInterval = time.Second

// settleTime is the time for which a file must be unchanged before it is read. So a file is not read while a program
// writes it without rename(2). Hadoop uses the same time.
const settleTime = 100 * time.Millisecond

// Watcher has the Policy of one kms-acls.xml, and reloads it when the file changes. A change takes effect completely or
// not at all: if the file cannot be read or is invalid, the present rules stay in force, and the log has an error.
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

// Status is the state of a Watcher.
type Status struct {
	Loaded   time.Time // when the rules in force were loaded
	Loads    uint64    // successful loads, with the first one
	Failures uint64    // changes of the file that could not take effect
	// Err is the reason why the rules in force differ from the present file; nil if they do not differ.
	Err error
}

// ReadFunc reads the properties of a file. warnings are about properties that are probably wrong. Package hadoopconf
// implements it; a contract package must not import that.
type ReadFunc func(path string) (props []Property, warnings []string, err error)

// NewWatcher loads the file for the first time. An invalid file is an error, because there are no earlier rules. If the
// file does not exist, the rules are Parse(nil): each operation is open to everybody at operation level, and each key
// is closed at key level. The log has a warning about that.
//
// defaults are properties that apply if the file does not set them.
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

// Status returns the present state.
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

// Run checks the file at intervals until ctx ends. Call it once.
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

// check reloads the file if it has changed since the last attempt, or if that attempt failed. Hadoop compares the
// modification time with the time of its last load, so it does not see a new file with an older time (cp -p, rsync -t).
func (w *Watcher) check(now time.Time) {
	state, err := filestamp.Of(w.path)
	switch {
	case err != nil:
		state = filestamp.Stamp{} // as if it did not exist: the rules stay, with one warning
	case state == w.seen && (w.Status().Err == nil || !state.Exists()):
		return
	}
	if !state.Exists() {
		if w.seen.Exists() {
			w.log.Warn("the ACL file was removed or cannot be read; the rules that were loaded from it stay in force",
				"file", w.path, "err", err)
			if err == nil {
				err = fmt.Errorf("the ACL file %s does not exist any more; the rules that were loaded from it stay "+
					"in force", w.path)
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
		if earlier := w.Status().Err; earlier == nil || earlier.Error() != err.Error() {
			w.log.Error("the changed ACL file cannot be used; the rules that were loaded before stay in force", "file",
				w.path, "err", err)
			w.failed(err)
		}
		return
	}
	w.log.Info("ACLs were loaded again", "file", w.path)
}

func (w *Watcher) load() error {
	props, fileWarnings, err := w.read(w.path)
	if err != nil {
		return err
	}
	p, warnings := Parse(WithDefaults(props, w.defaults))
	for _, s := range append(fileWarnings, warnings...) {
		w.log.Warn("in the ACL file: "+s, "file", w.path)
	}
	w.policy.Store(p)
	w.loaded()
	return nil
}

// WithDefaults returns those defaults whose names are not in props, then props.
func WithDefaults(props, defaults []Property) []Property {
	var all []Property
	for _, d := range defaults {
		if !slices.ContainsFunc(props, func(p Property) bool { return p.Name == d.Name }) {
			all = append(all, d)
		}
	}
	return append(all, props...)
}
