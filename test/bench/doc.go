// Package bench measures servers under one load, in one run: claviger on an HSM
// and on a keystore, Hadoop's own KMS, and a net/http server that does nothing,
// which is what a Go server can reach at best. docs/performance.md shows a run.
//
// What is compared is work per CPU-second of the server's process, read from
// the system: the load generator shares the machine's cores, so that requests
// per second would say little.
package bench
