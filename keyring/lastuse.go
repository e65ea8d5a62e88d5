package keyring

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
)

// writeUsesEvery is the interval in which last uses are written. A crash can lose the uses of one interval, and other
// nodes do not know these uses. So a purge does not rely only on them: see needUnused.
const writeUsesEvery = time.Minute

// lastUses records when each of our versions was last used, and writes the times every writeUsesEvery. Recording a use
// takes no lock, and writes to the store only for the first use of a version.
type lastUses struct {
	store    metastore.LastUses // nil: nothing is recorded
	log      *slog.Logger
	versions sync.Map // by full name, *lastUse of each version that any node may have used
	stop     chan struct{}
	stopped  chan struct{}
}

type lastUse struct {
	at      atomic.Int64 // by this node, in milliseconds since 1970; 0: never
	written atomic.Int64
}

func newLastUses(store metastore.LastUses, log *slog.Logger) *lastUses {
	u := &lastUses{store: store, log: log}
	if store != nil {
		u.stop, u.stopped = make(chan struct{}), make(chan struct{})
		go u.run()
	}
	return u
}

// begin records a use before its answer is sent. If no node has used the version before, begin writes the use to the
// store. From then on an EDEK of its name may belong to this KMS, even after the version is deleted (see
// Ring.mayBeOwn).
func (u *lastUses) begin(ctx context.Context, version string) error {
	if u.store == nil {
		return nil
	}
	never, err := u.neverUsed(ctx, version)
	if err == nil && never {
		err = u.store.RecordUses(ctx, []metastore.LastUse{{Version: version, Last: time.Now()}})
	}
	if err != nil {
		return err
	}
	u.record(version)
	return nil
}

// preload reads whether a version may have been used, and keeps the answer "used" for ever. It is called with each
// version of the primary that was read from the store, and that may be served from memory while the store cannot be
// reached. So begin needs the store only for versions that were certainly never used.
func (u *lastUses) preload(ctx context.Context, version string) {
	if u.store != nil {
		_, _ = u.neverUsed(ctx, version) // after an error, begin reads it again
	}
}

// neverUsed reports whether it is certain that no node has used the version. A "no" stays true, so it is kept.
func (u *lastUses) neverUsed(ctx context.Context, version string) (bool, error) {
	if _, known := u.versions.Load(version); known {
		return false, nil
	}
	never, err := u.store.NeverUsed(ctx, version)
	if err == nil && !never {
		u.versions.LoadOrStore(version, new(lastUse))
	}
	return never, err
}

// record records that a version was used now. It must be a version of the primary: a name that a client made up would
// stay in memory.
func (u *lastUses) record(version string) {
	if u.store == nil {
		return
	}
	v, ok := u.versions.Load(version)
	if !ok {
		v, _ = u.versions.LoadOrStore(version, new(lastUse))
	}
	use, _ := v.(*lastUse)
	// At most once a second, so that processors do not compete for the cache line of a busy key.
	if now := time.Now().UnixMilli(); now-use.at.Load() >= 1000 {
		use.at.Store(now)
	}
}

// beginEDEKs is begin for the versions of EDEKs that were made or opened, without the foreign ones.
func (u *lastUses) beginEDEKs(ctx context.Context, edeks []claviger.EDEK,
	foreign map[string]claviger.VersionRef) error {
	for i, e := range edeks {
		if i > 0 && e.Version == edeks[i-1].Version {
			continue
		}
		if _, ok := foreign[e.Version]; ok {
			continue
		}
		if err := u.begin(ctx, e.Version); err != nil {
			return err
		}
	}
	return nil
}

// at returns the time at which this node last used a version; zero: never.
func (u *lastUses) at(version string) time.Time {
	v, ok := u.versions.Load(version)
	if !ok {
		return time.Time{}
	}
	use, _ := v.(*lastUse)
	if at := use.at.Load(); at != 0 {
		return time.UnixMilli(at)
	}
	return time.Time{}
}

func (u *lastUses) run() {
	defer close(u.stopped)
	tick := time.NewTicker(writeUsesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := u.flush(); err != nil {
				u.log.Error("the times of the last uses of keys could not be written; they are kept and written "+
					"later", "error", err)
			}
		case <-u.stop:
			return
		}
	}
}

// flush writes the new times. A time that could not be written stays new.
func (u *lastUses) flush() error {
	type fresh struct {
		metastore.LastUse
		use *lastUse
	}
	var all []fresh
	for name, v := range u.versions.Range {
		version, _ := name.(string)
		use, _ := v.(*lastUse)
		if at := use.at.Load(); at != use.written.Load() {
			all = append(all, fresh{metastore.LastUse{Version: version, Last: time.UnixMilli(at)}, use})
		}
	}
	if len(all) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	return writeParts(all, func(part []fresh) error {
		list := make([]metastore.LastUse, len(part))
		for i := range part {
			list[i] = part[i].LastUse
		}
		if err := u.store.RecordUses(ctx, list); err != nil {
			return err
		}
		for _, f := range part {
			f.use.written.Store(f.Last.UnixMilli())
		}
		return nil
	}, func([]fresh) {})
}

// close flushes a last time, and stops run.
func (u *lastUses) close() error {
	if u.store == nil {
		return nil
	}
	close(u.stop)
	<-u.stopped
	return u.flush()
}
