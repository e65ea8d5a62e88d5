// Package web is the one way in which claviger serves HTTP: the KMS, the Key Trustee
// Server, Key HSM and the port for metrics are each a Server.
//
// A Server listens, counts and limits connections, sets the time limits of requests and the
// headers of answers, speaks TLS with certificates that follow their files, writes a ready
// file, and lets requests end when it is stopped. The package knows no keys, no providers
// and no configuration files; callers hand it values.
package web
