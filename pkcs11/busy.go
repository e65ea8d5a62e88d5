package pkcs11

import (
	"context"
	"time"
)

// Some HSMs throttle: if they get more calls than they can take, they answer with a code that otherwise means a lost
// token. A new login, or a new start of the library, would only make more calls. So with the profile of such an HSM
// a call that gets such a code is made again after pauses, in the same login. Only if no operation succeeds for
// busyLimit, the token counts as lost.

const (
	// busyTries is how often a call is made again while the HSM is busy.
	busyTries = 3
	// firstBusyPause is the pause before the first of them; each pause is twice the one before.
	firstBusyPause = 100 * time.Millisecond
	// busyLimit is how long an HSM may be busy.
	busyLimit = 10 * time.Second
)

// throttles reports whether an error may say that the HSM is busy.
func (t *Token) throttles(err error) bool {
	return isOneOf(err, profiles[t.cfg.Profile].busy...) && !libraryGone(err)
}

// isBusy reports whether a failed operation shows that the HSM is busy, and not that the token is lost.
func (t *Token) isBusy(err error) bool {
	if !t.throttles(err) {
		return false
	}
	now := time.Now().UnixNano()
	t.busySince.CompareAndSwap(0, now)
	return now-t.busySince.Load() < int64(busyLimit)
}

// awaitBusy pauses before a call that failed because the HSM is busy is made again. again is false if it was made often
// enough, or if ctx ends.
func (t *Token) awaitBusy(ctx context.Context, tries int) (again bool) {
	return tries < busyTries && t.pause(ctx, firstBusyPause<<tries) == nil
}
