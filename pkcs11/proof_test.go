package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// provedKey is a key on a token, with its check value and an encrypted zero block.
type provedKey struct {
	id    []byte
	label string
	check []byte
	zero  []byte // a zero block, encrypted
}

// encrypts reports in err whether n zero blocks are encrypted with the right key.
func (k *provedKey) encrypts(tok *Token, t *testing.T, n int) error {
	got := make([]byte, n*blockSize)
	if err := tok.EncryptBlocks(t.Context(), k.id, k.label, k.check, got); err != nil {
		return err
	}
	if !bytes.Equal(got, bytes.Repeat(k.zero, n)) {
		return fmt.Errorf("%s: wrong blocks", k.label)
	}
	return nil
}

// openFaulty opens a new token behind a fault module, with two keys that were used before.
func openFaulty(t *testing.T, of func(*Config)) (*faultmodule.Module, *Token, []*provedKey) {
	t.Helper()
	made := softhsmtest.New(t)
	m := faultmodule.New(t, made.Module)
	t.Cleanup(m.Heal)
	c := config(made)
	c.Module = m.Path
	if of != nil {
		of(&c)
	}
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Heal()
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	var keys []*provedKey
	for i := range byte(2) {
		keys = append(keys, makeKey(t, tok, i))
	}
	return m, tok, keys
}

// TestRenumberedHandles: when the handles of all objects change, and no call returns an error, each key goes on to
// encrypt as itself. No login is needed.
func TestRenumberedHandles(t *testing.T) {
	for _, limit := range []int64{1 << 20, 64, 32} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			m, tok, keys := openFaulty(t, nil)
			setDataLimit(tok, limit)
			logins := m.Calls(faultmodule.Login)
			for range 3 {
				m.Renumber()
				for _, k := range keys {
					for _, n := range []int{1, 2, 3, 7} {
						if err := k.encrypts(tok, t, n); err != nil {
							t.Error(err)
						}
					}
				}
			}
			if n := m.Calls(faultmodule.Login) - logins; n > 0 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

// TestRenumberedUnderLoad is TestRenumberedHandles for callers that share calls.
func TestRenumberedUnderLoad(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 100 {
				err := keys[i%2].encrypts(tok, t, 1+n%40)
				if errors.Is(err, ErrWrongKey) || wrongObject(err) {
					continue // the handles changed twice within its call
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 50 {
		m.Renumber()
		_ = keys[0].encrypts(tok, t, 1) // between two changes there is a call
	}
	wg.Wait()
}

// TestProofOfEachMechanism: the proof does not depend on the mechanism.
func TestProofOfEachMechanism(t *testing.T) {
	for _, mechanism := range []uint{p11.CKM_AES_ECB, p11.CKM_AES_CBC} {
		t.Run(mechanismName(mechanism), func(t *testing.T) {
			m, tok, keys := openFaulty(t, nil)
			tok.mechanisms[0] = mechanism
			m.Renumber()
			for _, k := range keys {
				if err := k.encrypts(tok, t, 5); err != nil {
					t.Error(err)
				}
			}
			wrong := slices.Clone(keys[0].check)
			wrong[0] ^= 1
			blocks := make([]byte, 2*blockSize)
			err := tok.EncryptBlocks(t.Context(), keys[0].id, keys[0].label, wrong, blocks)
			got, ok := CheckValueOf(err)
			if !errors.Is(err, ErrWrongKey) || !claviger.Is(err, claviger.Unavailable) || !ok ||
				!bytes.Equal(got, keys[0].check) || !bytes.Equal(blocks, make([]byte, 2*blockSize)) {
				t.Errorf("wrong check value: %v, with %x and the blocks %x", err, got, blocks)
			}
		})
	}
}

// TestCheckBlockFails: if the call for the check block fails, which CBC makes first, the error is that of the call, and
// not that of a wrong key. No block of the caller is sent to the token.
func TestCheckBlockFails(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	check, err := tok.CheckValue(t.Context(), id, label)
	if err != nil {
		t.Fatal(err)
	}
	tok.mechanisms = []uint{p11.CKM_AES_CBC}
	m.Reset()
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_INVALID))
	err = tok.EncryptBlocks(t.Context(), id, label, check, make([]byte, 2*blockSize))
	if n := m.Count("Encrypt"); !errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) || n != 1 {
		t.Errorf("%v after %d calls", err, n)
	}
}

