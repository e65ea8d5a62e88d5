// Package pkcs11 is the way to an HSM: it loads a vendor's PKCS#11 library,
// finds one token, logs in once, keeps a bounded pool of sessions, gathers
// calls that use one key at the same time into one, and heals itself when the
// token goes away and comes back. It knows AES keys that can encrypt, RSA pairs
// whose private half can decrypt, and nothing of Hadoop.
//
// Gathered calls are served by size: a caller with few blocks goes before a caller
// with many.
//
// It is bound by github.com/miekg/pkcs11; the standard is PKCS #11 v2.40.
package pkcs11
