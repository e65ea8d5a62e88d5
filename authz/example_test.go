package authz_test

import (
	"fmt"

	"claviger"
	"claviger/authz"
)

// A blacklist is stronger than a rule that admits everybody.
func ExamplePolicy_May() {
	policy, warnings := authz.Parse([]authz.Property{
		{Name: "hadoop.kms.acl.DECRYPT_EEK", Value: "*"},
		{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "hdfs"},
	})
	noGroups := func(string) []string { return nil }
	for _, user := range []string{"alice", "hdfs"} {
		who := claviger.Principal{Name: user, Short: user}
		fmt.Println(user, policy.May(authz.DecryptEEK, who, noGroups))
	}
	fmt.Println(warnings)
	// Output:
	// alice true
	// hdfs false
	// []
}
