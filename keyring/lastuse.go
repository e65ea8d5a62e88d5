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

// writeUsesEvery is how much of the last uses a crash can lose, and how much of them other
// nodes do not know. So no purge relies on them alone: see needUnused.
const writeUsesEvery = time.Minute

// lastUses remembers when each of our versions was last used, and writes it down
// now and then. Noting a use is a look into a map and a store: no lock, no write.
type lastUses struct {
	store    metastore.LastUses // nil: nothing is noted
	log      *slog.Logger
	versions sync.Map // full name to *lastUse, of versions that may have been used by any node
	stop     chan struct{}
	stopped  chan struct{}
}

type lastUse struct {
	at      atomic.Int64 // by this node, in milliseconds since 1970; 0: it has not used it
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

// begin is note, before the answer of a use goes out: where no node has used the version
// before, the store knows of it when begin returns. From then on an EDEK of its name may be
// ours, whatever becomes of the version (see Ring.mayBeOurs).
func (u *lastUses) begin(ctx context.Context, version string) error {
	if u.store == nil {
		return nil
	}
	never, err := u.neverUsed(ctx, version)
	if err == nil && never {
		err = u.store.Touch(ctx, []metastore.LastUse{{Version: version, Last: time.Now()}})
	}
	if err != nil {
		return err
	}
	u.note(version)
	return nil
}

// learn is told of a version of ours that was read from the store, and will be served from
// memory while the store is away. That it may have been used is remembered for good then, so
// that begin needs the store only for versions that certainly were not.
func (u *lastUses) learn(ctx context.Context, version string) {
	if u.store != nil {
		_, _ = u.neverUsed(ctx, version) // begin asks again
	}
}

// neverUsed reports whether it is certain that no node has used the version. That it is not
// certain stays so, and is asked once.
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

// note notes that a version was used now. It must be one of ours: what a client
// makes up would stay.
func (u *lastUses) note(version string) {
	if u.store == nil {
		return
	}
	v, ok := u.versions.Load(version)
	if !ok {
		v, _ = u.versions.LoadOrStore(version, new(lastUse))
	}
	use, _ := v.(*lastUse)
	// To the second, so that processors don't fight over a busy key's time.
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

// at returns when this node used a version last, zero for never.
func (u *lastUses) at(version string) time.Time {
	v, ok := u.versions.Load(version)
	if !ok {
		return time.Time{}
	}
	use, _ := v.(*lastUse)
	at := use.at.Load()
	if at == 0 {
		return time.Time{}
	}
	return time.UnixMilli(at)
}

func (u *lastUses) run() {
	defer close(u.stopped)
	tick := time.NewTicker(writeUsesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := u.flush(); err != nil {
				u.log.Error("the times of the last uses of keys could not be written; they are kept and written later", "error", err)
			}
		case <-u.stop:
			return
		}
	}
}

// flush writes what is new. What could not be written is new the next time.
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
		if err := u.store.Touch(ctx, list); err != nil {
			return err
		}
		for _, f := range part {
			f.use.written.Store(f.Last.UnixMilli())
		}
		return nil
	}, func([]fresh) {})
}

// close ends the writing after one last time.
func (u *lastUses) close() error {
	if u.store == nil {
		return nil
	}
	close(u.stop)
	<-u.stopped
	return u.flush()
}
