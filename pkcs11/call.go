package pkcs11

import "time"

// Call describes one encryption on the HSM. It is one C_Encrypt, or several if the token's data limit or
// mechanism needs several.
type Call struct {
	Callers int           // how many callers shared it
	Blocks  int           // of 16 bytes
	Waited  time.Duration // from the first caller's request until the call
	Took    time.Duration // the call itself
	Err     error
}

// OnCall sets f to be called after each Call from now on, in place of an earlier f; nil sets none. f must be
// quick, and may be called from many goroutines at once.
func (t *Token) OnCall(f func(Call)) {
	if f == nil {
		t.onCall.Store(nil)
		return
	}
	t.onCall.Store(&f)
}

func (t *Token) report(c Call) {
	if f := t.onCall.Load(); f != nil {
		(*f)(c)
	}
}
