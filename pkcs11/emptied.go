package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// A token that goes away and comes back may look empty to a library that was started before: SoftHSM shows no object
// of a token whose folder was moved away and back. So before a key counts as lost on a token without any key, the
// library is started again.

// firstPauseOfEmpty is the pause between two starts of the library because the token shows no key. Each pause is twice
// the pause before, up to maxPauseOfResets, until a key works.
const firstPauseOfEmpty = time.Second

// emptyToken is the error of a search for a key on a token that shows no key at all.
type emptyToken struct{ error }

func (e emptyToken) Unwrap() error { return e.error }

// heldKeys says whether the token has keys of one kind, as far as this process knows.
type heldKeys struct {
	seen  atomic.Bool             // a key was seen, and this process has not destroyed the last key since
	match func() []*p11.Attribute // the attributes that all keys of the kind have
}

// markEmpty returns err as an emptyToken if the token has held keys of a kind and now shows none. Otherwise it returns
// err. The caller holds the lock of objects.
func (t *Token) markEmpty(s p11.SessionHandle, h *heldKeys, err error) error {
	if !h.seen.Load() {
		return err
	}
	found, failed := t.searchUntil(s, h.match(), 1)
	if failed != nil || len(found) > 0 {
		return err
	}
	return emptyToken{err}
}

// afterDestroy is called when no object of a target is left. destroyed is how many of its keys were destroyed. It
// returns errNoneShown, as an emptyToken, if the library may not have shown the keys.
func (t *Token) afterDestroy(s p11.SessionHandle, h *heldKeys, destroyed int) error {
	if !h.seen.Load() {
		return nil
	}
	found, err := t.searchUntil(s, h.match(), 1)
	switch {
	case err != nil || len(found) > 0:
		return err
	case destroyed > 0:
		h.seen.Store(false) // the last key
		return nil
	}
	return emptyToken{errNoneShown}
}

// errNoneShown is the error of a token that shows no key although it has held keys. Token.do replaces it by an empty
// result, if a new start of the library has changed nothing.
var errNoneShown error = judged{errors.New("the token shows no key, and has held keys before")}

// startIfStale starts the library again if err is an emptyToken, and the library of that generation may be stale. If
// again is true, the caller must repeat its search. If the library cannot be started now, startIfStale returns an
// error: keys count as lost only if a library that was started since shows none.
func (t *Token) startIfStale(ctx context.Context, generation uint64, err error) (again bool, _ error) {
	if !errors.As(err, new(emptyToken)) {
		return false, nil
	}
	if t.believesEmpty(generation) {
		return false, nil
	}
	if err := t.reset(ctx, generation, err); err != nil {
		return false, err
	}
	t.startedForEmpty(t.module.current())
	return true, nil
}

// believesEmpty reports whether the library of that generation need not be started again: the last start because of a
// token without keys was a short time ago, and gave this library or an earlier one.
func (t *Token) believesEmpty(generation uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := &t.emptied
	if n := t.successes.Load(); n != e.successes {
		e.pause, e.successes = 0, n
	}
	return generation >= e.generation && time.Since(e.at) < e.pause
}

// startedForEmpty records the start of the library for a token that shows no key, unless another caller has done so.
func (t *Token) startedForEmpty(generation uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := &t.emptied
	if generation <= e.generation {
		return
	}
	e.generation, e.at = generation, time.Now()
	e.pause = min(max(2*e.pause, firstPauseOfEmpty), maxPauseOfResets)
}

// emptied is the record of the starts of the library because the token shows no key.
type emptied struct {
	generation uint64        // of the library that the last such start gave
	at         time.Time     // time of the last such start
	pause      time.Duration // time until the next such start is allowed
	successes  uint64        // Token.successes when pause was last set to 0
}

// notShownAgain adds to the error of a search for a token that the token was there before.
func (t *Token) notShownAgain(err error) error {
	t.mu.Lock()
	used, found := t.logins > 0, t.found
	t.mu.Unlock()
	if !used || !errors.As(err, new(notShown)) {
		return err
	}
	if errors.As(err, new(blankToken)) { // its cure is for a token that was never made
		err = errors.New("an empty slot is all that the library shows")
	}
	return notShown{fmt.Errorf("token %s, which this server has used, is not shown by %s now: %w; the token may be "+
		"away: bring it back, or start the HSM's service again, and this server uses it by itself; make no new token, "+
		"and give up no key, before that", found, t.cfg.Module, err)}
}
