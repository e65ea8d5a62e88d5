// Package keyhsm is Key HSM, which encrypts each deposit of a Key Trustee Server once more,
// so that no deposit can be read without the HSM. Each deposit is encrypted under a data key
// of its own. The data key is encrypted by the public half of an RSA pair; the private half
// is in a token and never leaves it. When the private key is destroyed, every deposit that
// the pair wrapped is unreadable, and so is every copy of it.
//
// A Keeper wraps and unwraps deposits. A Server offers a Keeper over HTTPS to clients with a
// trusted certificate. A Client sends requests to a Server. docs/keyhsm.md describes the form
// of a wrapped deposit and the protocol. The protocol is this project's own, since Cloudera's
// is not public.
//
// wire.go alone writes HTTP statuses.
package keyhsm
