// Package web serves all HTTP of claviger. The KMS, the Key Trustee Server, Key HSM and the port
// for metrics are each a Server.
//
// A Server listens, counts and limits connections, sets the time limits of requests and the
// headers of answers, uses TLS with certificates that it reads again when their files change, writes a ready
// file, and lets requests end when the Server is stopped. The package knows nothing of keys, providers
// and configuration files; callers pass values.
package web
