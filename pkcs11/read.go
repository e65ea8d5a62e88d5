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
// show, in the call that reads it, what was searched. A list counts only if all handles were valid, and either all
// objects differ, or two readings in a row were the same. A search that finds nothing is repeated in another session
// before an object counts as missing.

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
		list, allDiffer, err := t.readOnce(ctx, s, found, match, all)
		switch {
		case err == nil && (allDiffer || before != nil && slices.EqualFunc(list, before, sameAttributes)):
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

// readOnce reads the objects with these handles once. allDiffer says that no two objects are the same, so none was read
// in the place of another. If a handle is invalid, the error is errOtherObject: the object was destroyed, or the handle
// has changed.
func (t *Token) readOnce(ctx context.Context, s p11.SessionHandle, found []p11.ObjectHandle, match []*p11.Attribute,
	types []uint) (list [][]*p11.Attribute, allDiffer bool, err error) {
	allDiffer = true
	seen := make(map[string]bool, len(found))
	for _, o := range found {
		if err := ctx.Err(); err != nil { // Close waits for the end of this function
			return nil, false, claviger.E("pkcs11.read", claviger.Unavailable, "", err)
		}
		attrs, err := t.attributes(s, o, types...)
		switch {
		case isOneOf(err, p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_BUFFER_TOO_SMALL):
			// The handle may have changed after the lengths of the attributes were read.
			return nil, false, fmt.Errorf("%w: %w", errOtherObject, err)
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
		allDiffer = allDiffer && !seen[text.String()]
		seen[text.String()] = true
		list = append(list, attrs)
	}
	return list, allDiffer, nil
}

func sameAttributes(a, b []*p11.Attribute) bool {
	return slices.EqualFunc(a, b, func(x, y *p11.Attribute) bool {
		return x.Type == y.Type && bytes.Equal(x.Value, y.Value)
	})
}

// attributes reads attributes: all in one call, or one by one if the token does not know some of them. Unknown
// attributes are left out. The error is errOtherObject if the handle became that of another object meanwhile.
func (t *Token) attributes(s p11.SessionHandle, o p11.ObjectHandle, types ...uint) ([]*p11.Attribute, error) {
	all, err := t.b.GetAttributeValue(s, o, unread(types...))
	if !unknownAttribute(err) {
		return all, err
	}
	return t.eachAttribute(s, o, types)
}

// identity are attributes that each object of the token has, and that differ between objects of this program.
var identity = []uint{p11.CKA_CLASS, p11.CKA_LABEL}

// eachAttribute reads attributes one by one, each in a call that also reads the object's identity. An attribute counts
// as unknown if the token says so twice, and the handle is that of the same object after each of these calls.
func (t *Token) eachAttribute(s p11.SessionHandle, o p11.ObjectHandle, types []uint) ([]*p11.Attribute, error) {
	object, err := t.b.GetAttributeValue(s, o, unread(identity...))
	if err != nil {
		return nil, err
	}
	var known []*p11.Attribute
	for _, a := range types {
		for range 2 {
			read, err := t.b.GetAttributeValue(s, o, unread(append(slices.Clone(identity), a)...))
			unknown := unknownAttribute(err)
			if unknown {
				read, err = t.b.GetAttributeValue(s, o, unread(identity...))
			}
			if err != nil {
				return nil, err
			}
			if err := differ(read, object); err != nil {
				return nil, err
			}
			if !unknown {
				known = append(known, read[len(identity)])
				break
			}
		}
	}
	return known, nil
}

// unknownAttribute reports whether err is the result for an attribute that the token does not know, or does not show.
func unknownAttribute(err error) bool {
	return isOneOf(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE)
}

// unread returns attributes without values.
func unread(types ...uint) []*p11.Attribute {
	list := make([]*p11.Attribute, len(types))
	for i, a := range types {
		list[i] = p11.NewAttribute(a, nil)
	}
	return list
}

// searchTwice is search, but repeats a search that finds nothing in another session of l, unless l is nil.
func (t *Token) searchTwice(l *login, s p11.SessionHandle, match []*p11.Attribute) ([]p11.ObjectHandle, error) {
	found, err := t.search(s, match)
	if err != nil || len(found) > 0 || l == nil {
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
