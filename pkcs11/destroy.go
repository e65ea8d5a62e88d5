package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// A destroyed key cannot be got back, and C_DestroyObject proves nothing: it destroys the object that has the handle
// now. Handles of objects may change, see proof.go. So destroy is the only function that calls C_DestroyObject. It
// reads the object's name by the same handle, in the same session, in the call before. Between these two calls a
// handle can still change. Therefore destroyObjects searches for the object again afterwards: if the object is still
// there, another object may have been destroyed, and the error says so.

// target describes the objects that an operation has to destroy.
type target struct {
	name  string           // for messages
	match []*p11.Attribute // a search finds the objects by these; each object must show all of them
	value []byte           // CKA_VALUE of a data object; nil: any
	limit int              // the largest number of objects to destroy
	login *login           // if not nil, a search that finds nothing is repeated in another session of this login

	destroyed bool // whether an object was destroyed, and the objects were not searched since
	remaining int  // the number of objects that the next search may find, if destroyed
	count     int  // the number of objects that were destroyed
}

// allObjects as target.limit destroys all objects that match.
const allObjects = 1 << 30

// destroyTries is how often the objects are searched again because handles changed.
const destroyTries = 3

// ErrOtherDestroyed means that the object to destroy is still there, although the token reported that it destroyed it.
// Another object may have been destroyed in its place.
var ErrOtherDestroyed = errors.New("another object may have been destroyed")

// errOtherObject means that the handle now belongs to another object, not to the object to destroy. Nothing was
// destroyed.
var errOtherObject = errors.New("the handle is the handle of another object")

// destroyObjects destroys the objects of a target. After an error it may be called again with the same target.
func (t *Token) destroyObjects(s p11.SessionHandle, w *target) error {
	const op = "pkcs11.destroy"
	for try := 1; ; try++ {
		found, err := t.matching(s, w)
		if errors.Is(err, errOtherObject) && try < destroyTries {
			continue
		}
		if err != nil {
			return unsteady(w.name, err)
		}
		if w.destroyed && len(found) > w.remaining {
			err := claviger.Errorf(op, claviger.Internal, "", "the token reported that it destroyed %s, and the "+
				"object is still there: the handles of objects may have changed in that moment, so %w; run claviger "+
				"hsm list, and restore a key that is missing from the HSM's backup", w.name, ErrOtherDestroyed)
			t.log.Error("perhaps a wrong object was destroyed", "object", w.name, "err", err)
			return err
		}
		w.destroyed = false
		if w.limit <= 0 || len(found) == 0 {
			return nil
		}
		n, err := t.destroyEach(s, w, found[:min(w.limit, len(found))])
		w.destroyed, w.remaining, w.limit, w.count = n > 0, len(found)-n, w.limit-n, w.count+n
		changed := errors.Is(err, errOtherObject) || isOneOf(err, p11.CKR_OBJECT_HANDLE_INVALID)
		switch {
		case err == nil:
		case changed && try < destroyTries:
			t.log.Warn("handles of objects have changed; the object to destroy is searched again", "object", w.name,
				"err", err)
		default:
			return unsteady(w.name, err)
		}
	}
}

// unsteady gives errOtherObject a kind for the callers of this package. It returns other errors as they are.
func unsteady(name string, err error) error {
	if !errors.Is(err, errOtherObject) {
		return err
	}
	return claviger.Errorf("pkcs11.destroy", claviger.Unavailable, "", "%s was not destroyed, because the handles of "+
		"objects on the token change all the time; try again when the HSM is steady: %w", name, err)
}

// matching returns the handles of the target's objects, or errOtherObject.
func (t *Token) matching(s p11.SessionHandle, w *target) ([]p11.ObjectHandle, error) {
	again := w.login
	if w.destroyed {
		again = nil
	}
	found, err := t.searchTwice(again, s, w.match)
	if err != nil || w.value == nil {
		return found, err
	}
	var same []p11.ObjectHandle
	for _, o := range found {
		attrs, err := t.attributes(s, o, typesOf(w.shown())...)
		switch {
		case isOneOf(err, p11.CKR_OBJECT_HANDLE_INVALID):
			continue // another process has destroyed it
		case err != nil:
			return nil, err
		}
		if err := differ(attrs, w.match); err != nil {
			return nil, err
		}
		if differ(attrs, w.shown()) == nil {
			same = append(same, o)
		}
	}
	return same, nil
}

// shown returns the attributes that each object of the target must show.
func (w *target) shown() []*p11.Attribute {
	if w.value == nil {
		return w.match
	}
	return append(slices.Clone(w.match), p11.NewAttribute(p11.CKA_VALUE, w.value))
}

// destroyEach destroys objects of a target, and returns their number. An error does not keep it from the next object,
// unless a handle has changed.
func (t *Token) destroyEach(s p11.SessionHandle, w *target, found []p11.ObjectHandle) (n int, err error) {
	for _, o := range found {
		failed := t.destroy(s, o, w.shown())
		err = errors.Join(err, failed)
		if failed == nil {
			n++
		}
		if errors.Is(failed, errOtherObject) {
			break
		}
	}
	return n, err
}

// destroy destroys the object if it shows these attributes. Otherwise it returns errOtherObject.
func (t *Token) destroy(s p11.SessionHandle, o p11.ObjectHandle, match []*p11.Attribute) error {
	if err := t.shows(s, o, match); err != nil {
		return err
	}
	return t.b.DestroyObject(s, o) // the call after the read, because a handle can change in between
}

// shows returns errOtherObject if the object does not show these attributes.
func (t *Token) shows(s p11.SessionHandle, o p11.ObjectHandle, match []*p11.Attribute) error {
	attrs, err := t.attributes(s, o, typesOf(match)...)
	if err != nil {
		return err
	}
	return differ(attrs, match)
}

func typesOf(match []*p11.Attribute) []uint {
	types := make([]uint, len(match))
	for i, a := range match {
		types[i] = a.Type
	}
	return types
}

// differ returns errOtherObject if an object's attributes are not these.
func differ(attrs, match []*p11.Attribute) error {
	for _, want := range match {
		i := slices.IndexFunc(attrs, func(a *p11.Attribute) bool { return a.Type == want.Type })
		switch {
		case i < 0:
			return fmt.Errorf("%w, or the token does not report attribute %#x of it", errOtherObject, want.Type)
		case !bytes.Equal(attrs[i].Value, want.Value):
			return fmt.Errorf("%w: its attribute %#x is %x and not %x", errOtherObject, want.Type,
				attrs[i].Value[:min(len(attrs[i].Value), 64)], want.Value[:min(len(want.Value), 64)])
		}
	}
	return nil
}
