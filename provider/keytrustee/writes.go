package keytrustee

import (
	"context"
	"sync"
	"time"

	"claviger"
	"claviger/trustee"
)

const (
	// probePause is the shortest time between two probes by CheckWrites.
	probePause = time.Minute
	// slowChange is how long a change may take. A change that took longer and failed is a fault, even if its caller
	// gave up: a Key Trustee Server with a hanging disk still answers reads, but no change.
	slowChange = 5 * time.Second
	// probeLabel is the prefix of the labels of CheckWrites' deposits. CheckWrites purges them again.
	probeLabel = "probe/"
)

// WriteResult is the result of a change.
type WriteResult struct {
	At   time.Time
	Took time.Duration
	Err  error
}

// recordingBox is a Box that records the result of the last change, because a Key Trustee Server with a full disk still
// answers reads. It ignores errors of a single key, and calls that their caller cancelled within slowChange.
type recordingBox struct {
	trustee.Box

	mu     sync.Mutex
	last   WriteResult
	probed time.Time // time of the last probe
}

func (w *recordingBox) record(ctx context.Context, began time.Time, err error) {
	took := time.Since(began)
	if ctx.Err() != nil && took < slowChange || err != nil && !claviger.Is(err, claviger.Unavailable) {
		return
	}
	w.mu.Lock()
	w.last = WriteResult{At: time.Now(), Took: took, Err: err}
	w.mu.Unlock()
}

func (w *recordingBox) Put(ctx context.Context, d trustee.Deposit, replaces string) (string, error) {
	began := time.Now()
	uuid, err := w.Box.Put(ctx, d, replaces)
	w.record(ctx, began, err)
	return uuid, err
}

func (w *recordingBox) Delete(ctx context.Context, uuids ...string) error {
	began := time.Now()
	err := w.Box.Delete(ctx, uuids...)
	w.record(ctx, began, err)
	return err
}

func (w *recordingBox) Undelete(ctx context.Context, uuids ...string) error {
	began := time.Now()
	err := w.Box.Undelete(ctx, uuids...)
	w.record(ctx, began, err)
	return err
}

func (w *recordingBox) Purge(ctx context.Context, uuids ...string) error {
	began := time.Now()
	err := w.Box.Purge(ctx, uuids...)
	w.record(ctx, began, err)
	return err
}

// LastWrite returns the result of the last change that was sent to the Key Trustee Servers, and false if there was
// none.
func (p *Provider) LastWrite() (WriteResult, bool) {
	w := p.box
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.last
	if s.Err != nil {
		s.Err = claviger.Errorf("keytrustee.CheckWrites", claviger.Unavailable, "",
			"a change failed at %s: %w. Run claviger trustee status on the trustees' hosts. The next attempt "+
				"follows within a minute",
			s.At.UTC().Format(time.RFC3339), s.Err)
	}
	return s, !s.At.IsZero()
}

// CheckWrites fails after a change has failed, until the Key Trustee Servers store a change again. At most once a
// minute it probes the servers with a deposit, which it purges again.
func (p *Provider) CheckWrites(ctx context.Context) error {
	if err := p.ready(ctx, "keytrustee.CheckWrites", ""); err != nil {
		return err
	}
	w := p.box
	w.mu.Lock()
	due := w.last.Err != nil && time.Since(w.probed) >= probePause
	if due {
		w.probed = time.Now()
	}
	w.mu.Unlock()
	if due {
		if uuid, err := p.put(ctx, probeLabel+newID(), "", versionDoc{}, ""); err == nil {
			if err := p.destroy(ctx, []string{uuid}); err != nil {
				p.cfg.Log.Warn("could not purge the deposit of a probe", "uuid", uuid, "err", err)
			}
		}
	}
	last, _ := p.LastWrite()
	return last.Err
}
