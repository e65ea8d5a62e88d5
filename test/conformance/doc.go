// Package conformance runs Hadoop's own KMS tests (TestKMS of hadoop-kms), and with
// -zones HDFS's tests of encryption zones, against our server: Hadoop's test class and client, unchanged, and in the place of
// the in-process server that they start, `claviger kms`. A Java KMS as a process
// of its own can take that place too, which proves the harness:
//
//	go test ./test/conformance -reference
package conformance
