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

// Data is a data object on the token (CKO_DATA): a few bytes of an application. Application and Label name it;
// the vendor's tools show both.
type Data struct {
	Application string // CKA_APPLICATION
	Label       string // CKA_LABEL
	Value       []byte // CKA_VALUE, up to MaxData bytes
}

// MaxData is the largest value of a data object that this package writes or reads, in bytes.
const MaxData = 4 << 10

// maxDataObjects is the largest number of data objects that ListData reads for one application.
const maxDataObjects = 64

// dataRefusals are the errors of a token that stores no data objects, or not this data object. CloudHSM stores
// only keys; on other tokens a policy may forbid data objects.
var dataRefusals = []uint{
	p11.CKR_FUNCTION_NOT_SUPPORTED, p11.CKR_ATTRIBUTE_VALUE_INVALID, p11.CKR_ATTRIBUTE_TYPE_INVALID,
	p11.CKR_ATTRIBUTE_READ_ONLY,
	p11.CKR_TEMPLATE_INCONSISTENT, p11.CKR_TEMPLATE_INCOMPLETE, p11.CKR_ACTION_PROHIBITED,
	p11.CKR_TOKEN_WRITE_PROTECTED,
	p11.CKR_ARGUMENTS_BAD, p11.CKR_DEVICE_MEMORY,
}

// refusesData reports whether err is a token's refusal of data objects.
func refusesData(err error) bool {
	return slices.ContainsFunc(dataRefusals, func(code uint) bool { return errors.Is(err, p11.Error(code)) })
}

// ListData returns the data objects of an application. A value longer than MaxData is cut to MaxData bytes. The
// error is of kind Unsupported if the token does not store data objects.
func (t *Token) ListData(ctx context.Context, application string) ([]Data, error) {
	const op = "pkcs11.ListData"
	var list []Data
	err := t.do(ctx, op, func(l *login, s p11.SessionHandle) error {
		defer t.objects()()
		list = nil
		match := dataTemplate(application, nil)
		found, err := t.searchTwice(l, s, match)
		if refusesData(err) {
			return claviger.Errorf(op, claviger.Unsupported, "", "the token keeps no data objects: %w", judged{err})
		}
		if err != nil {
			return err
		}
		if len(found) > maxDataObjects {
			return fmt.Errorf("%d data objects on the token have the application %q; there should be one: list "+
				"them with the HSM's own tool", len(found), application)
		}
		objects, err := t.readFound(ctx, s, found, match, p11.CKA_LABEL, p11.CKA_VALUE)
		for _, attrs := range objects {
			list = append(list, dataOf(attrs, application))
		}
		return err
	})
	if err != nil {
		return nil, err // without the result, as in Find
	}
	return list, nil
}

// PutData writes a data object, and replaces the data object with the same application and label. It makes the
// new object and reads it back before it destroys the old one, so a crash or a full disk leaves at least one of
// them. The error is of kind Unsupported if the token does not store data objects.
func (t *Token) PutData(ctx context.Context, d Data) error {
	const op = "pkcs11.PutData"
	if len(d.Value) > MaxData {
		return claviger.Errorf(op, claviger.Invalid, "", "a data object of %d bytes is longer than %d",
			len(d.Value), MaxData)
	}
	return t.do(ctx, op, func(l *login, s p11.SessionHandle) error {
		defer t.objects()()
		old, err := t.oldData(ctx, s, d)
		var made p11.ObjectHandle
		if err == nil {
			made, err = t.createData(s, d)
		}
		if refusesData(err) {
			return claviger.Errorf(op, claviger.Unsupported, "", "the token keeps no data objects: %w", judged{err})
		}
		if err != nil {
			return err
		}
		kept, err := t.keepsData(ctx, l, s, d)
		if err != nil {
			return err
		}
		if !kept {
			if same := dataTarget(d, 1); !slices.ContainsFunc(old, func(w *target) bool {
				return bytes.Equal(w.value, d.Value)
			}) {
				_ = t.destroy(s, made, same.shown()) // the token may not have it
			}
			return claviger.Errorf(op, claviger.Unavailable, "", "the token said that it had made data object %q, "+
				"and does not show it as it was written; the object that was there before is kept; check whether the "+
				"token, or the disk under it, is full", d.Label)
		}
		for _, w := range old { // the handles that oldData read may be those of other objects by now
			if err := t.destroyObjects(s, w); err != nil {
				return err
			}
		}
		return nil
	})
}

