// Package tlskey signs the TLS handshakes of a server with private keys that stay in an HSM. The certificates are in a
// PEM file.
//
// Each key has a URI (RFC 7512), and one private key alone of its token may match it. A certificate belongs to the key
// whose signature its public key verifies. Before a client gets a certificate, its key makes a test signature. A server
// whose HSM does not answer starts without its keys. Handshakes fail until the HSM answers.
//
// The HSM's library runs in a worker of its own, so a signature that hangs ends no other call of the server. A
// handshake waits for its signature for a limited time, and a limited number of signatures are made at the same time.
// Each signature is verified before a client gets it.
package tlskey
