package authn_test

import (
	"testing"

	"claviger/authn"
)

// BenchmarkCookie measures the authentication of a request with a cookie.
func BenchmarkCookie(b *testing.B) {
	a, err := authn.New(authn.Config{Secrets: javaSecret, Validity: 1, Now: nil})
	if err != nil {
		b.Fatal(err)
	}
	r := request("eek_op=decrypt", `hadoop.auth="`+javaSecret.sign("u=alice&p=alice&t=simple-dt&e=9795478610857")+`"`)
	b.ReportAllocs()
	for b.Loop() {
		if res := a.Authenticate(b.Context(), r); res.Principal == nil {
			b.Fatal(res.Refusal)
		}
	}
}
