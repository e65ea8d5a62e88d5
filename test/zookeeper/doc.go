// Package zookeeper shows that Hadoop's Java KMS and ours serve side by side with
// what they share in one real ZooKeeper: each takes the other's cookies and
// delegation tokens, renews and cancels them, and each rolls the secret of the
// cookies for both, with the other one away. It shows that a killed ZooKeeper
// stops no request that brings a cookie, and that all goes on when it is back; and
// the same with Kerberos between the servers and ZooKeeper, as step 8 of the
// migration sets it, where strangers may not read what the servers share.
package zookeeper
