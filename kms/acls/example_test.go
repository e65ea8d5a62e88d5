package acls_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/kms/acls"
)

// The example shows which rule allows alice to decrypt with the key finance, and which rule refuses bob.
func ExampleExplain() {
	dir, err := os.MkdirTemp("", "acls")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	for name, text := range map[string]string{
		"kms-site.xml": `<configuration><property><name>hadoop.kms.key.provider.uri</name>
			<value>jceks://file@` + dir + `/kms.jceks</value></property></configuration>`,
		"kms-acls.xml": `<configuration><property><name>key.acl.finance.DECRYPT_EEK</name>
			<value>alice</value></property></configuration>`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			fmt.Println(err)
			return
		}
	}
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		fmt.Println(err)
		return
	}
	request, _, _ := authz.FindRequest("DECRYPT_EEK")
	for _, user := range []string{"alice", "bob"} {
		x, err := acls.Explain(context.Background(), conf,
			acls.Question{User: user, Groups: []string{}, Request: request, Key: "finance"})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(user, x.Allowed, x.DecidedBy.Property)
	}
	// Output:
	// alice true key.acl.finance.DECRYPT_EEK
	// bob false key.acl.finance.DECRYPT_EEK
}