// TestHandleOfAnotherObject: a key is searched again if its handle has become invalid, or now belongs to an object that
// cannot encrypt. The login stays.
func TestHandleOfAnotherObject(t *testing.T) {
	for _, code := range []uint{p11.CKR_KEY_HANDLE_INVALID, p11.CKR_OBJECT_HANDLE_INVALID,
		p11.CKR_KEY_TYPE_INCONSISTENT, p11.CKR_KEY_FUNCTION_NOT_PERMITTED, p11.CKR_KEY_SIZE_RANGE} {
		t.Run(p11.Error(code).Error(), func(t *testing.T) {
			m, tok, keys := openFaulty(t, nil)
			logins, searches := m.Calls(faultmodule.Login), m.Calls(faultmodule.FindObjectsInit)
			m.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.Fail, Value: code})
			if err := keys[0].encrypts(tok, t, 1); err != nil {
				t.Error(err)
			}
			if n := m.Calls(faultmodule.FindObjectsInit) - searches; n != 1 {
				t.Errorf("%d searches, want 1", n)
			}
			if n := m.Calls(faultmodule.Login) - logins; n > 0 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

// TestProofTravelsWithTheCall: the check block is part of the C_Encrypt that it proves, and the batch of a NameNode
// stays one call.
func TestProofTravelsWithTheCall(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	for _, c := range []struct{ blocks, limit, calls int }{
		{2, 32 << 10, 1}, {2000, 32 << 10, 1}, {2047, 32 << 10, 1}, {2048, 32 << 10, 2},
		{3, 32, 3}, // each call has one block of the caller and the check block
	} {
		setDataLimit(tok, int64(c.limit))
		before := m.Calls(faultmodule.EncryptInit)
		if err := keys[0].encrypts(tok, t, c.blocks); err != nil {
			t.Error(err)
		}
		if n := m.Calls(faultmodule.EncryptInit) - before; n != c.calls {
			t.Errorf("%d blocks at a limit of %d bytes: %d calls, want %d", c.blocks, c.limit, n, c.calls)
		}
	}
}

// TestLearnedDataLimit: a token that takes less data than its profile says gets smaller calls, with their proofs.
func TestLearnedDataLimit(t *testing.T) {
	for _, limit := range []int{32, 48, 500} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			m, tok, keys := openFaulty(t, nil)
			m.LimitData(limit)
			if err := keys[0].encrypts(tok, t, 100); err != nil {
				t.Error(err)
			}
			if got := int(tok.dataLimit(keyName{string(keys[0].id), keys[0].label})); got > limit || got < leastData {
				t.Errorf("%d bytes are tried", got)
			}
		})
	}
}

// TestFlippedProof: a result whose check block has a flipped bit is not used, and the call is made again. If the bits
// flip again, the caller gets an error.
func TestFlippedProof(t *testing.T) {
	f := &flipper{}
	_, tok, keys := openFaulty(t, func(c *Config) { c.Wrap = f.wrap })
	for flips := range 4 {
		f.next = flips
		err := keys[0].encrypts(tok, t, 3)
		if flips < 2 && err != nil || flips >= 2 && !errors.Is(err, ErrWrongKey) {
			t.Errorf("%d flips: %v", flips, err)
		}
	}
}

// flipper flips a bit in the last block of the next results of C_Encrypt.
type flipper struct {
	Boundary
	next int
}

func (f *flipper) wrap(b Boundary) Boundary {
	f.Boundary = b
	return f
}

func (f *flipper) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	in []byte) ([]byte, error) {
	out, err := f.Boundary.Encrypt(s, m, key, in)
	if f.next > 0 && err == nil {
		f.next--
		out[len(out)-1] ^= 0x10
	}
	return out, err
}

// TestInputStays: the check block does not change the blocks of a caller that come after it in the caller's buffer.
func TestInputStays(t *testing.T) {
	_, tok, keys := openFaulty(t, nil)
	setDataLimit(tok, 4*blockSize)
	k := keys[0]
	var want, got []byte
	for i := range byte(50) {
		block := bytes.Repeat([]byte{i}, blockSize)
		got = append(got, block...)
		if err := tok.EncryptBlocks(t.Context(), k.id, k.label, k.check, block); err != nil {
			t.Fatal(err)
		}
		want = append(want, block...)
	}
	if err := tok.EncryptBlocks(t.Context(), k.id, k.label, k.check, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v; different blocks: %t", err, !bytes.Equal(got, want))
	}
}

