package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// A search returns handles, and a handle may be the handle of another object when the object's attributes are read, see
// proof.go. Then an object would be missing from a list, and another one would be in its place. So each object must
// show, in the call that reads it, what was searched. A list counts only if it is complete for sure, or if two readings
// in a row were the same. A search that finds nothing is repeated in another session before an object counts as
// missing.

// readTries is how often a list is read until two readings in a row are the same.
const readTries = 5

// readObjects returns the attributes of all objects that match, which are those of match and of types. An object that
// was destroyed meanwhile is left out.
func (t *Token) readObjects(ctx context.Context, s p11.SessionHandle, match []*p11.Attribute, types ...uint) (
	[][]*p11.Attribute, error) {
	found, err := t.search(s, match)
	if err != nil {
		return nil, err
	}
	return t.readFound(ctx, s, found, match, types...)
}

// readFound is readObjects for the result of a search.
func (t *Token) readFound(ctx context.Context, s p11.SessionHandle, found []p11.ObjectHandle,
	match []*p11.Attribute, types ...uint) ([][]*p11.Attribute, error) {
	all := typesOf(match)
	for _, a := range types {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	var before [][]*p11.Attribute
	for try := 1; ; try++ {
		list, complete, err := t.readOnce(ctx, s, found, match, all)
		switch {
		case err == nil && (complete || try > 1 && slices.EqualFunc(list, before, sameAttributes)):
			return list, nil
		case err != nil && !errors.Is(err, errOtherObject):
			return nil, err
		case try == readTries:
			return nil, claviger.Errorf("pkcs11.read", claviger.Unavailable, "", "the token shows other objects at "+
				"each reading, because the handles of objects change all the time; try again when the HSM is steady")
		}
		if before = list; err != nil {
			before = nil
		}
		if found, err = t.search(s, match); err != nil {
			return nil, err
		}
	}
}

// readOnce reads the objects with these handles once. complete says that no object can be missing: each handle was
// valid, and the objects differ.
func (t *Token) readOnce(ctx context.Context, s p11.SessionHandle, found []p11.ObjectHandle, match []*p11.Attribute,
	types []uint) (list [][]*p11.Attribute, complete bool, err error) {
	complete = true
	seen := make(map[string]bool, len(found))
	for _, o := range found {
		if err := ctx.Err(); err != nil { // Close waits for the end of this function
			return nil, false, claviger.E("pkcs11.read", claviger.Unavailable, "", err)
		}
		attrs, err := t.attributes(s, o, types...)
		switch {
		case isOneOf(err, p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_BUFFER_TOO_SMALL):
			complete = false // it was destroyed, or its handle has changed, perhaps after its lengths were read
			continue
		case err != nil:
			return nil, false, err
		}
		if err := differ(attrs, match); err != nil {
			return nil, false, err
		}
		var text bytes.Buffer
		for _, a := range attrs {
			fmt.Fprintf(&text, "%x %x ", a.Type, a.Value)
		}
		complete = complete && !seen[text.String()]
		seen[text.String()] = true
		list = append(list, attrs)
	}
	return list, complete, nil
}

func sameAttributes(a, b []*p11.Attribute) bool {
	return slices.EqualFunc(a, b, func(x, y *p11.Attribute) bool {
		return x.Type == y.Type && bytes.Equal(x.Value, y.Value)
	})
}

// searchTwice is search, but repeats a search that finds nothing in another session.
func (t *Token) searchTwice(l *login, s p11.SessionHandle, match []*p11.Attribute) ([]p11.ObjectHandle, error) {
	found, err := t.search(s, match)
	if err != nil || len(found) > 0 {
		return found, err
	}
	err = t.inOwnSession(l, s, func(other p11.SessionHandle) (err error) {
		found, err = t.search(other, match)
		return err
	})
	if len(found) > 0 {
		t.log.Warn("the token found nothing in one search, and found the objects in the next one", "objects",
			len(found))
	}
	return found, err
}
