package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
)

// lockProbe is a library that finds out whether calls on objects are made under Token.objects.
type lockProbe struct {
	Boundary
	module *atomic.Pointer[module]
	free   *atomic.Int32 // calls that were made without the lock
	held   *atomic.Int32 // calls that were made with it
}

func (p lockProbe) look() {
	m := p.module.Load()
	switch {
	case m == nil: // the token is not open yet
	case m.objects.TryLock():
		m.objects.Unlock()
		p.free.Add(1)
	default:
		p.held.Add(1)
	}
}

func (p lockProbe) FindObjectsInit(s p11.SessionHandle, a []*p11.Attribute) error {
	p.look()
	return p.Boundary.FindObjectsInit(s, a)
}

func (p lockProbe) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle, error) {
	p.look()
	return p.Boundary.GenerateKey(s, m, a)
}

func (p lockProbe) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism,
	public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	p.look()
	return p.Boundary.GenerateKeyPair(s, m, public, private)
}

func (p lockProbe) CreateObject(s p11.SessionHandle, a []*p11.Attribute) (p11.ObjectHandle, error) {
	p.look()
	return p.Boundary.CreateObject(s, a)
}

func (p lockProbe) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	p.look()
	return p.Boundary.DestroyObject(s, o)
}

// TestOneObjectCall: with SoftHSM, calls that make, destroy or search objects run one at a time. With other tokens they
// do not wait for each other.
func TestOneObjectCall(t *testing.T) {
	made := softhsmtest.New(t)
	for _, profile := range []Profile{SoftHSM, Generic} {
		c := config(made)
		c.Profile = profile
		m := new(Meter)
		probe := lockProbe{module: new(atomic.Pointer[module]), free: new(atomic.Int32), held: new(atomic.Int32)}
		c.Wrap = func(b Boundary) Boundary { probe.Boundary = m.Wrap(importer{b}); return probe }
		tok, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		operations := slices.Concat(keyOperations(), dataOperations(), pairOperations(), []operation{
			{"choose", haveKey, func(ctx context.Context, tok *Token) (any, error) {
				err := tok.Choose(ctx, operationKey, "k@5", nil)
				if errors.Is(err, ErrSeveral) {
					err = nil
				}
				return nil, err
			}},
		})
		for _, o := range operations {
			o.setUp(t, tok, m)
			probe.free.Store(0)
			probe.held.Store(0)
			probe.module.Store(tok.module)
			if _, err := o.run(t.Context(), tok); err != nil {
				t.Errorf("%s: %v", o.name, err)
			}
			probe.module.Store(nil)
			free, held := probe.free.Load(), probe.held.Load()
			if profile == SoftHSM && free > 0 || profile != SoftHSM && held > 0 || free+held == 0 && o.name != "ping" {
				t.Errorf("%s, %s: %d calls without the lock, %d with it", profile, o.name, free, held)
			}
		}
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSeveralKeys: of several keys with one id and label none is used, until Choose finds the right one by its check
// value.
func TestSeveralKeys(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	id, label := generate(t, tok, 1, 256)
	check, err := tok.CheckValue(ctx, id, label)
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Choose(ctx, id, label, check); err != nil {
		t.Errorf("one key: %v", err)
	}
	if err := tok.Choose(ctx, []byte("none"), label, check); !errors.Is(err, ErrSeveral) {
		t.Errorf("no key: %v", err)
	}
	makeSecondKey(t, tok, id, label)
	tok.login.handles.Clear()
	if k, err := tok.Find(ctx, id); !errors.Is(err, ErrSeveral) || k != nil ||
		!strings.Contains(err.Error(), "2 keys on the token have CKA_ID 01020301;") {
		t.Errorf("found %v of two, %v", k, err)
	}
	if _, err := tok.CheckValue(ctx, id, label); !errors.Is(err, ErrSeveral) {
		t.Errorf("encrypts with one of two: %v", err)
	}
	if day, err := tok.StartDate(ctx, id, label); err != nil || !day.IsZero() {
		t.Errorf("the start date of two keys: %v, %v", day, err)
	}
	if err := tok.Choose(ctx, id, label, []byte("another")); !errors.Is(err, ErrSeveral) {
		t.Errorf("chose a key with another check value: %v", err)
	}
	if err := tok.Choose(ctx, id, label, check); err != nil {
		t.Error(err)
	}
	if err := tok.EncryptBlocks(ctx, id, label, check, make([]byte, blockSize)); err != nil {
		t.Errorf("the chosen key: %v", err)
	}
	// One of the keys cannot be tried. The right one is chosen, and otherwise the error is that of the key.
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_KEY_FUNCTION_NOT_PERMITTED))
	if err := tok.Choose(ctx, id, label, []byte("another")); !errors.Is(err,
		p11.Error(p11.CKR_KEY_FUNCTION_NOT_PERMITTED)) || errors.Is(err, ErrSeveral) {
		t.Errorf("a key that cannot be tried: %v", err)
	}
	m.Fail("FindObjectsInit", 1, p11.Error(p11.CKR_DATA_INVALID))
	if err := tok.Choose(ctx, id, label, check); !errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) {
		t.Errorf("a search that fails: %v", err)
	}
	if err := tok.Destroy(ctx, id, label); err != nil {
		t.Error(err)
	}
	if k, err := tok.Find(ctx, id); err != nil || k != nil {
		t.Errorf("after both were destroyed: %v, %v", k, err)
	}
}

