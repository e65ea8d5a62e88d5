package pkcs11

import (
	"bytes"
	"sync"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// keptOutputs is a library that keeps what C_Encrypt returns. After a number of calls it fails.
type keptOutputs struct {
	Boundary
	mu    *sync.Mutex
	kept  *[][]byte
	calls *int // left until it fails; below 0: it does not
}

func (k keptOutputs) Encrypt(s p11.SessionHandle, m *p11.Mechanism, o p11.ObjectHandle, in []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if *k.calls == 0 {
		return nil, p11.Error(p11.CKR_DATA_INVALID)
	}
	*k.calls--
	out, err := k.Boundary.Encrypt(s, m, o, in)
	*k.kept = append(*k.kept, out)
	return out, err
}

// TestNoKeystreamIsLeft: every result of the library is wiped, whatever mechanism and number of calls made it.
func TestNoKeystreamIsLeft(t *testing.T) {
	for _, c := range []struct {
		mechanism uint
		limit     int64 // bytes in a call
		calls     int   // until one fails; below 0: none
	}{
		{p11.CKM_AES_ECB, 4096, -1}, {p11.CKM_AES_ECB, 48, -1}, {p11.CKM_AES_ECB, 48, 1},
		{p11.CKM_AES_CBC, 4096, -1}, {p11.CKM_AES_CBC, 4096, 1}, {p11.CKM_AES_CBC, 4096, 2},
	} {
		cfg := config(softhsmtest.New(t))
		k := keptOutputs{mu: new(sync.Mutex), kept: new([][]byte), calls: new(int)}
		*k.calls = -1
		cfg.Wrap = func(b Boundary) Boundary { k.Boundary = b; return k }
		tok, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		id, label := generate(t, tok, 1, 256)
		check, err := tok.CheckValue(t.Context(), id, label)
		if err != nil {
			t.Fatal(err)
		}
		*k.kept, *k.calls, tok.mechanisms = nil, c.calls, []uint{c.mechanism}
		setDataLimit(tok, c.limit)
		err = tok.EncryptBlocks(t.Context(), id, label, check, bytes.Repeat([]byte{3}, 64))
		if failed := err != nil; failed != (c.calls >= 0) {
			t.Errorf("%+v: %v", c, err)
		}
		if err := tok.Close(); err != nil { // waits for the end of the call
			t.Error(err)
		}
		if len(*k.kept) == 0 {
			t.Errorf("%+v: nothing was encrypted", c)
		}
		for n, out := range *k.kept {
			if len(bytes.Trim(out, "\x00")) > 0 {
				t.Errorf("%+v: result %d is left: %x", c, n, out)
			}
		}
	}
}
