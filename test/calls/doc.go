// Package calls counts what the key management service asks of an HSM: the
// promise that throughput does not hang on the HSM's latency is a promise about
// the number of calls.
package calls
