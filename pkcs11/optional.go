package pkcs11

import (
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// Some attributes of a new key are optional: the token has the same default anyway. They forbid changes of the
// other attributes, and other uses of the key. A token may refuse one of them (AWS CloudHSM: CKA_MODIFIABLE). Then
// keys are made without that attribute, and its value is read back from the new key.

// withOptional makes a key with as many of the optional attributes as the token accepts. uses are the attributes
// that should be false. A refusal changes nothing on the token, so a new try makes no second key. The refused
// attributes are remembered.
func (t *Token) withOptional(generate func(optional []*p11.Attribute) error, uses ...uint) error {
	optional := slices.Clone(uses)
	if profiles[t.cfg.Profile].modifiable {
		optional = append([]uint{p11.CKA_MODIFIABLE}, optional...)
	}
	var first error
	sets := omissionSets(t.refused(), optional)
	for _, omitted := range append(sets[:1:1], sets...) { // the first twice: a refusal may be a passing fault
		var attributes []*p11.Attribute
		for _, a := range optional {
			if !slices.Contains(omitted, a) {
				attributes = append(attributes, p11.NewAttribute(a, false))
			}
		}
		err := generate(attributes)
		switch {
		case err == nil && len(omitted) > len(sets[0]):
			t.omitted.Store(&omitted)
			t.log.Warn("the token refuses attributes that a key can do without; keys are made without them", "token",
				t.Info().Label, "attributes", attributeList(omitted), "err", first)
			return nil
		case err == nil || !refusesTemplate(err):
			return err
		case first == nil:
			first = err
		}
	}
	return fmt.Errorf("%w, also without the attributes that a key can do without (%s)", first, attributeList(optional))
}

// refused returns the attributes that the token refused before.
func (t *Token) refused() []uint {
	if p := t.omitted.Load(); p != nil {
		return *p
	}
	return nil
}

// omissionSets returns the sets of attributes to leave out, in the order of the tries: the known ones; the known ones
// and one other; the known ones, the first other and one more; all. Most tokens refuse only one attribute. An
// attribute that is left out without need may get an unwanted value.
func omissionSets(known, optional []uint) [][]uint {
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

// refusesTemplate reports whether err is about the attributes of a new object. Then the object was not made.
func refusesTemplate(err error) bool {
	return isOneOf(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_VALUE_INVALID, p11.CKR_ATTRIBUTE_READ_ONLY,
		p11.CKR_TEMPLATE_INCONSISTENT)
}

var attributeNames = map[uint]string{
	p11.CKA_MODIFIABLE: "CKA_MODIFIABLE", p11.CKA_SIGN: "CKA_SIGN", p11.CKA_VERIFY: "CKA_VERIFY",
	p11.CKA_WRAP: "CKA_WRAP", p11.CKA_UNWRAP: "CKA_UNWRAP", p11.CKA_DERIVE: "CKA_DERIVE",
}

func attributeList(attributes []uint) string {
	names := make([]string, len(attributes))
	for i, a := range attributes {
		names[i] = attributeNames[a]
	}
	return strings.Join(names, ", ")
}

// otherUses are the attributes of a key for the uses that no key here has.
var otherUses = []uint{p11.CKA_SIGN, p11.CKA_VERIFY, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_DERIVE}

// checkNoOtherUse returns an error if a new key has a use that was not requested: the token may have refused the
// attribute that forbids it. A use whose attribute the token does not know is impossible. After an error the next key
// is made with all attributes again, because the token may have refused them only once.
func (t *Token) checkNoOtherUse(s p11.SessionHandle, object p11.ObjectHandle) error {
	attrs, err := t.attributes(s, object, otherUses...)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if len(a.Value) > 0 && a.Value[0] != 0 {
			t.omitted.Store(nil)
			return fmt.Errorf("the token refuses %s=false and sets it to true, which is not what was asked for; the "+
				"key was destroyed again: check the policies of the partition", attributeNames[a.Type])
		}
	}
	return nil
}
