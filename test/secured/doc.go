// Package secured tests a secured HDFS with an encryption zone whose key is in our KMS: a real KDC, Kerberos at
// the NameNode, the DataNode, the KMS and the clients, and a job that has only delegation tokens. It also tests
// the migration of such a cluster from a Java KMS.
package secured
