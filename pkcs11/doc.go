// Package pkcs11 uses an HSM. It loads a vendor's PKCS#11 library, finds one token, logs in once, and keeps a
// bounded pool of sessions. Requests that use one key at the same time become one call. When the token is lost
// and comes back, the package logs in again by itself. It knows AES keys that can encrypt, and RSA pairs whose
// private key can decrypt. It knows nothing of Hadoop.
//
// Requests that wait are served by size: a small request goes before a large one.
//
// The binding to C is github.com/miekg/pkcs11; the standard is PKCS #11 v2.40.
package pkcs11