// TestStartDate: a date that another tool has set is read.
func TestStartDate(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	c := dated{tok.b}
	tok.b = c
	want := time.Date(2024, 1, 31, 0, 0, 0, 0, time.UTC)
	if day, err := tok.StartDate(t.Context(), id, label); err != nil || !day.Equal(want) {
		t.Errorf("%v, %v; want %v", day, err, want)
	}
	if day, err := tok.StartDate(t.Context(), []byte("none"), label); err != nil || !day.IsZero() {
		t.Errorf("no key: %v, %v", day, err)
	}
	m.Fail("GetAttributeValue", 1, p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID))
	if day, err := tok.StartDate(t.Context(), id, label); err != nil || !day.Equal(want) {
		t.Errorf("%v, %v; want %v", day, err, want)
	}
}

// TestDestroyedHandle: the handle of a key is searched once, and forgotten with the key.
func TestDestroyedHandle(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	id, label := generate(t, tok, 1, 256)
	pairID, pairLabel := []byte{9}, "pair"
	importPair(t, tok, pairID, pairLabel)
	k, err := tok.FindPair(ctx, pairID)
	if err != nil {
		t.Fatal(err)
	}
	sealed := seal(t, k.Public, secret.Bytes("x"))
	for _, searches := range []int{2, 0} {
		m.Reset()
		if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, blockSize)); err != nil {
			t.Error(err)
		}
		if _, err := tok.DecryptOAEP(ctx, pairID, pairLabel, crypto.SHA1, sealed); err != nil {
			t.Error(err)
		}
		if n := m.Count("FindObjectsInit"); n != searches {
			t.Errorf("%d searches, want %d", n, searches)
		}
	}
	if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, blockSize)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tok.Destroy(ctx, id, label), tok.DestroyPair(ctx, pairID, pairLabel)); err != nil {
		t.Fatal(err)
	}
	m.Reset()
	if _, ok := tok.gather.Load(keyName{string(id), label}); ok {
		t.Error("a destroyed key stays in memory")
	}
	if _, err := tok.CheckValue(ctx, id, label); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
	if _, err := tok.DecryptOAEP(ctx, pairID, pairLabel, crypto.SHA1, sealed); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
	if m.Count("Encrypt") != 0 || m.Count("DecryptInit") != 0 || m.Count("Login") != 0 {
		t.Errorf("a handle was used after the destruction: %v", m.Counts())
	}
}

// TestKeyMadeDespiteErrorIsLost: an error of the search for the key that the first try made is returned.
func TestKeyMadeDespiteErrorIsLost(t *testing.T) {
	tok, m := open(t)
	first := true
	tok.b = &misreporter{tok.b, &first, nil}
	failNth(m, "FindObjectsInit", 3, p11.Error(p11.CKR_DATA_INVALID)) // once in the first try, twice in the second
	if err := tok.GenerateKey(t.Context(), []byte{1}, "k@1", 256); !errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) {
		t.Error(err)
	}
}

// dated is a library whose objects all start on the same day.
type dated struct{ Boundary }

func (d dated) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	list, err := d.Boundary.GetAttributeValue(s, o, ask)
	for _, a := range list {
		if a.Type == p11.CKA_START_DATE {
			a.Value = []byte("20240131")
		}
	}
	return list, err
}

// destroyer is a library in which each object that is to be read is destroyed before, when its turn comes.
type destroyer struct {
	Boundary
	turn *int // 0: no object is destroyed
}

func (d destroyer) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	if *d.turn--; *d.turn == 0 {
		if err := d.Boundary.DestroyObject(s, o); err != nil {
			return nil, err
		}
	}
	return d.Boundary.GetAttributeValue(s, o, ask)
}

