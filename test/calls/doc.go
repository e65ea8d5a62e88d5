// Package calls counts the calls that an HSM gets from the key management service. Throughput that does not depend
// on the latency of the HSM depends on the number of calls.
package calls