// exchangeFor is a library that uses the other of two keys in some calls of C_Encrypt, as if the handles changed places
// before the first of these calls and after the last.
type exchangeFor struct {
	Boundary
	handles     []p11.ObjectHandle // of the keys, in the order of their first use
	calls       int
	first, last int // the numbers of these calls, from 1
}

func (e *exchangeFor) wrap(b Boundary) Boundary {
	e.Boundary = b
	return e
}

func (e *exchangeFor) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	in []byte) ([]byte, error) {
	if e.first == 0 && !slices.Contains(e.handles, key) {
		e.handles = append(e.handles, key)
	}
	if e.calls++; e.first <= e.calls && e.calls <= e.last {
		n := len(e.handles) - 2
		key = e.handles[n+1-slices.Index(e.handles[n:], key)]
	}
	return e.Boundary.Encrypt(s, m, key, in)
}

// TestKeyChangesBetweenCalls: if the token uses another key for any of the calls that a request needs, and the right
// key before and after, no wrong block is believed.
func TestKeyChangesBetweenCalls(t *testing.T) {
	for _, c := range []struct {
		mechanism uint
		limit     int64
	}{{p11.CKM_AES_ECB, 32}, {p11.CKM_AES_ECB, 64}, {p11.CKM_AES_CBC, 4096}} {
		t.Run(fmt.Sprint(mechanismName(c.mechanism), c.limit), func(t *testing.T) {
			e := new(exchangeFor)
			_, tok, keys := openFaulty(t, func(c *Config) { c.Wrap = e.wrap })
			tok.mechanisms = []uint{c.mechanism}
			setDataLimit(tok, c.limit)
			encrypts := func() error {
				e.calls = 0
				return keys[0].encrypts(tok, t, 4)
			}
			if err := encrypts(); err != nil {
				t.Fatal(err)
			}
			calls := e.calls
			for e.first = 1; e.first <= calls; e.first++ {
				for e.last = e.first; e.last <= calls; e.last++ {
					err := encrypts()
					if err != nil && !errors.Is(err, ErrWrongKey) {
						t.Errorf("another key in the calls %d to %d of %d: %v", e.first, e.last, calls, err)
					}
					if err == nil && e.calls == calls { // otherwise the calls were made again
						t.Errorf("another key in the calls %d to %d of %d was not noticed", e.first, e.last, calls)
					}
				}
			}
		})
	}
}

// TestOneGathererForACheckValue: callers with the same check value share calls, and callers with another do not. After
// a change of the check value, the new callers share calls too.
func TestOneGathererForACheckValue(t *testing.T) {
	tok, name := new(Token), keyName{"id", "label"}
	first := tok.gathererOf(name, []byte{1})
	second := tok.gathererOf(name, []byte{2})
	if first == second || first.check != "\x01" || second.check != "\x02" {
		t.Errorf("check values %x and %x", first.check, second.check)
	}
	if tok.gathererOf(name, []byte{2}) != second {
		t.Error("a caller with the new check value gets a gatherer of its own")
	}
}

// TestCheckValueOfExchangedHandles: a check value is the one of the key that was named, also if the key's handle has
// become the handle of another key.
func TestCheckValueOfExchangedHandles(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	m.Renumber()
	for _, k := range keys {
		if got, err := tok.CheckValue(t.Context(), k.id, k.label); err != nil || !bytes.Equal(got, k.check) {
			t.Errorf("%s: %x, %v; want %x", k.label, got, err, k.check)
		}
	}
}

// TestProve: Prove compares the check value with that of the key that was named, also if the key's handle has become
// the handle of another key. It keeps no gatherer of the key.
func TestProve(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	tok.gather.Clear()
	for range 2 {
		for i, k := range keys {
			if err := tok.Prove(t.Context(), k.id, k.label, k.check); err != nil {
				t.Errorf("%s: %v", k.label, err)
			}
			other := keys[(i+1)%len(keys)].check
			err := tok.Prove(t.Context(), k.id, k.label, other)
			if got, _ := CheckValueOf(err); !errors.Is(err, ErrWrongKey) || !bytes.Equal(got, k.check) {
				t.Errorf("%s with the check value of another key: %v, got %x", k.label, err, got)
			}
			if _, ok := tok.gather.Load(keyName{string(k.id), k.label}); ok {
				t.Errorf("%s: a key that is not used has a gatherer", k.label)
			}
		}
		m.Renumber()
	}
}
