// Package zookeeper shows that Hadoop's Java KMS and ours work side by side and share data in one real ZooKeeper.
// Each accepts, renews and cancels the delegation tokens of the other, and accepts its cookies. Each rolls the
// secret of the cookies for both while the other does not run. While ZooKeeper is down, requests with a cookie succeed,
// and everything works again when it is back. The same holds with Kerberos between the servers and ZooKeeper, as
// in step 8 of docs/migration/run.md; then other programs cannot read the shared data.
package zookeeper
