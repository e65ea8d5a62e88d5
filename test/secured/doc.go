// Package secured tests a secured HDFS with an encryption zone whose key is in
// our KMS: a real KDC, Kerberos at NameNode, DataNode, KMS and clients, a job that
// has delegation tokens and nothing else, and the migration of such a cluster from
// a Java KMS.
package secured
