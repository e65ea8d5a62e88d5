// Package twonodes tests what a secured site has: two nodes behind one
// kms://https@host1;host2 with Kerberos and TLS, one token of an HSM, PostgreSQL,
// and cookies' secrets and delegation tokens in ZooKeeper behind SASL or in
// PostgreSQL. The KDC, ZooKeeper, PostgreSQL and Hadoop's clients are real ones.
// Either node is killed under load and no client sees an error; a delegation token
// of one node is used, renewed and cancelled at both.
package twonodes
