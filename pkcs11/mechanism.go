package pkcs11

import (
	"time"

	p11 "github.com/miekg/pkcs11"
)

// reduced says that the token refused the better mechanisms for a key.
type reduced struct {
	at    int // index in Token.mechanisms
	until time.Time
}

// encryptBy encrypts blocks by the best mechanism of the token. If the token refuses that mechanism now, it uses the
// next one, and remembers that for the key for a while.
func (t *Token) encryptBy(s p11.SessionHandle, name keyName, object p11.ObjectHandle, in []byte) ([]byte, error) {
	first, known := t.mechanismOf(name)
	for i := first; ; i++ {
		out, err := t.mechanismEncrypt(s, t.mechanisms[i], object, in)
		if err != nil && i+1 < len(t.mechanisms) &&
			isOneOf(err, p11.CKR_MECHANISM_INVALID, p11.CKR_MECHANISM_PARAM_INVALID) {
			continue
		}
		switch {
		case err != nil:
		case i > first:
			t.reduceMechanism(name, i)
		case known && i == 0:
			t.restoreMechanism(name)
		}
		return out, err
	}
}

// mechanismOf returns the index of the mechanism to try first with a key. known: the token refused a better one before.
func (t *Token) mechanismOf(name keyName) (index int, known bool) {
	if t.reducedKeys.Load() == 0 {
		return 0, false
	}
	v, known := t.reduced.Load(name)
	if r, _ := v.(reduced); known && time.Now().Before(r.until) {
		return r.at, true
	}
	return 0, known
}

func (t *Token) reduceMechanism(name keyName, at int) {
	if _, known := t.reduced.Swap(name, reduced{at, time.Now().Add(learnedFor)}); known {
		return
	}
	if t.reducedKeys.Add(1) == 1 {
		t.log.Warn("the token refuses a mechanism that it offered; calls use another one, which needs more calls",
			"refused", mechanismName(t.mechanisms[0]), "uses", mechanismName(t.mechanisms[at]), "label", name.label)
	}
}

func (t *Token) restoreMechanism(name keyName) {
	if _, known := t.reduced.LoadAndDelete(name); known && t.reducedKeys.Add(-1) == 0 {
		t.log.Info("the token uses its best mechanism again", "uses", mechanismName(t.mechanisms[0]))
	}
}
