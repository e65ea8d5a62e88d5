// Package zktest runs a real ZooKeeper server for tests, on a free port of loopback, with
// its data and its log in the test's folder. A test can stop, kill, pause and restart it
// with its data. ZooKeeper need not be installed: its jars are among Hadoop's, which
// scripts/hadoop-jars downloads.
//
// If CLAVIGER_HADOOP_JARS names no folder with the jars, the test is skipped, or fails if
// CLAVIGER_REQUIRE_HADOOP is set. `make test` sets both.
package zktest
