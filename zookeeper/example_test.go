package zookeeper_test

import (
	"fmt"
	"log"

	"claviger/zookeeper"
)

// A connection string, as ZooKeeper's own client takes it.
func ExampleParseEnsemble() {
	e, err := zookeeper.ParseEnsemble("zk1:2181,zk2/kms")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(e.Servers, e.Chroot)
	// Output: [zk1:2181 zk2:2181] /kms
}
