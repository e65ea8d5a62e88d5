// Package zookeeper keeps what several nodes share in Apache ZooKeeper, in the
// layout that Hadoop's own classes have there, so that a Java KMS and ours serve
// side by side: the secrets that sign cookies (ZKSignerSecretProvider) and the
// delegation tokens with their keys (ZKDelegationTokenSecretManager).
//
// A Client is one connection to an ensemble. It survives lost sessions, restarted
// servers and networks that swallow packets: an operation is tried again until
// its time is up, and a connection on which nothing answers is given up. It sets
// no watches and makes no ephemeral nodes, so nothing hangs on a session; whatever
// has to be true now is read now.
//
// The ZooKeeper protocol is go-zookeeper/zk's. What that lacks is done below it,
// in the connection it is given: SASL with Kerberos, TLS, and limits on what a
// server may send.
//
// Nothing is cached. A token is read when it is used, after a ZooKeeper sync, so a
// token that one node cancels is refused by all others at once. Requests that use one
// token at the same time share a reading.
package zookeeper
