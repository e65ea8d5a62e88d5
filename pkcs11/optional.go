package pkcs11

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// Some attributes of a new key say once more what the token does anyway: that the
// other attributes may not be changed, and that the key has no use but its own. A
// token may refuse to be given one of them (AWS CloudHSM: CKA_MODIFIABLE). Then
// keys are made without it, and what the token made of it is read back.

// withOptional makes a key with as many of the optional attributes as the token
// takes; uses are those that are to be false. A refusal changes nothing on the
// token, so another try is no second key. What a token refused is remembered.
func (t *Token) withOptional(generate func(optional []*p11.Attribute) error, uses ...uint) error {
	optional := slices.Clone(uses)
	if profiles[t.cfg.Profile].modifiable {
		optional = append([]uint{p11.CKA_MODIFIABLE}, optional...)
	}
	var first error
	for _, spared := range sparings(t.refused(), optional) {
		var attributes []*p11.Attribute
		for _, a := range optional {
			if !slices.Contains(spared, a) {
				attributes = append(attributes, p11.NewAttribute(a, false))
			}
		}
		err := generate(attributes)
		switch {
		case err == nil && first != nil:
			t.spared.Store(&spared)
			t.log.Warn("the token refuses attributes that a key can do without; keys are made without them", "token", t.Info().Label, "attributes", attributeList(spared), "err", first)
			return nil
		case err == nil || !refusesTemplate(err):
			return err
		case first == nil:
			first = err
		}
	}
	return fmt.Errorf("%w, also without the attributes that a key can do without (%s)", first, attributeList(optional))
}

// refused are the attributes that the token is known to refuse.
func (t *Token) refused() []uint {
	if p := t.spared.Load(); p != nil {
		return *p
	}
	return nil
}

// sparings are the sets of attributes to leave out, in the order in which they are
// tried: those that are known, each other one beside them, the first and another,
// all. A token refuses one as a rule, and each that is left out needlessly may be
// set to what nobody wants.
func sparings(known, optional []uint) [][]uint {
	sets := [][]uint{known}
	rest := slices.DeleteFunc(slices.Clone(optional), func(a uint) bool { return slices.Contains(known, a) })
	for _, a := range rest {
		sets = append(sets, append(slices.Clone(known), a))
	}
	if len(rest) > 2 {
		for _, a := range rest[1:] {
			sets = append(sets, append(slices.Clone(known), rest[0], a))
		}
	}
	if len(rest) > 1 {
		sets = append(sets, append(slices.Clone(known), rest...))
	}
	return sets
}

// refusesTemplate tells whether an error is about the attributes of a new object,
// which then was not made.
func refusesTemplate(err error) bool {
	return slices.ContainsFunc([]uint{p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_VALUE_INVALID, p11.CKR_ATTRIBUTE_READ_ONLY, p11.CKR_TEMPLATE_INCONSISTENT},
		func(code uint) bool { return errors.Is(err, p11.Error(code)) })
}

var attributeNames = map[uint]string{
	p11.CKA_MODIFIABLE: "CKA_MODIFIABLE", p11.CKA_SIGN: "CKA_SIGN", p11.CKA_VERIFY: "CKA_VERIFY", p11.CKA_WRAP: "CKA_WRAP", p11.CKA_UNWRAP: "CKA_UNWRAP", p11.CKA_DERIVE: "CKA_DERIVE",
}

func attributeList(attributes []uint) string {
	names := make([]string, len(attributes))
	for i, a := range attributes {
		names[i] = attributeNames[a]
	}
	return strings.Join(names, ", ")
}

// noOtherUse refuses a new key of which the token says that it may do more than was
// asked for, where it could not be told so. What the token does not know, the key
// cannot do.
func (t *Token) noOtherUse(s p11.SessionHandle, object p11.ObjectHandle) error {
	uses := slices.DeleteFunc(slices.Clone(t.refused()), func(a uint) bool { return a == p11.CKA_MODIFIABLE })
	if len(uses) == 0 {
		return nil
	}
	attrs, err := t.attributes(s, object, uses...)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if len(a.Value) > 0 && a.Value[0] != 0 {
			return fmt.Errorf("the token refuses %s=false and sets it to true, which is not what was asked for; the key was destroyed again: check the policies of the partition", attributeNames[a.Type])
		}
	}
	return nil
}
