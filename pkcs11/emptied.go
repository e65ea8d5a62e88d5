package pkcs11

import (
	"errors"
	"fmt"
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

// showsNoKey returns err as an emptyToken if the token has held keys and shows no AES key at all.
func (t *Token) showsNoKey(s p11.SessionHandle, err error) error {
	if !t.heldKeys.Load() {
		return err
	}
	unlock := t.objects()
	found, failed := t.searchUntil(s, keyTemplate(nil, nil), 1)
	unlock()
	if failed != nil || len(found) > 0 {
		return err
	}
	return emptyToken{err}
}

// errListEmpty is the error of a list of keys that is empty although the token has held keys.
var errListEmpty = errors.New("the token shows no key, and has held keys before")

// mayBeStale reports whether err is an emptyToken for which the library is to be started again.
func (t *Token) mayBeStale(err error) bool {
	if !errors.As(err, new(emptyToken)) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.successes.Load(); n != t.emptied.successes {
		t.emptied.pause, t.emptied.successes = 0, n
	}
	if time.Since(t.emptied.at) < t.emptied.pause {
		return false
	}
	t.emptied.at = time.Now()
	t.emptied.pause = min(max(2*t.emptied.pause, firstPauseOfEmpty), maxPauseOfResets)
	return true
}

// emptied is the record of the starts of the library because the token shows no key.
type emptied struct {
	at        time.Time     // of the last one
	pause     time.Duration // after it
	successes uint64        // Token.successes at that time
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
