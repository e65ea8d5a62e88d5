package pkcs11

import p11 "github.com/miekg/pkcs11"

// encryptBy encrypts blocks by the best mechanism of the token. If the token refuses that mechanism now, it uses the
// next one, and remembers that for the key for a while.
func (t *Token) encryptBy(s p11.SessionHandle, use keyUse, object p11.ObjectHandle, in []byte) ([]byte, error) {
	first, known := t.mechanismOf(use.name)
	for i := first; ; i++ {
		out, err := t.mechanismEncrypt(s, t.mechanisms[i], use, object, in)
		if err != nil && i+1 < len(t.mechanisms) &&
			isOneOf(err, p11.CKR_MECHANISM_INVALID, p11.CKR_MECHANISM_PARAM_INVALID) {
			continue
		}
		switch {
		case err != nil:
		case i > first:
			t.reduceMechanism(use.name, i)
		case known && i == 0:
			t.restoreMechanism(use.name)
		}
		return out, err
	}
}

// mechanismOf returns the index of the mechanism to try first with a key. known is true if the token
// refused a better mechanism before.
func (t *Token) mechanismOf(name keyName) (index int, known bool) {
	index, known, counts := t.reduced.get(name)
	if !counts {
		index = 0
	}
	return index, known
}

func (t *Token) reduceMechanism(name keyName, at int) {
	if t.reduced.set(name, at) {
		t.log.Warn("the token refuses a mechanism that it offered; calls use another one, which needs more calls",
			"refused", mechanismName(t.mechanisms[0]), "uses", mechanismName(t.mechanisms[at]), "label", name.label)
	}
}

func (t *Token) restoreMechanism(name keyName) {
	if t.reduced.drop(name) {
		t.log.Info("the token uses its best mechanism again", "uses", mechanismName(t.mechanisms[0]))
	}
}
