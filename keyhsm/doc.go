// Package keyhsm is Key HSM: what a Key Trustee Server has each deposit wrapped
// by once more, so that none can be read without the HSM. A deposit is encrypted
// under a data key of its own, and that by the public half of an RSA pair whose
// private half lives in a token and never leaves it. When that key is destroyed,
// every deposit that it wrapped is unreadable, wherever copies of it are.
//
// A Keeper wraps and unwraps; a Server offers it over HTTPS to those whose
// certificates it was told to trust; a Client asks a Server. The form of what is
// kept is in docs/keyhsm.md, and so is the protocol, which is this project's own:
// Cloudera's is not public.
//
// wire.go alone writes HTTP statuses.
package keyhsm
