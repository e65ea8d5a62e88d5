package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"claviger"
	"claviger/pkcs11"
)

const (
	// probePause is the time between two attempts to write to a token that has refused a write. Each attempt makes an
	// object and destroys it.
	probePause = time.Minute
	// probeAfter is the time between a failed write and the first attempt.
	probeAfter = 5 * time.Second
	// probeLabel is CKA_LABEL of the objects that these attempts make.
	probeLabel = "claviger probe"
)

// writeState is the result of the last write to the token, for a request or a probe. A full token still encrypts.
type writeState struct {
	mu     sync.Mutex
	last   Outcome
	data   bool      // the last write was for a data object, not for a key
	probed time.Time // of the last probe
}

// recordingToken is a token that records the results of writes. It destroys keys on the standby too.
type recordingToken struct {
	token
	standby *standby // nil if there is none
	writes  writeState
}

// Destroy destroys the copy on the standby first: if that fails, the step that destroys the key is not over.
func (w *recordingToken) Destroy(ctx context.Context, id []byte, label string) error {
	if w.standby != nil {
		if err := w.standby.destroy(ctx, id, label); err != nil {
			return err
		}
	}
	return w.token.Destroy(ctx, id, label)
}

func (w *recordingToken) GenerateKey(ctx context.Context, id []byte, label string, bits int) error {
	began := time.Now()
	err := w.token.GenerateKey(ctx, id, label, bits)
	w.writes.record(ctx, began, false, err)
	return err
}

func (w *recordingToken) PutData(ctx context.Context, d pkcs11.Data) error {
	began := time.Now()
	err := w.token.PutData(ctx, d)
	w.writes.record(ctx, began, true, err)
	return err
}

// record stores the result of a write. It ignores errors that say nothing about later writes: the caller gave up or
// made a wrong call, the provider is closed, or the token does not keep such objects.
func (w *writeState) record(ctx context.Context, began time.Time, data bool, err error) {
	switch {
	case err == nil:
	case errors.Is(ctx.Err(), context.Canceled), claviger.Is(err, claviger.Unsupported),
		claviger.Is(err, claviger.KeyExists), claviger.Is(err, claviger.Invalid), claviger.Is(err, claviger.Closed):
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.last.Err != nil && data && !w.data {
		return // room for a data object does not prove that there is room for a key
	}
	w.last, w.data = Outcome{At: time.Now(), Took: time.Since(began), Err: err}, data
}

// LastWrite returns the result of the last attempt to make an object on the token. ok is false if there was none.
func (p *Provider) LastWrite() (s Outcome, ok bool) {
	w := &p.tok.writes
	w.mu.Lock()
	defer w.mu.Unlock()
	s = w.last
	if s.Err != nil {
		s.Err = claviger.Errorf("hsm.CheckWrites", claviger.Unavailable, "",
			"token %s refused to make an object at %s: %w; make room on it (SoftHSM: in the file system of "+
				"directories.tokendir); claviger tries again within a minute",
			tokenName(p.tok.Info()), s.At.UTC().Format(time.RFC3339), s.Err)
	}
	return s, !s.At.IsZero()
}

// CheckWrites fails after the token has refused to make an object, until it makes one again. Once a minute it tries to
// make an object, and destroys it.
func (p *Provider) CheckWrites(ctx context.Context) error {
	if err := p.ready("hsm.CheckWrites", ""); err != nil {
		return err
	}
	if last, _ := p.LastWrite(); last.Err == nil {
		return nil
	}
	w := &p.tok.writes
	w.mu.Lock()
	due := time.Since(w.probed) >= probePause && time.Since(w.last.At) >= probeAfter
	if due {
		w.probed = time.Now()
	}
	data := w.data
	w.mu.Unlock()
	if due {
		p.probeWrite(ctx, data)
	}
	last, _ := p.LastWrite()
	return last.Err
}

// probeWrite makes an object of the kind that the token has refused, and destroys it.
func (p *Provider) probeWrite(ctx context.Context, data bool) {
	if data {
		if p.tok.PutData(ctx, pkcs11.Data{Application: application, Label: probeLabel,
			Value: []byte(time.Now().UTC().Format(time.RFC3339))}) == nil {
			_ = p.tok.DestroyData(ctx, application, probeLabel) // if it stays, the next probe replaces it
		}
		return
	}
	id := make([]byte, idSize)
	if _, err := rand.Read(id); err != nil {
		return
	}
	const bits = 256
	_ = p.tok.GenerateKey(ctx, id, probeLabel, bits) // recordingToken records the result
	if err := p.tok.Destroy(ctx, id, probeLabel); err != nil {
		p.log.Warn("an object that was made to see whether the token has room is still there; destroy it with the "+
			"HSM's tool", "label", probeLabel, "err", err)
	}
}