// hides is a library in which one call of C_FindObjects finds nothing.
type hides struct {
	Boundary
	call  int // its number, from 1
	calls *int
}

func (h hides) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	if *h.calls++; *h.calls == h.call {
		return nil, false, nil
	}
	return h.Boundary.FindObjects(s, limit)
}

// TestObjectGoesMeanwhile: an object that is destroyed during a list is left out. An object whose handle was invalid
// once is not. Another error fails the list.
func TestObjectGoesMeanwhile(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	turn := 0
	tok.b = destroyer{tok.b, &turn}
	gone := p11.Error(p11.CKR_OBJECT_HANDLE_INVALID)
	for i := range 3 {
		generate(t, tok, byte(i), 128)
		if err := tok.PutData(ctx, Data{"claviger", fmt.Sprint(i), []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n <= 3; n++ {
		failNth(m, "GetAttributeValue", n, gone)
		if list, err := tok.List(ctx); err != nil || len(list) != 3 {
			t.Errorf("the handle of key %d is invalid once: %d keys, %v", n, len(list), err)
		}
		failNth(m, "GetAttributeValue", n, gone)
		if list, err := tok.ListData(ctx, "claviger"); err != nil || len(list) != 3 {
			t.Errorf("the handle of data object %d is invalid once: %d objects, %v", n, len(list), err)
		}
	}
	for n := range 2 {
		turn = n + 1
		if list, err := tok.List(ctx); err != nil || len(list) != 2-n {
			t.Errorf("a key goes: %d keys, %v", len(list), err)
		}
	}
	turn = 2
	if list, err := tok.ListData(ctx, "claviger"); err != nil || len(list) != 2 {
		t.Errorf("a data object goes: %d objects, %v", len(list), err)
	}
	for i := range 3 {
		if err := tok.PutData(ctx, Data{"claviger", fmt.Sprint(i), []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	// The new object is read back. The first search is for objects that it replaces.
	tok.b = hides{tok.b, 2, new(int)}
	if err := tok.PutData(ctx, Data{"claviger", "new", []byte("v")}); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "does not show it as it was written") {
		t.Errorf("the new object goes: %v", err)
	}
	if list, err := tok.ListData(ctx, "claviger"); err != nil || len(list) != 3 {
		t.Errorf("the object that was not shown is still there: %d objects, %v", len(list), err)
	}
	m.Fail("DestroyObject", 1, gone)
	if err := tok.PutData(ctx, Data{"claviger", "1", []byte("w")}); err != nil {
		t.Errorf("the old object goes before it is destroyed: %v", err)
	}
	twins := func(_ *login, s p11.SessionHandle) error {
		_, err := tok.createData(s, Data{"claviger", "2", []byte("v")})
		return err
	}
	if err := errors.Join(tok.do(ctx, "test", twins),
		tok.PutData(ctx, Data{"claviger", "2", []byte("w")})); err != nil {
		t.Error(err)
	}
	values := map[string]string{}
	list, err := tok.ListData(ctx, "claviger")
	for _, d := range list {
		values[d.Label] += string(d.Value)
	}
	if err != nil || values["2"] != "w" {
		t.Errorf("two old objects were replaced: %v, %v", values, err)
	}
}

// TestManyDataObjects: ListData refuses to read more objects than any store makes.
func TestManyDataObjects(t *testing.T) {
	tok, _ := open(t)
	ctx := t.Context()
	create := func(n int, value []byte) {
		t.Helper()
		err := tok.do(ctx, "test", func(_ *login, s p11.SessionHandle) error {
			_, err := tok.createData(s, Data{"claviger", fmt.Sprint(n), value})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxDataObjects {
		create(i, bytes.Repeat([]byte("v"), MaxData+i))
	}
	list, err := tok.ListData(ctx, "claviger")
	if err != nil || len(list) != maxDataObjects {
		t.Errorf("%d objects, %v", len(list), err)
	}
	for _, d := range list {
		if len(d.Value) != MaxData {
			t.Errorf("object %s has %d bytes", d.Label, len(d.Value))
		}
	}
	create(maxDataObjects, nil)
	if list, err := tok.ListData(ctx, "claviger"); !claviger.Is(err, claviger.Internal) || list != nil ||
		!strings.Contains(err.Error(), `65 data objects on the token have the application "claviger"`) {
		t.Errorf("%d objects, %v", len(list), err)
	}
}

// TestTokenIsFull: the error for a token without room says so.
func TestTokenIsFull(t *testing.T) {
	tok, m := open(t)
	full := p11.Error(p11.CKR_DEVICE_MEMORY)
	m.Fail("GenerateKey", 1, full)
	if err := tok.GenerateKey(t.Context(), []byte{1}, "k@1", 256); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, full) || !strings.Contains(err.Error(), "no room for another key") {
		t.Errorf("key: %v", err)
	}
	m.Fail("GenerateKeyPair", 1, full)
	if err := tok.GeneratePair(t.Context(), []byte{1}, "k", MinPairBits); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, full) || !strings.Contains(err.Error(), "no room for another pair") {
		t.Errorf("pair: %v", err)
	}
}

// TestAttributesOneByOne: attributes that the token does not know, or does not show, are left out. Another error fails
// the reading.
func TestAttributesOneByOne(t *testing.T) {
	tok, m := open(t)
	id, _ := generate(t, tok, 1, 192)
	lib := tok.b
	for _, unknown := range []uint{p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE} {
		tok.b = sparseToken{Boundary: lib, unknown: p11.CKA_LOCAL, code: unknown, changed: ^uint(0)}
		k, err := tok.Find(t.Context(), id)
		tok.b = lib
		if err != nil || k.localKnown || k.Label != "k@1" || k.Bits != 192 || !k.neverKnown {
			t.Errorf("%v: %+v, %v", p11.Error(unknown), k, err)
		}
		m.Fail("GetAttributeValue", 1, p11.Error(unknown))
		failNth(m, "GetAttributeValue", 2, p11.Error(p11.CKR_DATA_INVALID))
		if k, err := tok.Find(t.Context(), id); !errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) || k != nil {
			t.Errorf("%v: %+v, %v", p11.Error(unknown), k, err)
		}
	}
}

// TestListLimit: a list without a deadline has a limit of its own, since it makes many calls.
func TestListLimit(t *testing.T) {
	tok, _ := open(t)
	generate(t, tok, 1, 128)
	tok.limit = time.Nanosecond
	if list, err := tok.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%d keys, %v", len(list), err)
	}
	if _, err := tok.FindLabel(t.Context(), "k@1"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("another call without a deadline: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := tok.FindLabel(ctx, "k@1"); err != nil {
		t.Errorf("a call with a deadline: %v", err)
	}
}

// TestSearchPages: a search returns all objects of a token that has more than one page of them.
func TestSearchPages(t *testing.T) {
	tok, m := open(t)
	const objects = 300
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		for i := range objects {
			if _, err := tok.b.CreateObject(s, []*p11.Attribute{
				p11.NewAttribute(p11.CKA_CLASS, p11.CKO_DATA), p11.NewAttribute(p11.CKA_APPLICATION, "claviger"),
				p11.NewAttribute(p11.CKA_LABEL, fmt.Sprint(i)),
			}); err != nil {
				return err
			}
		}
		m.Reset()
		found, err := tok.search(s, dataTemplate("claviger", nil))
		if len(found) != objects || m.Count("FindObjects") != 2 || m.Count("FindObjectsFinal") != 1 {
			t.Errorf("%d objects by the calls %v", len(found), m.Counts())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSessionKeysAreNotListed: a key that exists only in a session, while a call makes it to try the token, is in no
// list and is found by no search.
func TestSessionKeysAreNotListed(t *testing.T) {
	tok, _ := open(t)
	id := []byte("01234567")
	if err := tok.GenerateKey(t.Context(), id, "k@0", 256); err != nil {
		t.Fatal(err)
	}
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		if _, err := tok.sessionKey(s); err != nil {
			return err
		}
		list, err := tok.List(t.Context())
		if err != nil || len(list) != 1 || list[0].Label != "k@0" {
			t.Errorf("%+v, %v", list, err)
		}
		found, err := tok.FindLabel(t.Context(), "claviger probe")
		if err != nil || len(found) != 0 {
			t.Errorf("%+v, %v", found, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestListEnds: a list of keys ends when its context does, so that Close does not wait for the description of each key.
func TestListEnds(t *testing.T) {
	tok, m := open(t)
	for n := range byte(10) {
		generate(t, tok, n, 128)
	}
	m.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	release := m.Hang("GetAttributeValue")
	ended := make(chan error, 1)
	go func() {
		_, err := tok.List(ctx)
		ended <- err
	}()
	eventually(t, func() error {
		if m.Count("GetAttributeValue") == 0 {
			return errors.New("no key is described")
		}
		return nil
	})
	cancel()
	release()
	if err := <-ended; !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
	if err := tok.Close(); err != nil { // waits for the call
		t.Error(err)
	}
	if n := m.Count("GetAttributeValue"); n > 1 {
		t.Errorf("%d calls were made for keys", n)
	}
}
