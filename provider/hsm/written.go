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
	// probePause lies between two attempts to write to a token that has refused to: each
	// makes an object and destroys it.
	probePause = time.Minute
	// probeAfter lies between a failure and the first of them.
	probeAfter = 5 * time.Second
	// probeLabel is CKA_LABEL of such objects.
	probeLabel = "claviger probe"
)

// written is what attempts to write to the token saw last: of requests and of probes.
// A token without room for another object encrypts as ever.
type written struct {
	mu     sync.Mutex
	last   Seen
	data   bool      // a data object was to be written, not a key
	probed time.Time // of the last probe
}

// writing is a token that remembers how writes ended.
type writing struct {
	token
	written written
}

func (w *writing) GenerateKey(ctx context.Context, id []byte, label string, bits int) error {
	began := time.Now()
	err := w.token.GenerateKey(ctx, id, label, bits)
	w.written.note(ctx, began, false, err)
	return err
}

func (w *writing) PutData(ctx context.Context, d pkcs11.Data) error {
	began := time.Now()
	err := w.token.PutData(ctx, d)
	w.written.note(ctx, began, true, err)
	return err
}

// note remembers how a write ended, unless that tells of the caller, or of a token that
// keeps no such objects.
func (w *written) note(ctx context.Context, began time.Time, data bool, err error) {
	switch {
	case err == nil:
	case errors.Is(ctx.Err(), context.Canceled), claviger.Is(err, claviger.Unsupported),
		claviger.Is(err, claviger.KeyExists), claviger.Is(err, claviger.Invalid), claviger.Is(err, claviger.Closed):
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.last.Err != nil && data && !w.data {
		return // that there is room for a data object proves nothing of keys
	}
	w.last, w.data = Seen{At: time.Now(), Took: time.Since(began), Err: err}, data
}

// LastWrite is how the last attempt to make an object on the token ended; ok is false
// where there was none.
func (p *Provider) LastWrite() (s Seen, ok bool) {
	w := &p.tok.written
	w.mu.Lock()
	defer w.mu.Unlock()
	s = w.last
	if s.Err != nil {
		s.Err = claviger.Errorf("hsm.CheckWrites", claviger.Unavailable, "",
			"token %s refused to make an object at %s: %w; make room on it (SoftHSM: in the file system of "+
				"directories.tokendir); a minute passes at most until that is tried again",
			tokenName(p.tok.Info()), s.At.UTC().Format(time.RFC3339), s.Err)
	}
	return s, !s.At.IsZero()
}

// CheckWrites fails after the token has refused to make an object, until it makes one.
// That is tried once a minute, with an object that is destroyed again.
func (p *Provider) CheckWrites(ctx context.Context) error {
	if err := p.ready("hsm.CheckWrites", ""); err != nil {
		return err
	}
	if last, _ := p.LastWrite(); last.Err == nil {
		return nil
	}
	w := &p.tok.written
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

// probeWrite makes an object such as the token has refused, and destroys it.
func (p *Provider) probeWrite(ctx context.Context, data bool) {
	if data {
		if p.tok.PutData(ctx, pkcs11.Data{Application: application, Label: probeLabel,
			Value: []byte(time.Now().UTC().Format(time.RFC3339))}) == nil {
			_ = p.tok.DestroyData(ctx, application, probeLabel) // the next probe takes its place
		}
		return
	}
	id := make([]byte, idSize)
	if _, err := rand.Read(id); err != nil {
		return
	}
	const bits = 256
	_ = p.tok.GenerateKey(ctx, id, probeLabel, bits) // which notes how it ended
	if err := p.tok.Destroy(ctx, id, probeLabel); err != nil {
		p.log.Warn("an object that was made to see whether the token has room is still there; destroy it with the "+
			"HSM's tool", "label", probeLabel, "err", err)
	}
}
