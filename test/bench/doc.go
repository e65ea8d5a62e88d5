// Package bench measures servers with the same load, in one run: claviger with an HSM and with a keystore,
// Hadoop's own KMS, and a net/http server that does nothing, which shows the upper limit of a Go server.
// docs/performance.md shows a run.
//
// It compares the work per CPU-second of the server's process, which the system counts. Requests per second would
// mean little, because the load generator shares the cores of the machine.
package bench
