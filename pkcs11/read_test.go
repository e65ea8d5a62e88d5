package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
)

// readings are the operations that read objects. Each returns what it has read of the objects with the labels of
// TestExchangedReadings, and an error, if that is not right.
var readings = map[string]func(*testing.T, *Token) error{
	"list": func(t *testing.T, tok *Token) error {
		list, err := tok.List(t.Context())
		labels := map[string]bool{}
		for _, k := range list {
			labels[fmt.Sprintf("%s %x", k.Label, k.ID)] = true
		}
		if err == nil && (len(list) != 3 || !labels["k@0 01020300"] || !labels["k@1 01020301"] ||
			!labels["third 07"]) {
			err = fmt.Errorf("%+v", list)
		}
		return err
	},
	"find label": func(t *testing.T, tok *Token) error {
		list, err := tok.FindLabel(t.Context(), "third")
		if err == nil && (len(list) != 1 || list[0].Label != "third" || !bytes.Equal(list[0].ID, []byte{7})) {
			err = fmt.Errorf("%+v", list)
		}
		return err
	},
	"find": func(t *testing.T, tok *Token) error {
		k, err := tok.Find(t.Context(), []byte{7})
		if err == nil && (k == nil || k.Label != "third" || k.Bits != 128) {
			err = fmt.Errorf("%+v", k)
		}
		return err
	},
	"list data": func(t *testing.T, tok *Token) error {
		list, err := tok.ListData(t.Context(), "claviger")
		if err == nil && (len(list) != 1 || list[0].Label != "store" || string(list[0].Value) != "first") {
			err = fmt.Errorf("%+v", list)
		}
		return err
	},
}

