package authn_test

import (
	"fmt"
	"log"

	"claviger/authn"
)

// auth_to_local maps Kerberos principals to user names.
func ExampleRules_Short() {
	rules, err := authn.ParseRules("RULE:[2:$1@$0](nn@EXAMPLE.COM)s/.*/hdfs/\nDEFAULT",
		authn.MechanismHadoop, "EXAMPLE.COM")
	if err != nil {
		log.Fatal(err)
	}
	for _, principal := range []string{"nn/host1@EXAMPLE.COM", "alice@EXAMPLE.COM"} {
		user, err := rules.Short(principal)
		fmt.Println(user, err)
	}
	// Output:
	// hdfs <nil>
	// alice <nil>
}
