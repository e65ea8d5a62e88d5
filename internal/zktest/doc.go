// Package zktest runs a real ZooKeeper server for tests, on a free port of
// loopback, with its data and its log in the test's folder. It can be stopped,
// killed, held up and started again, with its data. No ZooKeeper has to be
// installed: its jars are among Hadoop's, which scripts/hadoop-jars fetches.
//
// Where CLAVIGER_HADOOP_JARS names no folder with them the test is skipped, or
// fails if CLAVIGER_REQUIRE_HADOOP says that they must be there; `make test`
// sets both.
package zktest
