// Package zookeeper keeps what several nodes share in Apache ZooKeeper, in the
// layout that Hadoop's own classes have there, so that a Java KMS and ours serve
// side by side: the secrets that sign cookies (ZKSignerSecretProvider) and the
// delegation tokens with their keys (ZKDelegationTokenSecretManager).
// A Client is one connection to an ensemble. It survives lost sessions, restarted servers and networks that lose
// packets: it retries an operation until its time ends, and closes a connection that does not answer. It sets no
// watches and makes no ephemeral nodes, so nothing depends on a session. Data that must be current is read at each
// use.
// The library go-zookeeper/zk does the ZooKeeper protocol. The connection that this package gives it adds SASL with
// Kerberos, TLS, and limits on the length of frames.
// Nothing is cached. A token is read at each use, after a ZooKeeper sync. So a token that one node cancels is
// refused by all other nodes at once. Requests that use one token at the same time share one read.
package zookeeper
