package pkcs11_test

import (
	"fmt"
	"log"

	"claviger/pkcs11"
)

// A pkcs11: URI (RFC 7512) names the library, the token and the file with the PIN.
func ExampleParseURI() {
	c, warnings, err := pkcs11.ParseURI("pkcs11:token=kms?module-path=/usr/lib/softhsm/libsofthsm2.so&" +
		"pin-source=file:/etc/pin")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Module, c.TokenLabel, c.PINFile, warnings)
	// Output: /usr/lib/softhsm/libsofthsm2.so kms /etc/pin []
}
