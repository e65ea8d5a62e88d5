package zookeeper_test

import (
	"fmt"
	"log"

	"claviger/zookeeper"
)

// ParseEnsemble accepts the connection strings of ZooKeeper's own client.
func ExampleParseEnsemble() {
	e, err := zookeeper.ParseEnsemble("zk1:2181,zk2/kms")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(e.Servers, e.Chroot)
	// Output: [zk1:2181 zk2:2181] /kms
}
