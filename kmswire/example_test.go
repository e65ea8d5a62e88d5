package kmswire_test

import (
	"fmt"
	"log"

	"claviger"
	"claviger/kmswire"
)

// The answer to a decrypt, as Hadoop's client reads it.
func ExampleAppendDEK() {
	fmt.Println(string(kmswire.AppendDEK(nil, "finance", []byte("0123456789abcdef"))))
	// Output: {"material":"MDEyMzQ1Njc4OWFiY2RlZg","name":"finance","versionName":"EK"}
}

// The body of a creation, as Hadoop's client sends it.
func ExampleReadCreate() {
	c, err := kmswire.ReadCreate([]byte(`{"name":"finance","length":256,"cipher":"AES/CTR/NoPadding"}`))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Name, c.Length, c.Cipher == claviger.DefaultCipher)
	// Output: finance 256 true
}
