// Package keyhsm is Key HSM, which encrypts each deposit of a Key Trustee Server once more, so that no
// deposit can be read without the HSM. Each deposit has its own data key. The public key of an RSA pair
// encrypts the data key; the private key is in a token and never leaves it. If the private key is
// destroyed, nobody can read the deposits that the pair wrapped, nor any copy of them.
//
// A Keeper wraps and unwraps deposits. A Server offers a Keeper over HTTPS to clients with a trusted
// certificate. A Client sends requests to a Server. docs/keyhsm.md describes the form of a wrapped deposit
// and the protocol. The protocol is our own, because Cloudera's protocol is not public.
//
// Only wire.go writes HTTP statuses.
package keyhsm
