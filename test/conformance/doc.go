// Package conformance runs Hadoop's own tests of a KMS (TestKMS of hadoop-kms) against `claviger kms`. The flag -zones
// adds HDFS's tests of encryption zones. Hadoop's test classes and its client are unchanged; only the server that they
// would start in their own process is replaced. The flag -reference runs the tests against a Java KMS in a process of
// its own, to prove the harness:
//
//	go test ./test/conformance -reference
package conformance
