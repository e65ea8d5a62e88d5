// Package secured tests a secured HDFS with an encryption zone whose key is in
// our KMS: a real KDC, Kerberos at NameNode, DataNode, KMS and clients, and a job
// that has delegation tokens and nothing else.
package secured
