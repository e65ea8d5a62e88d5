// Package pkcs11 uses an HSM. It loads a vendor's PKCS#11 library, finds one token, logs in once, and keeps a
// bounded pool of sessions. Requests that use one key at the same time become one call. When the token is lost
// and comes back, the package logs in again by itself. It knows AES keys that can encrypt, and RSA pairs whose
// private key can decrypt. It knows nothing of Hadoop.
//
// A library that is loaded into a server can end it by a crash, and one call that hangs can never be taken back. With
// Config.Worker, the library runs in a process of its own; see package worker. Then a crash or a hang is a lost token
// like any other: the library is started again, and the calls are made again.
//
// Requests that wait are served by size: a small request goes before a large one.
//
// The binding to C is github.com/miekg/pkcs11; the standard is PKCS #11 v2.40.
package pkcs11
