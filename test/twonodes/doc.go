// Package twonodes tests a secured site: two nodes behind one kms://https@host1;host2 with Kerberos and TLS, one
// token of an HSM, PostgreSQL, and cookie secrets and delegation tokens in ZooKeeper with SASL or in PostgreSQL.
// The KDC, ZooKeeper, PostgreSQL and Hadoop's clients are real. Either node is killed under load, and no client
// sees an error. A delegation token of one node is used, renewed and cancelled at both.
package twonodes
