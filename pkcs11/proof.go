package pkcs11

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/cryptoki"
)

// A library may use a wrong key, and return no error. The handles of objects change when an HSM's daemon restarts, or
// when a group of HSMs switches to another member; then an old handle may be the handle of another key. So each
// C_Encrypt also encrypts the check block, in the same call. Only a result whose check value is right is used. A check
// block in a call of its own would prove nothing: handles may change between two calls.

// ErrWrongKey means that the token encrypted with a key that does not have the given check value.
var ErrWrongKey = errors.New("the token used another key")

// wrongKey is an ErrWrongKey that names both check values.
type wrongKey struct{ got, want []byte }

func (e wrongKey) Error() string {
	return fmt.Sprintf("%v: its check value is %x and not %x", ErrWrongKey, e.got, e.want)
}

func (wrongKey) Is(target error) bool { return target == ErrWrongKey }

// CheckValueOf returns the check value of the key that was used, if err is an ErrWrongKey.
func CheckValueOf(err error) ([]byte, bool) {
	var wrong wrongKey
	ok := errors.As(err, &wrong)
	return wrong.got, ok
}

// makeInput returns an empty buffer for blocks of that size in bytes. Behind the blocks it has room for the check
// block.
func makeInput(size int) []byte { return cryptoki.NewBuffer(size + blockSize)[:0] }

// keyUse has the values that the encryption calls of one operation need.
type keyUse struct {
	name     keyName
	check    string    // the key's check value; "" if the caller has none
	progress *progress // nil if no caller watches it
}

// encrypt encrypts in, a buffer of makeInput, with a key. It makes one C_Encrypt for each dataLimit
// bytes. If the handle may be the handle of another object, encrypt searches the key again and tries once more.
func (t *Token) encrypt(l *login, s p11.SessionHandle, use keyUse, in []byte) ([]byte, error) {
	name := use.name
	for again := false; ; again = true {
		object, err := t.handle(l, s, name)
		if err != nil {
			return nil, err
		}
		out, err := t.encryptParts(s, use, object, in)
		if err == nil {
			return out, nil
		}
		l.handles.CompareAndDelete(name, object) // the handle may be the cause
		if !errors.Is(err, ErrWrongKey) && !wrongObject(err) {
			return nil, err
		}
		if again {
			if errors.Is(err, ErrWrongKey) {
				err = claviger.E("pkcs11.EncryptBlocks", claviger.Unavailable, name.label, err)
			}
			return nil, err
		}
		t.log.Warn("the handle of a key is the handle of another object; the key is searched again",
			"label", name.label, "err", err)
	}
}

// wrongObject reports whether err is the result of a handle that is invalid, or that is the handle of an object that
// cannot encrypt.
func wrongObject(err error) bool {
	return isOneOf(err, p11.CKR_KEY_HANDLE_INVALID, p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_KEY_TYPE_INCONSISTENT,
		p11.CKR_KEY_FUNCTION_NOT_PERMITTED, p11.CKR_KEY_SIZE_RANGE)
}

// encryptParts encrypts in with one object, in parts of at most dataLimit bytes with the check block. A token shows its
// data limit only by the result CKR_DATA_LEN_RANGE. Then the limit is halved, see reduceMaxData.
func (t *Token) encryptParts(s p11.SessionHandle, use keyUse, object p11.ObjectHandle, in []byte) ([]byte, error) {
	name, check := use.name, use.check
	var out []byte
	for at := 0; at < len(in); {
		limit := t.dataLimit(name)
		n := min(partSize(limit, check), len(in)-at)
		part, err := t.encryptProved(s, use, object, in[at:at+n])
		switch {
		case err == nil && n == len(in):
			return part, nil
		case err == nil:
			out = slices.Grow(out, len(in)-at) // grows at the first part only
			out, at = append(out, part...), at+n
			clear(part)
		case errors.Is(err, p11.Error(p11.CKR_DATA_LEN_RANGE)) &&
			t.reduceMaxData(name, limit, n+proofBlocks(check)*blockSize):
		default:
			clear(out)
			return nil, err
		}
	}
	return out, nil
}

// leastData is the least number of bytes that a token must take in one call.
const leastData = 2 * blockSize

// partSize returns the largest number of bytes of a caller's blocks in a call under that limit.
func partSize(limit int64, check string) int {
	return max(int(limit)/blockSize-proofBlocks(check), 1) * blockSize
}

// proofBlocks returns the number of blocks that the proof adds to a call.
func proofBlocks(check string) int {
	if check == "" {
		return 0
	}
	return 1
}

// dataLimit returns the largest number of bytes for one C_Encrypt with a key.
func (t *Token) dataLimit(name keyName) int64 {
	limit, known, counts := t.maxData.get(name)
	switch {
	case counts:
		return limit
	case known:
		t.maxData.drop(name)
	}
	return t.fullData
}

// reduceMaxData halves the limit of a key for learnedFor, after the token refused a call of n bytes under that limit.
// Other keys keep their limits: the result may be a fault of this key. It returns false if the limit cannot be lower: a
// call has room for the check block and one block of the caller.
func (t *Token) reduceMaxData(name keyName, limit int64, n int) bool {
	n = min(n, int(limit))
	if n <= leastData {
		return false
	}
	if t.dataLimit(name) < limit {
		return true // another call has reduced it
	}
	half := max(int64(n/2/blockSize)*blockSize, leastData)
	t.maxData.set(name, half)
	t.log.Warn("the token takes less data in one call than its profile says", "bytes", n, "now", half, "label",
		name.label)
	return true
}

// encryptProved encrypts the blocks of in and the check block, and compares the check value. The slice in is a part of
// a buffer of makeInput: encryptProved writes the check block behind the slice for the call, and restores the bytes
// there afterwards.
func (t *Token) encryptProved(s p11.SessionHandle, use keyUse, object p11.ObjectHandle, in []byte) ([]byte, error) {
	check := use.check
	if check == "" {
		return t.encryptBy(s, use, object, in)
	}
	n := len(in)
	in = in[:n+blockSize]
	var behind [blockSize]byte
	copy(behind[:], in[n:])
	copy(in[n:], checkBlock)
	out, err := t.encryptBy(s, use, object, in)
	copy(in[n:], behind[:])
	if err != nil {
		return nil, err
	}
	return proved(out, check)
}

// proved returns the blocks of out without the last, which is the encrypted check block, if the check value is right.
// Otherwise it wipes them.
func proved(out []byte, check string) ([]byte, error) {
	n := len(out) - blockSize
	got := checkOf(out[n:])
	clear(out[n:])
	if subtle.ConstantTimeCompare(got, []byte(check)) != 1 {
		clear(out)
		return nil, wrongKey{got, []byte(check)}
	}
	return out[:n], nil
}
