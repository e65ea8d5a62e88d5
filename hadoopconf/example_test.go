package hadoopconf_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"claviger/hadoopconf"
)

// A property, its file and line, and a variable that is expanded.
func Example() {
	dir, err := os.MkdirTemp("", "conf")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	site := `<configuration>
  <property><name>state</name><value>/var/lib/claviger</value></property>
  <property><name>store</name><value>${state}/claviger.db</value></property>
</configuration>`
	if err := os.WriteFile(filepath.Join(dir, "kms-site.xml"), []byte(site), 0o600); err != nil {
		log.Fatal(err)
	}

	conf := hadoopconf.New(dir, os.LookupEnv)
	if err := conf.AddFile(filepath.Join(dir, "kms-site.xml"), false); err != nil {
		log.Fatal(err)
	}
	p, _ := conf.Lookup("store")
	fmt.Println(conf.String("store"), "line", p.Line)
	// Output: /var/lib/claviger/claviger.db line 3
}

// A bare number has the unit that the caller gives.
func ExampleParseDuration() {
	for _, text := range []string{"30", "30s", "7d"} {
		d, err := hadoopconf.ParseDuration(text, 1e6)
		fmt.Println(d, err)
	}
	// Output:
	// 30ms <nil>
	// 30s <nil>
	// 168h0m0s <nil>
}
