package pkcs11

import "time"

// Call tells of one encryption on the HSM: one C_Encrypt, or the few that the
// token's data limit or mechanism makes of it.
type Call struct {
	Callers int           // who shared it
	Blocks  int           // of 16 bytes
	Waited  time.Duration // from when the first of them asked until the call
	Took    time.Duration // the call itself
	Err     error
}

// OnCall sets who is told of each call from now on; nil is nobody. f must be
// quick, and may be called from many goroutines at once.
func (t *Token) OnCall(f func(Call)) {
	if f == nil {
		t.onCall.Store(nil)
		return
	}
	t.onCall.Store(&f)
}

func (t *Token) tell(c Call) {
	if f := t.onCall.Load(); f != nil {
		(*f)(c)
	}
}

// Sessions returns how many sessions are in use now, and how many may be.
func (t *Token) Sessions() (used, most int) { return len(t.slots), cap(t.slots) }
