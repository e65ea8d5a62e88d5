package keyring_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/keyring"
	"claviger/provider"
	"claviger/provider/memory"
)

// A user makes a key, and the NameNode's user makes an EDEK under it. The user may open the EDEK; the NameNode's user
// may not.
func Example() {
	ctx := context.Background()
	policy, _ := authz.Parse([]authz.Property{
		{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "hdfs"},
		{Name: "default.key.acl.MANAGEMENT", Value: "*"},
		{Name: "default.key.acl.GENERATE_EEK", Value: "*"},
		{Name: "default.key.acl.DECRYPT_EEK", Value: "*"},
	})
	ring, err := keyring.New(keyring.Config{
		Primary:          memory.New(memory.Config{Sealed: true}),
		Policy:           func() *authz.Policy { return policy },
		KeyAuthorization: true,
		Audit:            &audit.Tee{},
		QueueSize:        1, QueueLowWatermark: 1, QueueFillers: 1, QueueExpiry: time.Hour,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer ring.Close()

	alice := claviger.Caller{Principal: claviger.Principal{Name: "alice", Short: "alice"}}
	hdfs := claviger.Caller{Principal: claviger.Principal{Name: "hdfs", Short: "hdfs"}}
	spec := provider.Spec{Name: "finance", Cipher: "AES/CTR/NoPadding", BitLength: 128}
	if _, err := ring.Create(ctx, alice, spec); err != nil {
		log.Fatal(err)
	}
	edeks, err := ring.Generate(ctx, hdfs, "finance", 1)
	if err != nil {
		log.Fatal(err)
	}
	dek, err := ring.Decrypt(ctx, alice, "finance", true, edeks[0])
	fmt.Println(len(dek), err)
	dek.Wipe()
	_, err = ring.Decrypt(ctx, hdfs, "finance", true, edeks[0])
	fmt.Println(claviger.KindOf(err) == claviger.Denied)
	// Output:
	// 16 <nil>
	// true
}