// TestExchangedReadings: while objects are read, the handles of two objects change places, after each call in turn. No
// object is missing from a list, and none is taken for another one.
func TestExchangedReadings(t *testing.T) {
	m, tok, _ := openFaulty(t, nil) // with two keys
	if err := tok.GenerateKey(t.Context(), []byte{7}, "third", 128); err != nil {
		t.Fatal(err)
	}
	if err := tok.DestroyData(t.Context(), "claviger", "store"); err != nil {
		t.Fatal(err)
	}
	putFirst(t, tok)
	for name, read := range readings {
		for _, pair := range [][2]string{{"third", "k@1"}, {"store", "third"}, {"store", "k@1"}} {
			exchanges := 0
			for _, f := range []faultmodule.Function{faultmodule.FindObjectsInit, faultmodule.FindObjects,
				faultmodule.FindObjectsFinal, faultmodule.GetAttributeValue} {
				for skip := range 12 {
					m.ExchangeLabels(pair[0], pair[1])
					done := m.Done(f)
					m.Order(f, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
					err := read(t, tok)
					m.Heal()
					if err != nil {
						t.Errorf("%s, %v exchanged after call %d of function %d: %v", name, pair, skip, f, err)
					}
					if m.Done(f) == done {
						break
					}
					exchanges++
				}
			}
			if exchanges < 4 {
				t.Errorf("%s, %v: only %d exchanges", name, pair, exchanges)
			}
		}
	}
	m.UndoExchange()
}

// TestReadingsWhileRenumbered: the handles of all objects change once while objects are read, at a random time. Each
// reading is right, or returns an error of kind Unavailable.
func TestReadingsWhileRenumbered(t *testing.T) {
	m, tok, _ := openFaulty(t, nil)
	if err := tok.GenerateKey(t.Context(), []byte{7}, "third", 128); err != nil {
		t.Fatal(err)
	}
	putFirst(t, tok)
	refused, total := 0, 0
	var after time.Duration
	for range 100 {
		for name, read := range readings {
			after = (after + 17*time.Microsecond) % (3 * time.Millisecond)
			change := time.AfterFunc(after, m.Renumber)
			err := read(t, tok)
			change.Stop()
			total++
			switch {
			case claviger.Is(err, claviger.Unavailable):
				refused++
			case err != nil:
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	t.Logf("%d of %d readings were refused", refused, total)
}

// forgetful is a library in which the next searches, once they are counted, find nothing, and return no error.
type forgetful struct {
	Boundary
	searches *int
}

func (f forgetful) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	if *f.searches > 0 {
		*f.searches--
		return nil, false, nil
	}
	return f.Boundary.FindObjects(s, limit)
}

// TestSearchFindsNothingOnce: a search that finds nothing once, without an error, does not make an object missing from
// a list, a key lost, or a destruction a success.
func TestSearchFindsNothingOnce(t *testing.T) {
	tok, _ := open(t)
	searches := 0
	tok.b = forgetful{tok.b, &searches}
	putFirst(t, tok)
	id, label := generate(t, tok, 1, 256)
	searches = 1
	if list, err := tok.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	searches = 1
	if list, err := tok.ListData(t.Context(), "claviger"); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	searches = 1
	if _, err := tok.CheckValue(t.Context(), id, label); err != nil {
		t.Error(err)
	}
	searches = 1
	err := errors.Join(tok.Destroy(t.Context(), id, label), tok.DestroyData(t.Context(), "claviger", "store"))
	if err != nil {
		t.Error(err)
	}
	if list, err := tok.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestReadingFails: if each reading shows other objects, or the second search fails, there is an error and not an empty
// list.
func TestReadingFails(t *testing.T) {
	tok, m, reads, _, label := openOther(t, false)
	*reads = 1000
	if list, err := tok.FindLabel(t.Context(), label); list != nil || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("other objects: %+v, %v", list, err)
	}
	*reads = 1
	m.Reset()
	failNth(m, "FindObjectsInit", 2, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
	list, err := tok.FindLabel(t.Context(), label)
	if list != nil || !errors.Is(err, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) {
		t.Errorf("the second search fails: %+v, %v", list, err)
	}
	if list, err := tok.FindLabel(t.Context(), label); err != nil || len(list) != 1 {
		t.Errorf("afterwards: %+v, %v", list, err)
	}
}

// TestSecondSearch: a search that finds nothing is repeated. If the second one fails, there is an error. If it finds
// what the first did not, that is logged.
func TestSecondSearch(t *testing.T) {
	tok, m := open(t)
	id, _ := generate(t, tok, 1, 256)
	var log bytes.Buffer
	searches := 0
	tok.b, tok.log = forgetful{tok.b, &searches}, slog.New(slog.NewTextHandler(&log, nil))
	search := func(id []byte) (found []p11.ObjectHandle, err error) {
		err = tok.do(t.Context(), "test", func(l *login, s p11.SessionHandle) (err error) {
			found, err = tok.searchTwice(l, s, keyTemplate(id, nil))
			return err
		})
		return found, err
	}
	if found, err := search([]byte{9}); err != nil || len(found) != 0 || log.Len() > 0 {
		t.Errorf("no object: %d, %v; the log: %s", len(found), err, &log)
	}
	searches = 1
	found, err := search(id)
	if err != nil || len(found) != 1 || !strings.Contains(log.String(), "found nothing in one search") {
		t.Errorf("not shown once: %d, %v; the log: %s", len(found), err, &log)
	}
	searches = 1
	failNth(m, "FindObjectsInit", 2, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
	if found, err := search(id); !errors.Is(err, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) {
		t.Errorf("the second search fails: %d, %v", len(found), err)
	}
}

// TestSameAttributes: two readings are the same if all types and values are.
func TestSameAttributes(t *testing.T) {
	label, other := p11.NewAttribute(p11.CKA_LABEL, "a"), p11.NewAttribute(p11.CKA_LABEL, "b")
	id := p11.NewAttribute(p11.CKA_ID, "a")
	for i, c := range []struct {
		a, b []*p11.Attribute
		same bool
	}{
		{[]*p11.Attribute{label, id}, []*p11.Attribute{label, id}, true},
		{[]*p11.Attribute{label}, []*p11.Attribute{other}, false},
		{[]*p11.Attribute{label}, []*p11.Attribute{id}, false},
		{[]*p11.Attribute{label}, nil, false},
	} {
		if same := sameAttributes(c.a, c.b); same != c.same {
			t.Errorf("%d: %t", i, same)
		}
	}
}

// swappedReads is a library that reads the attributes of one object in place of another.
type swappedReads struct {
	Boundary
	object, instead p11.ObjectHandle
}

func (l swappedReads) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	if o == l.object {
		o = l.instead
	}
	return l.Boundary.GetAttributeValue(s, o, ask)
}

// TestExchangedPairs: the handle of an RSA pair becomes that of another pair before it is read. The public key of the
// other pair is not returned: a Key HSM would encrypt with it.
func TestExchangedPairs(t *testing.T) {
	tok, _ := open(t)
	var handles []p11.ObjectHandle
	for _, id := range []byte{8, 9} {
		if err := tok.GeneratePair(t.Context(), []byte{id}, "pair", MinPairBits); err != nil {
			t.Fatal(err)
		}
		if err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
			found, err := tok.findPrivate(s, []byte{id}, nil)
			handles = append(handles, found...)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	tok.b = swappedReads{tok.b, handles[0], handles[1]}
	if k, err := tok.FindPair(t.Context(), []byte{8}); !claviger.Is(err, claviger.Unavailable) || k != nil {
		t.Errorf("%+v, %v", k, err)
	}
	if k, err := tok.FindPair(t.Context(), []byte{9}); err != nil || k == nil {
		t.Errorf("the other pair: %+v, %v", k, err)
	}
}

// TestHandleChangesDuringReading: if a handle becomes invalid, or the lengths of attributes change, while objects are
// read, they are searched again at once: that is no fault of the session.
func TestHandleChangesDuringReading(t *testing.T) {
	tok, m := open(t)
	_, label := generate(t, tok, 1, 256)
	for _, code := range []uint{p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_BUFFER_TOO_SMALL} {
		m.Reset()
		m.Fail("GetAttributeValue", 1, p11.Error(code))
		if list, err := tok.FindLabel(t.Context(), label); err != nil || len(list) != 1 {
			t.Errorf("%v: %+v, %v", p11.Error(code), list, err)
		}
		if n := m.Count("OpenSession") + m.Count("CloseSession"); n > 0 {
			t.Errorf("%v: %d sessions were opened or closed", p11.Error(code), n)
		}
	}
}
