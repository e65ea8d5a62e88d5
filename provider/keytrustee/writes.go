package keytrustee

import (
	"context"
	"sync"
	"time"

	"claviger"
	"claviger/trustee"
)

const (
	// probePause is how often CheckWrites makes a change after one was refused.
	probePause = time.Minute
	// waited is how long a change may take. A change that took longer and was not made is a fault,
	// even if its caller gave up: a Key Trustee Server whose disk hangs still answers reads, but no
	// change.
	waited = 5 * time.Second
	// probeLabel begins the labels of the deposits of CheckWrites, which are purged again.
	probeLabel = "probe/"
)

// Seen is how a change ended.
type Seen struct {
	At   time.Time
	Took time.Duration
	Err  error
}

// written is a Box that remembers how the last change ended, unless the end concerns the key or an
// impatient caller alone. A Key Trustee Server whose disk is full answers reads and stores no key.
type written struct {
	trustee.Box

	mu     sync.Mutex
	last   Seen
	probed time.Time
}

func (w *written) note(ctx context.Context, began time.Time, err error) {
	took := time.Since(began)
	if ctx.Err() != nil && took < waited || err != nil && !claviger.Is(err, claviger.Unavailable) {
		return
	}
	w.mu.Lock()
	w.last = Seen{At: time.Now(), Took: took, Err: err}
	w.mu.Unlock()
}

func (w *written) Put(ctx context.Context, d trustee.Deposit, replaces string) (string, error) {
	began := time.Now()
	uuid, err := w.Box.Put(ctx, d, replaces)
	w.note(ctx, began, err)
	return uuid, err
}

func (w *written) Delete(ctx context.Context, uuids ...string) error {
	began := time.Now()
	err := w.Box.Delete(ctx, uuids...)
	w.note(ctx, began, err)
	return err
}

func (w *written) Undelete(ctx context.Context, uuids ...string) error {
	began := time.Now()
	err := w.Box.Undelete(ctx, uuids...)
	w.note(ctx, began, err)
	return err
}

func (w *written) Purge(ctx context.Context, uuids ...string) error {
	began := time.Now()
	err := w.Box.Purge(ctx, uuids...)
	w.note(ctx, began, err)
	return err
}

// LastWrite returns how the last change ended that was sent to the Key Trustee Servers.
func (p *Provider) LastWrite() (Seen, bool) {
	w := p.written
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.last
	if s.Err != nil {
		s.Err = claviger.Errorf("keytrustee.CheckWrites", claviger.Unavailable, "",
			"a change was not made at %s: %w; claviger trustee status on the trustees' hosts says more; a minute "+
				"passes at most until one is tried again",
			s.At.UTC().Format(time.RFC3339), s.Err)
	}
	return s, !s.At.IsZero()
}

// CheckWrites fails after the Key Trustee Servers have refused a change, until they store one. Once
// a minute it tries that, with a deposit that is purged again.
func (p *Provider) CheckWrites(ctx context.Context) error {
	if err := p.ready(ctx, "keytrustee.CheckWrites", ""); err != nil {
		return err
	}
	w := p.written
	w.mu.Lock()
	due := w.last.Err != nil && time.Since(w.probed) >= probePause
	if due {
		w.probed = time.Now()
	}
	w.mu.Unlock()
	if due {
		if uuid, err := p.put(ctx, probeLabel+newID(), "", versionDoc{}, ""); err == nil {
			if err := p.end(ctx, []string{uuid}); err != nil {
				p.cfg.Log.Warn("a deposit that was made to see whether changes are taken is left behind", "uuid", uuid,
					"err", err)
			}
		}
	}
	last, _ := p.LastWrite()
	return last.Err
}
