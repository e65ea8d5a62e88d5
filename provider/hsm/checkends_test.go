package hsm_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/pkcs11"
)

// endsCheck is a library that ends a context when it encrypts.
type endsCheck struct {
	pkcs11.Boundary
	end *atomic.Pointer[context.CancelFunc]
}

func (e endsCheck) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, in []byte) ([]byte, error) {
	if end := e.end.Swap(nil); end != nil {
		(*end)()
		return nil, p11.Error(p11.CKR_DATA_INVALID)
	}
	return e.Boundary.Encrypt(s, m, key, in)
}

// TestCheckEnds: if its context ends while it compares a check value, CheckAll returns the context's error, and not
// nil as after a check that found no fault.
func TestCheckEnds(t *testing.T) {
	b := newSite(t)
	end := new(atomic.Pointer[context.CancelFunc])
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return endsCheck{c, end} }
	b.create(t, "k")
	p := b.mustOpen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end.Store(&cancel)
	if err := p.CheckAll(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if ctx.Err() == nil {
		t.Error("nothing was compared")
	}
	mustClose(t, p)
}
