// Package hsmfaults tests a whole key management service in front of an HSM that fails: by each result of PKCS #11, by
// crashes, hangs, exchanged handles, lost logins and limits, one at a time and at random.
package hsmfaults
