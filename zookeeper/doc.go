// Package zookeeper stores the data that several nodes share in Apache ZooKeeper: the secrets that sign cookies, and
// the delegation tokens with their keys. The layout is that of Hadoop's own classes (ZKSignerSecretProvider and
// ZKDelegationTokenSecretManager), so a Java KMS and this server can run side by side.
//
// A Client is one connection to an ensemble. It survives lost sessions, restarted servers and networks that lose
// packets: it retries an operation until its time ends, and closes a connection that does not answer. It sets no
// watches and makes no ephemeral nodes, so nothing depends on a session. Data that must be current is read at each
// use.
//
// The library go-zookeeper/zk does the ZooKeeper protocol. The connection that this package gives it adds SASL with
// Kerberos, TLS, and limits on the length of frames.
//
// Nothing is cached. A token is read at each use, after a ZooKeeper sync. So a token that one node cancels is
// refused by all other nodes at once. Requests that use one token at the same time share one read.
package zookeeper
