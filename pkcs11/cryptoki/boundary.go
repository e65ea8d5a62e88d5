// Package cryptoki loads a PKCS#11 library, and calls its functions. It is the only package that does. Package worker
// calls them in a process of its own.
package cryptoki

import p11 "github.com/miekg/pkcs11"

// Boundary is the part of Cryptoki that claviger calls, as github.com/miekg/pkcs11 declares it. It has one method
// for each C function in use, which is more than eight. A type that wraps a Boundary embeds it.
//
// Encrypt makes C_EncryptInit and C_Encrypt. Its result is as long as the data. Decrypt calls C_Decrypt twice; the
// first call asks only for the length of the result, and the vendor's library answers it without the HSM. Sign makes
// C_SignInit and C_Sign.
type Boundary interface {
	Initialize(...p11.InitializeOption) error
	Finalize() error
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slot uint) (p11.TokenInfo, error)
	GetMechanismList(slot uint) ([]*p11.Mechanism, error)
	OpenSession(slot, flags uint) (p11.SessionHandle, error)
	CloseSession(p11.SessionHandle) error
	GetSessionInfo(p11.SessionHandle) (p11.SessionInfo, error)
	Login(s p11.SessionHandle, user uint, pin string) error
	GenerateRandom(s p11.SessionHandle, n int) ([]byte, error)
	GenerateKey(p11.SessionHandle, []*p11.Mechanism, []*p11.Attribute) (p11.ObjectHandle, error)
	CreateObject(p11.SessionHandle, []*p11.Attribute) (p11.ObjectHandle, error)
	DestroyObject(p11.SessionHandle, p11.ObjectHandle) error
	GetAttributeValue(p11.SessionHandle, p11.ObjectHandle, []*p11.Attribute) ([]*p11.Attribute, error)
	FindObjectsInit(p11.SessionHandle, []*p11.Attribute) error
	FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error)
	FindObjectsFinal(p11.SessionHandle) error
	Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error)
	GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism,
		public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error)
	// DecryptInit begins a decryption by CKM_RSA_PKCS_OAEP.
	DecryptInit(p11.SessionHandle, *p11.OAEPParams, p11.ObjectHandle) error
	Decrypt(p11.SessionHandle, []byte) ([]byte, error)
	Sign(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error)
}

// Library is a Boundary that can be unloaded.
type Library interface {
	Boundary
	// Destroy unloads the library. Nothing may be called afterwards.
	Destroy()
}
