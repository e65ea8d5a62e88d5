// Package hadoop runs a real Apache Hadoop for tests: the Java KMS, a NameNode,
// a DataNode, and the stock client commands (`hadoop key`, `hdfs crypto`, `hdfs
// dfs`, `hdfs dfsadmin`), each as a process of its own on loopback, with free
// ports, its log kept in the test's folder and printed when the test fails. No
// Hadoop distribution is needed: the jars that pom.xml names come from Maven,
// once, by scripts/hadoop-jars.
//
// `go test -short` leaves out everything that starts Java. Without -short a
// missing JDK fails the test: a test that skips itself where it should run
// proves nothing.
package hadoop