// oldData returns the data objects with the application and label of d, by their values; PutData destroys them later.
// PutData does not destroy an object with that label that another process adds meanwhile.
func (t *Token) oldData(ctx context.Context, s p11.SessionHandle, d Data) ([]*target, error) {
	found, err := t.readObjects(ctx, s, dataTemplate(d.Application, &d.Label), p11.CKA_VALUE)
	if err != nil {
		return nil, err
	}
	var old []*target
	for _, attrs := range found {
		d.Value = nil
		for _, a := range attrs {
			if a.Type == p11.CKA_VALUE {
				d.Value = bytes.Clone(a.Value)
			}
		}
		i := slices.IndexFunc(old, func(w *target) bool { return bytes.Equal(w.value, d.Value) })
		if i < 0 {
			old = append(old, dataTarget(d, 1))
		} else {
			old[i].limit++
		}
	}
	return old, nil
}

// dataTarget returns the target for the data objects that are equal to d, at most limit of them.
func dataTarget(d Data, limit int) *target {
	return &target{name: fmt.Sprintf("data object %q", d.Label), match: dataTemplate(d.Application, &d.Label),
		value: append([]byte{}, d.Value...), limit: limit}
}

// keepsData reports whether a new session reads a data object as it was written. On a full disk SoftHSM returns
// CKR_OK and leaves an empty file, and the object is missing at the next search.
func (t *Token) keepsData(ctx context.Context, l *login, used p11.SessionHandle, d Data) (bool, error) {
	s, err := t.openSession(l.found)
	switch {
	case isOneOf(err, p11.CKR_SESSION_COUNT):
		s = used // the HSM allows no further session
	case err != nil:
		return false, err
	default:
		defer func() { _ = t.b.CloseSession(s) }() // an error does not matter: the session was only used to read
	}
	found, err := t.readObjects(ctx, s, dataTemplate(d.Application, &d.Label), p11.CKA_VALUE)
	return slices.ContainsFunc(found, func(attrs []*p11.Attribute) bool {
		return bytes.Equal(dataOf(attrs, d.Application).Value, d.Value)
	}), err
}

// DestroyData destroys the data objects with that application and label. If there is none, it returns nil.
func (t *Token) DestroyData(ctx context.Context, application, label string) error {
	w := &target{name: fmt.Sprintf("data object %q", label), match: dataTemplate(application, &label),
		limit: allObjects}
	return t.do(ctx, "pkcs11.DestroyData", func(l *login, s p11.SessionHandle) error {
		defer t.objects()()
		w.login = l
		return t.destroyObjects(s, w)
	})
}

// createData makes a private object, so that only a user with the PIN can read or change it. If the token
// refuses private data objects, createData makes a public one.
func (t *Token) createData(s p11.SessionHandle, d Data) (p11.ObjectHandle, error) {
	template := func(private bool) []*p11.Attribute {
		return []*p11.Attribute{
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_DATA), p11.NewAttribute(p11.CKA_TOKEN, true),
			p11.NewAttribute(p11.CKA_PRIVATE, private),
			p11.NewAttribute(p11.CKA_APPLICATION, d.Application), p11.NewAttribute(p11.CKA_LABEL, d.Label),
			p11.NewAttribute(p11.CKA_VALUE, d.Value),
		}
	}
	o, err := t.b.CreateObject(s, template(true))
	if refusesData(err) {
		if o, err := t.b.CreateObject(s, template(false)); err == nil {
			return o, nil
		}
	}
	return o, err
}

// dataTemplate has the attributes by which data objects of an application are searched. A nil label matches all.
func dataTemplate(application string, label *string) []*p11.Attribute {
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_DATA),
		p11.NewAttribute(p11.CKA_APPLICATION, application)}
	if label != nil {
		template = append(template, p11.NewAttribute(p11.CKA_LABEL, *label))
	}
	return template
}

// dataOf returns the data object with these attributes.
func dataOf(attrs []*p11.Attribute, application string) Data {
	d := Data{Application: application}
	for _, a := range attrs {
		switch a.Type {
		case p11.CKA_LABEL:
			d.Label = string(a.Value)
		case p11.CKA_VALUE:
			d.Value = bytes.Clone(a.Value[:min(len(a.Value), MaxData)])
		}
	}
	return d
}
