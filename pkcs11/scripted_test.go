package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// scripted is a library whose searches find three objects, and whose reads have these results, one after another.
type scripted struct {
	Boundary
	results []any // the label that the object shows, or an error
	reads   int
}

func (l *scripted) FindObjectsInit(p11.SessionHandle, []*p11.Attribute) error { return nil }
func (l *scripted) FindObjectsFinal(p11.SessionHandle) error                  { return nil }

func (l *scripted) FindObjects(p11.SessionHandle, int) ([]p11.ObjectHandle, bool, error) {
	return []p11.ObjectHandle{1, 2, 3}, false, nil
}

func (l *scripted) GetAttributeValue(_ p11.SessionHandle, _ p11.ObjectHandle,
	ask []*p11.Attribute) (list []*p11.Attribute, _ error) {
	result := l.results[l.reads]
	l.reads++
	if err, failed := result.(error); failed {
		return nil, err
	}
	for _, a := range ask {
		value := []byte("value")
		if a.Type == p11.CKA_LABEL {
			value = fmt.Append(nil, result)
		}
		list = append(list, p11.NewAttribute(a.Type, value))
	}
	return list, nil
}

// TestAttributesOfOneObject: attributes that are read one by one are those of one object. An attribute is unknown only
// if the token says so twice.
func TestAttributesOfOneObject(t *testing.T) {
	unknown, broken := p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID), p11.Error(p11.CKR_DATA_INVALID)
	for i, c := range []struct {
		results []any
		known   int
		err     error
	}{
		{[]any{"a"}, 1, nil},
		{[]any{unknown, "a", "a"}, 1, nil},
		{[]any{unknown, "a", unknown, "a", "a"}, 1, nil},
		{[]any{unknown, "a", unknown, "a", unknown, "a"}, 0, nil},
		{[]any{broken}, 0, broken},
		{[]any{unknown, broken, "a"}, 0, broken},
		{[]any{unknown, "a", broken}, 0, broken},
		{[]any{unknown, "a", unknown, broken, "a"}, 0, broken},
		{[]any{unknown, "a", "other", "a"}, 0, errOtherObject},
		{[]any{unknown, "a", unknown, "other", "a"}, 0, errOtherObject},
	} {
		lib := &scripted{results: c.results}
		list, err := (&Token{b: lib}).attributes(1, 1, p11.CKA_ID)
		if len(list) != c.known || !errors.Is(err, c.err) {
			t.Errorf("case %d: %v, %v", i, list, err)
		}
	}
}

// TestUnequalReadings: a list with two equal objects counts if two readings in a row are the same. Else an object that
// was read in the place of another one would be missing.
func TestUnequalReadings(t *testing.T) {
	lib := &scripted{results: []any{"a", "a", "b", "a", "a", "a", "a", "a", "b", "a", "a", "b"}}
	tok := &Token{b: lib, module: new(module)}
	list, err := tok.readObjects(t.Context(), 1, nil, p11.CKA_LABEL)
	if err != nil || len(list) != 3 || lib.reads != len(lib.results) {
		t.Fatal(len(list), err, lib.reads)
	}
	for i, label := range []string{"a", "a", "b"} {
		if !bytes.Equal(list[i][0].Value, []byte(label)) {
			t.Errorf("object %d is %s", i, list[i][0].Value)
		}
	}
}

// TestStartsForEmptyToken: the pauses between the starts of the library for an empty token grow, until a key works.
func TestStartsForEmptyToken(t *testing.T) {
	tok, generation := new(Token), uint64(1)
	for i, c := range []struct {
		passed time.Duration // since the last start
		worked bool          // a call succeeded meanwhile
		starts bool
		pause  time.Duration // afterwards
	}{
		{0, false, true, firstPauseOfEmpty},
		{firstPauseOfEmpty / 2, false, false, firstPauseOfEmpty},
		{firstPauseOfEmpty, false, true, 2 * firstPauseOfEmpty},
		{firstPauseOfEmpty, false, false, 2 * firstPauseOfEmpty},
		{0, true, true, firstPauseOfEmpty},
		{0, false, false, firstPauseOfEmpty},
	} {
		tok.emptied.at = time.Now().Add(-c.passed)
		if c.worked {
			tok.successes.Add(1)
		}
		starts := !tok.believesEmpty(generation)
		if starts {
			generation++
			tok.startedForEmpty(generation)
			tok.startedForEmpty(generation) // by another caller
		}
		if starts != c.starts || tok.emptied.pause != c.pause {
			t.Errorf("case %d: %t, then a pause of %v", i, starts, tok.emptied.pause)
		}
	}
	if tok.believesEmpty(generation - 1) {
		t.Error("a library that was started before is believed")
	}
	if again, err := tok.startIfStale(t.Context(), generation, errors.New("another error")); again || err != nil {
		t.Errorf("another error: %t, %v", again, err)
	}
}
