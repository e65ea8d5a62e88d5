package pkcs11

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// Function describes one call of a function of the vendor's library. Functions that the library answers without
// the HSM are left out.
type Function struct {
	Name   string // C_Encrypt
	Result string // CKR_OK, see ResultName
	Took   time.Duration
}

// OnFunction sets f to be called after each such call from now on, in place of an earlier f; nil sets none. f
// must be quick, and may be called from many goroutines at once.
func (t *Token) OnFunction(f func(Function)) {
	if f == nil {
		t.onFunction.Store(nil)
		return
	}
	t.onFunction.Store(&f)
}

// ResultName returns the PKCS #11 name of a function's result, such as CKR_OK or CKR_DEVICE_ERROR. All results
// that a vendor defined have the one name CKR_VENDOR_DEFINED, so that there are few names.
func ResultName(err error) string {
	var code p11.Error
	switch {
	case err == nil:
		return "CKR_OK"
	case !errors.As(err, &code):
		return "CKR_GENERAL_ERROR"
	}
	// The text has the form "pkcs11: 0x30: CKR_DEVICE_ERROR".
	text := code.Error()
	if name := text[strings.LastIndexByte(text, ' ')+1:]; strings.HasPrefix(name, "CKR_") {
		return name
	}
	return "CKR_VENDOR_DEFINED"
}

// traced reports the calls that may go to the HSM.
type traced struct {
	Boundary
	report *atomic.Pointer[func(Function)]
}

func (w traced) done(name string, began time.Time, err *error) {
	if f := w.report.Load(); f != nil {
		(*f)(Function{name, ResultName(*err), time.Since(began)})
	}
}

func (w traced) Initialize(o ...p11.InitializeOption) (err error) {
	defer w.done("C_Initialize", time.Now(), &err)
	return w.Boundary.Initialize(o...)
}

func (w traced) OpenSession(slot, flags uint) (_ p11.SessionHandle, err error) {
	defer w.done("C_OpenSession", time.Now(), &err)
	return w.Boundary.OpenSession(slot, flags)
}

func (w traced) Login(s p11.SessionHandle, user uint, pin string) (err error) {
	defer w.done("C_Login", time.Now(), &err)
	return w.Boundary.Login(s, user, pin)
}

func (w traced) GenerateRandom(s p11.SessionHandle, n int) (_ []byte, err error) {
	defer w.done("C_GenerateRandom", time.Now(), &err)
	return w.Boundary.GenerateRandom(s, n)
}

func (w traced) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism,
	a []*p11.Attribute) (_ p11.ObjectHandle, err error) {
	defer w.done("C_GenerateKey", time.Now(), &err)
	return w.Boundary.GenerateKey(s, m, a)
}

func (w traced) CreateObject(s p11.SessionHandle, a []*p11.Attribute) (_ p11.ObjectHandle, err error) {
	defer w.done("C_CreateObject", time.Now(), &err)
	return w.Boundary.CreateObject(s, a)
}

func (w traced) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) (err error) {
	defer w.done("C_DestroyObject", time.Now(), &err)
	return w.Boundary.DestroyObject(s, o)
}

func (w traced) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	a []*p11.Attribute) (_ []*p11.Attribute, err error) {
	defer w.done("C_GetAttributeValue", time.Now(), &err)
	return w.Boundary.GetAttributeValue(s, o, a)
}

func (w traced) FindObjectsInit(s p11.SessionHandle, a []*p11.Attribute) (err error) {
	defer w.done("C_FindObjectsInit", time.Now(), &err)
	return w.Boundary.FindObjectsInit(s, a)
}

func (w traced) FindObjects(s p11.SessionHandle, limit int) (_ []p11.ObjectHandle, _ bool, err error) {
	defer w.done("C_FindObjects", time.Now(), &err)
	return w.Boundary.FindObjects(s, limit)
}

// Encrypt calls C_EncryptInit and C_Encrypt, and reports them together as C_Encrypt.
func (w traced) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	data []byte) (_ []byte, err error) {
	defer w.done("C_Encrypt", time.Now(), &err)
	return w.Boundary.Encrypt(s, m, key, data)
}

func (w traced) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism,
	public, private []*p11.Attribute) (_, _ p11.ObjectHandle, err error) {
	defer w.done("C_GenerateKeyPair", time.Now(), &err)
	return w.Boundary.GenerateKeyPair(s, m, public, private)
}

func (w traced) DecryptInit(s p11.SessionHandle, padding *p11.OAEPParams, o p11.ObjectHandle) (err error) {
	defer w.done("C_DecryptInit", time.Now(), &err)
	return w.Boundary.DecryptInit(s, padding, o)
}

func (w traced) Decrypt(s p11.SessionHandle, data []byte) (_ []byte, err error) {
	defer w.done("C_Decrypt", time.Now(), &err)
	return w.Boundary.Decrypt(s, data)
}

// Sign calls C_SignInit and C_Sign, and reports them together as C_Sign.
func (w traced) Sign(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) (_ []byte, err error) {
	defer w.done("C_Sign", time.Now(), &err)
	return w.Boundary.Sign(s, m, key, data)
}
