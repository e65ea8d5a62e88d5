// Package hadoop runs a real Apache Hadoop for tests: the Java KMS, a NameNode, a DataNode, and the stock client
// commands (`hadoop key`, `hdfs crypto`, `hdfs dfs`, `hdfs dfsadmin`). Each is a process on loopback with free
// ports. Its log is in the folder of the test, and is printed if the test fails. The package needs no Hadoop
// distribution: scripts/hadoop-jars fetches the jars that pom.xml names from Maven, once.
//
// `go test -short` runs no test that starts Java. Without -short, a missing JDK fails the test, because a test
// that skips itself proves nothing.
package hadoop
